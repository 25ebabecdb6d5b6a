"""The Triton kernels, which import no ops, state the same numbers and rules as torch and the ops do."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton has no build for this platform")

from posgan_fast.kernels import bias_act

from posgan_fast.ops.common import activations


def test_constants_of_selu():
    v = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    scale, least = torch.nn.functional.selu(v).tolist()
    assert bias_act.SELU_SCALE.value == scale
    assert bias_act.SELU_SCALE.value * bias_act.SELU_ALPHA.value == -least


@pytest.mark.parametrize("alpha", [-0.3, -0.0, 0.0, 0.2])
@pytest.mark.parametrize("act", activations.ACTIVATIONS)
def test_slope_is_read_from_output(act, alpha):
    expected = activations.reads_output(act, alpha)
    assert bias_act.slope_is_read_from_output(act, alpha) == expected
