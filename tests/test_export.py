"""Own networks outside eager PyTorch: compiled, in ONNX Runtime, traced, saved; checks for test_capabilities.py."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import onnxruntime
import pytest
import torch
from capability_cases import NETWORKS, OPS, Network
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from posgan_fast import functional as PF
from posgan_fast import nn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"),
]
each_network = pytest.mark.parametrize("name", NETWORKS)


class Positional(torch.nn.Module):
    """A module without the keyword-only arguments that the ONNX path of jit cannot pass on."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs)


def exported(network: Network, module: torch.nn.Module) -> torch.export.ExportedProgram:
    """The module for batches of any number of groups."""
    batch = torch.export.Dim("groups", min=1, max=64) * network.group
    inputs = network.inputs(2)
    return torch.export.export(Positional(module), inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))


def kernels(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if str(node.target).startswith("posgan_fast.")}


def check_export(network: Network) -> None:
    """The kernels are in the graph until it is decomposed; both programs agree with the module for another batch."""
    module = network.module().requires_grad_(False)
    program = exported(network, module)
    decomposed = program.run_decompositions()
    assert kernels(program.graph) and not kernels(decomposed.graph)
    # torch.export takes a number that is not 1 in the example, such as that of groups, to be never 1.
    for groups in (1, 3) if network.group == 1 else (2, 3):
        inputs = network.inputs(groups)
        for either in (program, decomposed):
            close(either.module()(*inputs), module(*inputs), 1e-5)


def check_onnx(network: Network, path, dynamo: bool, trainable: bool = False) -> None:
    """ONNX Runtime agrees with the module for several sizes of the batch."""
    module, inputs = network.module().requires_grad_(trainable), network.inputs(2)
    if dynamo:
        batch = torch.export.Dim("groups", min=1, max=64) * network.group
        shapes = (tuple({0: batch} for _ in inputs),)
        torch.onnx.export(Positional(module).eval(), inputs, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        names = [f"x{i}" for i in range(len(inputs))]
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(Positional(module).eval(), inputs, path, dynamo=False, input_names=names, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path)
    for groups in (1, 2, 3):
        inputs = network.inputs(groups)
        feed = {given.name: t.numpy() for given, t in zip(session.get_inputs(), inputs, strict=True)}
        close(torch.from_numpy(session.run(None, feed)[0]), module(*inputs).detach(), 1e-4)


def check_trace(module: torch.nn.Module, example: tuple, other: tuple) -> None:
    """A trace has the right values for another batch."""
    with torch.no_grad():
        traced = torch.jit.trace(module, example)
        close(traced(*other), module(*other), 1e-5)


@each_network
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "jit"])
def test_onnx_runtime(name, dynamo, tmp_path):
    check_onnx(NETWORKS[name], tmp_path / "model.onnx", dynamo)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "jit"])
def test_onnx_runtime_of_a_module_that_still_trains(dynamo, tmp_path):
    check_onnx(NETWORKS["StyleConv"], tmp_path / "model.onnx", dynamo, trainable=True)


@each_network
def test_traces_of_networks(name):
    network = NETWORKS[name]
    check_trace(network.module(), network.inputs(2), network.inputs(3))


@pytest.mark.parametrize("name", OPS)
def test_traces_of_ops(name):
    case = OPS[name]
    other = tuple(-t for t in case.inputs)
    check_trace(case.function, case.inputs, other)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_compiled_code_keeps_the_kernels(mode, dynamic):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.graph)
        return make_boxed_func(graph.forward)

    def layer(x, styles):
        y = PF.modulated_conv2d(x, weight, styles, padding=1)
        return PF.bias_act(PF.upsample2d(y, taps), bias, act="swish")

    torch.compiler.reset()
    training = mode is torch.enable_grad
    weight, bias = torch.randn(4, 3, 3, 3, requires_grad=training), torch.zeros(4)
    taps = PF.setup_filter([1, 3, 3, 1])
    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), dynamic=dynamic)
    with mode():
        for n, size in ((2, 8), (3, 9)):
            x, styles = torch.randn(n, 3, size, size), torch.randn(n, 3)
            y = compiled(x, styles)
            close(y, layer(x, styles), 1e-5)
            if training:
                y.sum().backward()
    names = [{name.split(".")[1] for name in kernels(graph)} for graph in graphs]
    forward = (
        {"prologue2d", "epilogue2d", "upfirdn2d", "bias_act"}
        if training
        else {"modulated_conv2d", "upfirdn2d", "bias_act"}
    )
    assert forward in [found & forward for found in names], names
    if training:
        assert any("bias_act_grad" in found for found in names), names


