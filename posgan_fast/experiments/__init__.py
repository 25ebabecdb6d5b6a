"""Experiments on claims of the papers, one file a claim; needs the packages of ``posgan_fast[train]``."""

from __future__ import annotations

EXPERIMENTS = {
    "stationarity": "position in the features of random generators from independent noise, by padding",
    "singan": "SinGAN on one photograph, with zero padding, no padding, CSG and SPE, and 1.5 times as wide",
    "swd": "DCGAN or PGGAN on faces: padding, no padding and SPE by the sliced Wasserstein distance",
    "padinv": "inversion of faces in the latents and in padding space, interpolation, blending and editing",
    "mspie": "one generator trained at three sizes and asked for others: constant, CSG and SPE",
}
