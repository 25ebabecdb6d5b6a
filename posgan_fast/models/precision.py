"""Half precision from a resolution on, as in NVlabs stylegan2-ada."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import backend
from ..ops.common import autocast, checks

HALF_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Precision(NamedTuple):
    """The dtypes of a network's features; the fields are arguments of ``Generator`` and ``Discriminator``."""

    num_fp16_res: int
    half_dtype: torch.dtype

    @classmethod
    def checked(cls, num_fp16_res: Any, half_dtype: Any) -> Precision:
        """Make the record from arguments of a user, or raise the error of the one that is wrong."""
        num_fp16_res = checks.integer(num_fp16_res, "num_fp16_res", minimum=0)
        dtype = HALF_DTYPES.get(half_dtype) if isinstance(half_dtype, str) else half_dtype
        if not isinstance(dtype, torch.dtype) or dtype not in HALF_DTYPES.values():
            error = ValueError if isinstance(half_dtype, (str, torch.dtype)) else TypeError
            expected = (*HALF_DTYPES, *HALF_DTYPES.values())
            raise error(f"half_dtype: expected one of {expected}, got {half_dtype!r}")
        return cls(num_fp16_res, dtype)

    def of_block(self, resolution: int, size: int) -> torch.dtype | None:
        """Return the dtype of the features at ``resolution`` in a network of ``size``.

        None, in networks without half precision: the dtype that the features come in.
        """
        if not self.num_fp16_res:
            return None
        above = size.bit_length() - resolution.bit_length()  # number of higher resolutions
        return self.half_dtype if above < self.num_fp16_res and resolution >= 8 else torch.float32

    def described(self) -> str:
        """Describe networks in half precision by their arguments."""
        return f", num_fp16_res={self.num_fp16_res}, half_dtype={self.half_dtype}" if self.num_fp16_res else ""


def as_in_block(x: torch.Tensor, dtype: torch.dtype | None, weight: torch.Tensor) -> torch.Tensor:
    """Return features in the ``dtype`` of the block that has ``weight``.

    float64 stays, in the features and in the network. Under autocast features stay too, because it decides for each op.
    On the CPU float32 takes the place of float16, in which no CPU is fast.
    """
    if dtype is None or torch.float64 in (x.dtype, weight.dtype) or autocast.is_enabled(x):
        return x
    if dtype == torch.float16 and x.device.type == "cpu":
        backend.note("blocks of float16 run in float32 on the CPU, which is slow in float16")
        dtype = torch.float32
    return x.to(dtype)


def to_full_precision(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; other dtypes stay."""
    return x.to(checks.arithmetic(x.dtype))
