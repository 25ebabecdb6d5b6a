"""Calls that torch records or transforms are left to the foreign code's own ops."""

from __future__ import annotations

import importlib
import io
import json
import sys
import warnings

import onnx
import pytest
import torch
from foreign import SCRIPTS, TAPS, hooked, is_ours
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck
from torch.nn import functional as F

import posgan_fast
from posgan_fast.integrations import gradfix


class Net(torch.nn.Module):
    def __init__(self, function, weight=None) -> None:
        super().__init__()
        self.function, self.weight = function, weight

    def forward(self, x):
        return self.function(x)


class Tagged(torch.Tensor):
    """A subclass, as distributed and quantised tensors are."""


def dual(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def fake(f, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shape = f(mode.from_tensor(x)).shape
    return torch.zeros(shape)


def exported(f, x, strict):
    program = torch.export.export(Net(f, WEIGHT), (x,), strict=strict)
    assert "posgan_fast" not in str(program.graph)
    return program.module()(x)


def saved(traced):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


WEIGHT = torch.nn.Parameter(torch.randn(2, 2, 3, 3))

# Each gives what its function gives without the hooks.
TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](f(x))[0],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda f, x: torch.vmap(f)(torch.stack((x, 2 * x))),
    "dual": dual,
    "forward-mode jacobian": lambda f, x: torch.autograd.functional.jacobian(
        f, x, strategy="forward-mode", vectorize=True
    ),
    "trace": lambda f, x: saved(torch.jit.trace(Net(f, WEIGHT), x))(x),
    "export": lambda f, x: exported(f, x, strict=False),
    "strict export": lambda f, x: exported(f, x, strict=True),
    "subclass": lambda f, x: f(x.as_subclass(Tagged)).as_subclass(torch.Tensor),
    "fake": fake,
}


