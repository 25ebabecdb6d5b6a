"""The one tolerance table: relative L2 and maximum error against float64, per op and dtype.

The maximum is relative to the largest magnitude of the expected result. Half-precision rows are the rounding of the
result (2^-11 and 2^-8 relative, half an ulp) plus that of intermediate gradients; float32 rows hold the sums.
"""

from __future__ import annotations

import torch

TOLERANCES = {
    # (op, dtype): (relative L2, maximum)
    ("upfirdn2d", torch.float64): (1e-14, 1e-13),
    ("upfirdn2d", torch.float32): (1e-6, 1e-6),
    ("upfirdn2d", torch.float16): (5e-4, 5e-4),
    ("upfirdn2d", torch.bfloat16): (4e-3, 4e-3),
    ("bias_act", torch.float64): (1e-14, 1e-13),
    ("bias_act", torch.float32): (1e-6, 1e-6),
    ("bias_act", torch.float16): (1e-3, 1e-3),
    ("bias_act", torch.bfloat16): (6e-3, 8e-3),
    # Four roundings add up: of the activations, the weights, the convolution's result and the layer's.
    ("modulated_conv2d", torch.float64): (1e-14, 1e-13),
    ("modulated_conv2d", torch.float32): (1e-6, 1e-6),
    ("modulated_conv2d", torch.float16): (1e-3, 2e-3),
    ("modulated_conv2d", torch.bfloat16): (8e-3, 1.6e-2),
    # The same four roundings.
    ("conv2d", torch.float64): (1e-14, 1e-13),
    ("conv2d", torch.float32): (1e-6, 1e-6),
    ("conv2d", torch.float16): (1e-3, 2e-3),
    ("conv2d", torch.bfloat16): (8e-3, 1.6e-2),
    # modulated_conv2d and conv2d by Winograd's algorithm, whose transforms multiply rounding errors. 512 channels
    # measure 1.1e-6, a result of 290 is off by 2e-6 of the largest.
    ("winograd3x3", torch.float32): (2e-6, 4e-6),
    ("prologue2d", torch.float64): (1e-14, 1e-13),
    ("prologue2d", torch.float32): (1e-6, 1e-6),
    ("prologue2d", torch.float16): (5e-4, 5e-4),
    ("prologue2d", torch.bfloat16): (4e-3, 4e-3),
    ("epilogue2d", torch.float64): (1e-14, 1e-13),
    ("epilogue2d", torch.float32): (1e-6, 1e-6),
    ("epilogue2d", torch.float16): (1e-3, 1e-3),
    ("epilogue2d", torch.bfloat16): (6e-3, 8e-3),
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, op: str, dtype: torch.dtype) -> None:
    """Compare ``actual`` with the float64 ``expected`` under the row of (op, dtype)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == dtype, f"dtype {actual.dtype}, expected {dtype}"
    relative, maximum = TOLERANCES[op, dtype]
    error = actual.detach().double().cpu() - expected.double().cpu()
    scale = expected.double().abs().max().item() if expected.numel() else 0.0
    norm = expected.double().norm().item()
    assert error.norm().item() <= relative * norm + 1e-300, f"relative L2 {error.norm().item() / norm:.2e} > {relative}"
    assert error.numel() == 0 or error.abs().max().item() <= maximum * scale + 1e-300, (
        f"maximum {error.abs().max().item() / scale:.2e} of {scale:.2e} > {maximum}"
    )
