"""An explicit opt-in that keeps freed memory in the process, where glibc would hand large blocks back to the kernel."""

from __future__ import annotations

import ctypes
import sys


def tune_allocator() -> bool:
    """Make glibc serve large tensors from memory the process keeps, for the rest of its life.

    A large CPU tensor is otherwise a fresh mapping whose pages fault on first touch, which costs more than most
    elementwise ops. The price: the process holds on to its peak memory. Equivalent to starting the program with
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 MALLOC_TOP_PAD_=268435456``.

    Returns:
        Whether the setting took effect: False where the C library has no ``mallopt`` (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in _SETTINGS])


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