def functions(package):
    """name -> (function of one image, the list its module keeps of calls or None)"""
    for folder in ("nv", "ros", "mmcv"):
        package(folder)
    nv_up, nv_act, nv_fma, nv_conv, nv_grid = (
        importlib.import_module(f"torch_utils.ops.{n}")
        for n in ("upfirdn2d", "bias_act", "fma", "conv2d_gradfix", "grid_sample_gradfix")
    )
    ros_act = importlib.import_module("op.fused_act")
    ros_conv = importlib.import_module("op.conv2d_gradfix")
    mm_act = importlib.import_module("mm.ops1.fused_bias_leakyrelu")
    mm_up1, mm_up2, mm_act2 = (
        importlib.import_module(f"mm.{n}") for n in ("ops1.upfirdn2d", "ops2.upfirdn2d", "ops2.bias_act")
    )
    nv_conv.enabled = True
    taps, b = TAPS, torch.randn(2)
    grid = torch.rand(1, 3, 3, 2) * 2.4 - 1.2
    return {
        "nv bias_act": (lambda x: nv_act.bias_act(x, b, act="swish"), nv_act.calls),
        "ros fused_leaky_relu": (lambda x: ros_act.fused_leaky_relu(x, b), None),
        "mmcv fused_bias_leakyrelu": (lambda x: mm_act.fused_bias_leakyrelu(x, b), mm_act.calls),
        "mmcv bias_act": (lambda x: mm_act2.bias_act(x, b, act="lrelu"), mm_act2.calls),
        "mmcv1 upfirdn2d": (lambda x: mm_up1.upfirdn2d(x, taps, 2, 1, (2, 1)), mm_up1.calls),
        "mmcv2 upfirdn2d": (lambda x: mm_up2.upfirdn2d(x, taps, 2, 1, [2, 1]), mm_up2.calls),
        "nv conv2d": (lambda x: nv_conv.conv2d(x, WEIGHT), None),
        "ros conv_transpose2d": (lambda x: ros_conv.conv_transpose2d(x, WEIGHT, stride=2), None),
        "fma": (lambda x: nv_fma.fma(x, x, x), None),
        "grid_sample": (lambda x: nv_grid.grid_sample(x, grid), None),
        "nv upfirdn2d": (lambda x: nv_up.upfirdn2d(x, taps, 1, 1, [2, 1, 2, 1]), nv_up.calls),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_own_op_serves_what_is_transformed(package, transform):
    x = torch.randn(1, 2, 4, 4)
    with posgan_fast.patch():
        found = {}
        for name, (function, calls) in functions(package).items():
            if calls is not None:
                calls.clear()
                function(x)
                assert calls == [], name  # ours serves the plain call
            if (transform, name) in WITHOUT or ("export" in transform and name not in EXPORTED):
                continue
            found[name] = TRANSFORMS[transform](function, x), function
            # Code that dynamo traces appends to no list; the graph was looked at instead.
            assert calls is None or calls or transform == "strict export", name
        hooked_results = {name: result for name, (result, _) in found.items()}
    for name, (_, function) in found.items():  # the hooks are gone, and the same lambdas reach the own functions
        expected = TRANSFORMS[transform](function, x)
        torch.testing.assert_close(hooked_results[name], expected, msg=lambda text, name=name: f"{name}: {text}")


EXPORTED = ("nv bias_act", "ros fused_leaky_relu", "nv conv2d")  # seconds each
# Torch's grid_sample has no forward-mode derivative.
WITHOUT = {(transform, "grid_sample") for transform in ("jacfwd", "jvp", "dual", "forward-mode jacobian")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_weight_that_needs_a_gradient_can_be_traced_and_checked(package):
    package("nv")
    with posgan_fast.patch() as report:
        module = importlib.import_module("torch_utils.ops.conv2d_gradfix")
        bias_act = importlib.import_module("torch_utils.ops.bias_act")
        module.enabled = True
        x = torch.randn(1, 2, 5, 5)
        layer = Net(lambda x: bias_act.bias_act(module.conv2d(x, WEIGHT), act="swish"), WEIGHT)

        assert "torch.jit._trace" not in str(report)
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = saved(torch.jit.trace(layer, x))
        torch.testing.assert_close(traced(x), layer(x))
        assert "torch.jit._trace" in str(report)  # the check ran the function itself, too, on its own ops
        traces = len(bias_act.calls)
        layer(x)
        assert traces >= 3 and len(bias_act.calls) == traces
    assert not is_ours(sys.modules["torch.jit._trace"]._check_trace)


@pytest.mark.filterwarnings("ignore")
def test_onnx_export(package):
    package("nv")
    with posgan_fast.patch():
        bias_act = importlib.import_module("torch_utils.ops.bias_act").bias_act
        conv2d_gradfix = importlib.import_module("torch_utils.ops.conv2d_gradfix")
        conv2d_gradfix.enabled = True
        net = Net(lambda x: bias_act(conv2d_gradfix.conv2d(x, WEIGHT), act="lrelu"), WEIGHT)
        for dynamo in (True, False):
            file = io.BytesIO()
            program = torch.onnx.export(net, (torch.randn(1, 2, 5, 5),), None if dynamo else file, dynamo=dynamo)
            model = program.model_proto if dynamo else onnx.load_from_string(file.getvalue())
            assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
            assert any(node.op_type == "Conv" for node in model.graph.node)


def test_code_without_a_cpu_path_is_recorded_in_plain_torch(package):
    package("forks")
    x, b = torch.randn(2, 3, 4), torch.randn(3)
    expected = F.leaky_relu(x + b[:, None], 0.2) * 2**0.5
    with posgan_fast.patch():
        fused_leaky_relu = importlib.import_module("compiled.fused_act").fused_leaky_relu
        torch.testing.assert_close(fused_leaky_relu(x, b), expected)
        for strict in (False, True):
            torch.testing.assert_close(exported(lambda x: fused_leaky_relu(x, b), x, strict), expected)
        torch.testing.assert_close(torch.vmap(fused_leaky_relu, (0, None))(x[:, None], b)[:, 0], expected)


def test_compiled_code_keeps_these_ops(package):
    package("nv")
    with posgan_fast.patch():
        module = importlib.import_module("torch_utils.ops.bias_act")
        x = torch.randn(2, 3)
        compiled = torch.compile(lambda x: module.bias_act(x, act="swish"), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), module.bias_act(x, act="swish", impl="ref"))
        assert module.calls == [("swish", "ref")]


def test_other_layouts_stay(package):
    package("nv")
    with posgan_fast.patch():
        bias_act = importlib.import_module("torch_utils.ops.bias_act")
        nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])
        assert bias_act.bias_act(nested, act="relu", gain=1).is_nested and len(bias_act.calls) == 1


def test_volumes_are_sampled_with_two_derivatives(nv):
    """StyleNeRF samples volumes through the module that samples images elsewhere."""
    volume = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    grid = (torch.rand(1, 2, 1, 3, 3, dtype=torch.float64) * 2.6 - 1.3).requires_grad_()
    grid_sample = nv("ops.grid_sample_gradfix").grid_sample
    torch.testing.assert_close(grid_sample(volume, grid), F.grid_sample(volume, grid, align_corners=False))
    torch.testing.assert_close(gradfix._gathered(volume, grid), F.grid_sample(volume, grid, align_corners=False))
    assert gradcheck(grid_sample, (volume, grid))
    assert torch.autograd.gradgradcheck(grid_sample, (volume, grid), fast_mode=True)


@pytest.mark.parametrize("peer", ["nvlabs", "rosinality"])
def test_networks_of_a_checkout(peers, missing_modules, peer):
    done = hooked("--quiet", SCRIPTS / "transforms_peer.py", path=(peers[peer], missing_modules[1]))
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) > 20 and not {name: text for name, text in outcomes.items() if text != "ok"}
