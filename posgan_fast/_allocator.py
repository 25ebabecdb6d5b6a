"""A setting of glibc, opt-in: freed memory stays in the process, where large blocks otherwise return to the kernel."""

from __future__ import annotations

import ctypes
import sys


def tune_allocator() -> bool:
    """Have glibc keep freed memory and reuse it for large tensors, for the rest of the process's life.

    By default glibc maps fresh memory for each large CPU tensor, and the page faults of its first use cost more than
    most elementwise ops. With this setting the process never shrinks below its peak memory. Starting the program with
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 MALLOC_TOP_PAD_=268435456`` has the same effect.

    Returns:
        Whether the setting took effect: False where the C library has no ``mallopt`` (macOS, Windows, musl).

    Example:
        >>> import posgan_fast
        >>> tuned = posgan_fast.tune_allocator()  # at the start of a program
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in _SETTINGS])


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
