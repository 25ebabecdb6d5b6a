"""Experiments on claims of the papers, one file a claim; needs the packages of ``posgan_fast[train]``."""

from __future__ import annotations

EXPERIMENTS = {
    "stationarity": "position in the features of random generators from independent noise, by padding",
}
