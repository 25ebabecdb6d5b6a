"""The native op of epilogue2d: rows in two tensors, checks of its own, and every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from contract.common import each_dtype
from contract.epilogue2d import F4, answer
from tolerances import assert_close
from torch.nn import functional as F

from posgan_fast import _native
from posgan_fast import functional as PF


@each_dtype
@pytest.mark.parametrize("c", [1, 3, 16, 200])
def test_rows_in_two_tensors(c, dtype):
    """A transposed 3x3 convolution of stride 2, as two plain ones and the native op on even and odd rows."""
    generator = torch.manual_seed(6)
    x = torch.randn(2, 4, 5, 6, generator=generator)
    weight = torch.randn(4, c, 3, 3, generator=generator)
    whole = F.conv_transpose2d(x.double(), weight.double(), stride=2)  # [N, C, 11, 13]
    z = F.pad(whole, [0, 1]).to(dtype)  # an even width
    rows = z.permute(0, 2, 3, 1).reshape(2, 11, 7, 2 * c)  # [N, H, P, 2C]: pixel 2p + q is half q of pixel p
    even, odd = (t.contiguous().permute(0, 3, 1, 2) for t in (rows[:, ::2], rows[:, 1::2]))
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    scale, noise = torch.rand(2, c, generator=generator).to(acc) + 0.5, torch.randn(2, 1, 10, 12).to(acc)
    b, f = torch.randn(c, generator=generator).to(dtype), F4.to(acc)
    y = torch.empty(2, c, 10, 12, dtype=dtype, memory_format=torch.channels_last)
    PF.explain("epilogue2d", z)  # loads the library
    torch.ops.posgan_fast_native.epilogue2d(
        even, odd, f, scale, noise, b, None, y, 1, 1, 1, 1, 1, 1, False, 4.0, 3, 0.2, 2**0.5, -1.0
    )
    call = dict(f=F4, padding=(1, 0, 1, 1), filter_gain=4.0, scale=scale, noise=noise, b=b)
    assert_close(y, answer(z, "lrelu", **call), "epilogue2d", dtype)
    # one row: nothing is odd
    single = even[:, :, :1]
    y = torch.empty(2, c, 1, 13, dtype=dtype).contiguous(memory_format=torch.channels_last)
    torch.ops.posgan_fast_native.epilogue2d(
        single, odd[:, :, :0], f, scale, None, b, None, y, 1, 1, 1, 1, 1, 2, False, 4.0, 1, 0.0, 1.0, -1.0
    )
    call = dict(f=F4, padding=(1, 1, 2, 1), filter_gain=4.0, scale=scale, b=b)
    assert_close(y, answer(z[:, :, :1], **call), "epilogue2d", dtype)


@pytest.mark.parametrize(
    "change",
    [
        dict(odd=torch.zeros(1, 4, 2, 2)),
        dict(odd=torch.zeros(1, 4, 1, 2).double()),
        dict(x=torch.zeros(1, 2, 2, 2)),
        dict(f=None),
        dict(f=torch.zeros(4).half()),
        dict(scale=torch.zeros(1, 3)),
        dict(scale=torch.zeros(1, 2).double()),
        dict(noise=torch.zeros(1, 1, 3, 4)),
        dict(b=torch.zeros(4)[::2]),
        dict(post_scale=torch.zeros(1, 2)),
        dict(act=10),
        dict(y=torch.zeros(1, 2, 4, 4).half()),
    ],
    ids=lambda change: ",".join(change),
)
def test_the_native_op_guards_its_memory(change):
    PF.explain("epilogue2d", torch.zeros(1, 1, 1, 1))
    call = dict(
        x=torch.zeros(1, 4, 2, 2), odd=torch.zeros(1, 4, 1, 2), f=F4, scale=torch.zeros(1, 2),
        noise=torch.zeros(1, 1, 4, 5), b=torch.zeros(2), y=torch.zeros(1, 2, 4, 5), act=1,
    )  # fmt: skip
    formats = {key: torch.channels_last for key in ("x", "odd", "y")}

    def run(x, odd, f, scale, noise, b, y, act, post_scale=None):
        torch.ops.posgan_fast_native.epilogue2d(
            x, odd, f, scale, noise, b, post_scale, y, 1, 1, 1, 1, 2, 2, False, 1.0, act, 0.0, 1.0, -1.0
        )

    def placed(call):
        return {k: t.contiguous(memory_format=formats[k]) if k in formats else t for k, t in call.items()}

    run(**placed(call))
    with pytest.raises(RuntimeError, match="epilogue2d: "):
        run(**placed(call | change))


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_computes_the_same(instruction_set):
    code = """
        import torch
        from posgan_fast import functional as PF, _native
        g = torch.manual_seed(0)
        assert _native.load("cpu").loaded
        assert _native.instruction_set() == {name!r}, _native.instruction_set()
        bounds = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-14}
        for dtype, bound in bounds.items():
            for c in (5, 33, 80):
                x, b = (torch.randn(s, generator=g).to(dtype) for s in ((2, c, 9, 37), (c,)))
                scale = torch.rand(2, c, generator=g)
                f = torch.randn(4, generator=g)
                for mode in (dict(), dict(f=f, up=2, padding=3), dict(f=f, down=2, padding=3), dict(f=f, padding=3)):
                    for act in ("linear", "lrelu", "tanh", "elu", "softplus", "swish"):
                        for t in (x, x.contiguous(memory_format=torch.channels_last)):
                            size = PF.epilogue2d(t, **mode).shape[2:]
                            call = dict(mode, scale=scale, noise=torch.randn(2, 1, *size, generator=g), b=b, act=act)
                            y = PF.epilogue2d(t, **call, backend="cpu")
                            z = PF.epilogue2d(t.double(), **call, backend="reference")
                            assert (y.double() - z).norm() <= bound * z.norm(), (dtype, c, mode, act)
        print("equal")
    """
    if instruction_set not in _native.build_record()["cpu"]["instruction_sets"]:
        pytest.skip(f"{instruction_set} is not built for this processor family")
    environment = os.environ | {"POSGAN_FAST_ISA": instruction_set}
    code = textwrap.dedent(code).replace("{name!r}", repr(instruction_set))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "equal", result.stderr