def test_inductor_compiles_what_keeps_the_kernels():
    """A graph of kernels alone needs no C++ compiler; Inductor refused it while it listed them as decomposable."""
    torch.compiler.reset()
    x = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(lambda x: PF.bias_act(PF.upsample2d(x, torch.ones(4)), act="lrelu"))
    close(compiled(x), PF.bias_act(PF.upsample2d(x, torch.ones(4)), act="lrelu"), 1e-6)


def test_flops_of_a_style_layer_are_counted():
    layer = nn.StyleConv(64, 64, 32, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 64, 16, 16), torch.randn(1, 32))
    assert counter.get_total_flops() == 18_886_656


def test_programs_with_kernels_need_the_package_and_decomposed_ones_do_not(tmp_path):
    network = NETWORKS["StyleConv"]
    program = exported(network, network.module().requires_grad_(False))
    torch.export.save(program, tmp_path / "kernels.pt2")
    torch.export.save(program.run_decompositions(), tmp_path / "decomposed.pt2")
    code = """
        import sys, torch
        kernels, decomposed = sys.argv[1:]
        torch.export.load(decomposed)
        try:
            torch.export.load(kernels)
        except Exception:
            print("refused", "posgan_fast" in sys.modules)
        import posgan_fast
        torch.export.load(kernels)
        print("loaded")
    """
    files = (str(tmp_path / "kernels.pt2"), str(tmp_path / "decomposed.pt2"))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *files], capture_output=True, text=True)
    assert done.stdout == "refused False\nloaded\n" and "posgan_fast" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("decomposed", [False, True], ids=["kernels", "decomposed"])
def test_aot_inductor(decomposed, tmp_path):
    check_aot_inductor(NETWORKS["StyleConv"], tmp_path / "layer.pt2", decomposed)


def check_aot_inductor(network: Network, path, decomposed: bool) -> None:
    """A compiled package agrees with the module for another batch."""
    module = network.module().requires_grad_(False)
    program = exported(network, module)
    program = program.run_decompositions() if decomposed else program
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    inputs = network.inputs(3)
    close(torch._inductor.aoti_load_package(package)(*inputs), module(*inputs), 1e-5)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["bias_act", "StyleConv"])
def test_exported_programs_run_under_autocast(name):
    layers = {"bias_act": lambda: nn.BiasAct(3, act="lrelu"), "StyleConv": lambda: nn.StyleConv(3, 2, 5, 8)}
    net = Chain(torch.nn.Conv2d(4, 3, 3, padding=1), layers[name]()).eval().requires_grad_(False)
    inputs = (torch.randn(2, 4, 8, 8), torch.randn(2, 5)) if name == "StyleConv" else (torch.randn(2, 4, 8, 8),)
    program = torch.export.export(net, inputs).module()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(program(*inputs).float(), net(*inputs).float(), rtol=2e-2, atol=2e-2)


class Chain(torch.nn.Module):
    """A layer of torch, whose result autocast makes half precision, and one of ours."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, *rest):
        return self.second(self.first(x), *rest)


def test_ops_are_functionalised():
    x = torch.randn(1, 2, 4, 4)

    def run(x):
        y = PF.bias_act_(PF.upsample2d(x, PF.setup_filter([1, 3, 3, 1])) * 1, act="lrelu")
        return PF.prologue2d(y, padding=1, mode="reflect")

    torch.testing.assert_close(torch.func.functionalize(run)(x), run(x))

    def gradient(x):
        return torch.func.grad(lambda x: run(x).square().sum())(x)

    torch.testing.assert_close(torch.func.functionalize(gradient)(x), gradient(x))
