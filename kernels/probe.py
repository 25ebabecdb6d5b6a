"""A Triton kernel that does nothing of use, to find out whether Triton can compile on this machine."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def failure(device: torch.device) -> str | None:
    """Compile and launch a kernel; return why that fails, as it does without a C compiler, or None."""
    try:
        x = torch.zeros(1, device=device)
        with torch.cuda.device_of(x):
            _store[(1,)](x)
    except Exception as error:  # Triton's, its compiler's, the driver's: none of them may stop a layer
        return f"{type(error).__name__}: {error}"
    return None


@triton.jit
def _store(x):
    tl.store(x, 1.0)
