"""Adds the options of ``pytest benchmarks``; the test suite may have added ``--peer`` already."""

from __future__ import annotations

import contextlib

import pytest

from . import peers


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):
        parser.addoption("--peer", action="append", default=[], metavar="NAME=PATH", help="checkout to run beside ours")
    parser.addoption("--all-cases", action="store_true", help="every StyleGAN2 resolution, not only 64 and 256")


def pytest_configure(config: pytest.Config) -> None:
    try:
        peers.parse(config.getoption("--peer"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
