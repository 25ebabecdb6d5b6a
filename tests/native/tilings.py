"""Filters, factors and tilings on which the FIR kernels are tried."""

from __future__ import annotations

import numpy as np

# threads, max_lanes, min_rows, max_rows, resident_threads
SMALL = (16, 8, 3, 13, 64)  # several tiles, segments and stages
TABLE = {"fir4": (128, 192, 16, 64, 1024), "narrow": (128, 32, 8, 32, 1024), "channels_last": (128, 16, 4, 64, 1024)}
FIR = np.array([1.0, 3.0, 3.0, 1.0]) / 8
FACTORS = (((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)))  # up, down
