"""CUDA graphs of inference on a machine without a GPU: a stand-in records a capture's calls, and replays them.

The replay writes into the tensors of the capture, as a GPU does. ``test_gpu_networks.py`` has the real graphs.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import pytest
import torch
from test_models import generator, randn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import posgan_fast
from posgan_fast.models import PGGANGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder(TorchDispatchMode):
    def __init__(self, calls: list) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # The memory of now, which a parameter may change for another.
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))
        self.calls.append((function, args, kwargs, result))
        return result


class Graph:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def replay(self) -> None:
        assert self.calls
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # no view, not in place
                    old.copy_(new)


class Stream:
    def __init__(self, device: Any, log: list) -> None:
        self.log = log

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self, other))


class Cuda:
    """The part of torch.cuda that a capture takes."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.default = self.current = Stream("cpu", self.log)
        self.capturing, self.sync, self.random_numbers = False, 0, "usable"
        self.default_generators = {None: self}  # of the device "cpu", which has no index

    def Stream(self, device):
        return Stream(device, self.log)

    def current_stream(self, device=None):
        return self.current

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before
            self.log.append("left")

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        """As torch's: where the capture fails, its end raises too, the stream stays, random numbers wait."""
        before, self.current = self.current, stream
        self.capturing, self.random_numbers = True, "captured"
        try:
            with Recorder(graph.calls):
                yield
        except BaseException:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from None
        finally:
            self.capturing = False
        self.current, self.random_numbers = before, "usable"

    def is_current_stream_capturing(self):
        return self.capturing

    def get_sync_debug_mode(self):
        return self.sync

    def set_sync_debug_mode(self, mode):
        self.sync = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def clone_state(self):
        return self.random_numbers

    def graphsafe_set_state(self, state):
        self.random_numbers = state


@pytest.fixture
def cuda(monkeypatch):
    """Puts the stand-in in the place of torch.cuda, for tensors on the CPU."""
    standin = Cuda()
    names = [name for name in dir(Cuda) if not name.startswith("_") and hasattr(torch.cuda, name)]
    for name in names:
        monkeypatch.setattr(torch.cuda, name, getattr(standin, name))
    assert len(names) == 7
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "default_generators", standin.default_generators)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(importlib.import_module("posgan_fast.graphed"), "_DEVICE", "cpu")
    yield standin
    assert standin.current is standin.default and not standin.capturing and standin.sync == 0
    assert standin.random_numbers == "usable" and torch.is_autocast_cache_enabled()


class Branches(torch.nn.Module):
    """Two inputs, and results in every structure."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x, y, *, shift):
        self.calls += 1
        x.add_(0)  # in place, in the graph's own input
        return self.linear(x), [y * 2 + shift, (y.t(),)], {"x": x, "none": None}


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# Calls


@pytest.mark.parametrize("options", [{}, dict(architecture="resnet"), dict(head="spe", up_after_conv=True)])
def test_a_generator_follows_its_latents(cuda, options):
    G, example = generator(16, **options), randn(2, 8)
    run = posgan_fast.graphed(G, example, truncation_psi=0.7)
    inputs = [randn(2, 8, seed=seed) for seed in (3, 4)]
    results = [run(z) for z in inputs]
    for z, image in zip(inputs, results, strict=True):  # the first result is a copy
        near(image, G(z, truncation_psi=0.7))
        assert not image.requires_grad and torch.equal(example, randn(2, 8))
    shown = run(inputs[0], copy=False)
    assert torch.equal(shown, results[0])
    assert run(inputs[1], copy=False) is shown and torch.equal(shown, results[1])


def test_structures_of_results(cuda):
    network, shift = Branches().eval(), torch.ones(())
    x, y = randn(2, 3), randn(4, 5)
    run = posgan_fast.graphed(network, x, y, shift=shift, warmups=2)
    assert network.calls == 4  # two warm-ups, the rehearsal, the capture
    for seed in (5, 6):
        x, y = randn(2, 3, seed=seed), randn(4, 5, seed=seed)
        kept = x.clone()
        first, (second, (third,)), last = run(x, y)
        near(first, network.linear(x))
        near(second, y * 2 + shift)
        assert torch.equal(third, y.t()) and torch.equal(last["x"], x) and last["none"] is None
        assert torch.equal(x, kept) and last["x"] is not x
    shift.fill_(7)  # a tensor among the arguments is read where it lies
    near(run(x, y)[1][0], y * 2 + 7)
    assert network.calls == 7 - 3


def test_a_function(cuda):
    run = posgan_fast.graphed(lambda a, b: (a @ b, a.sum()), randn(2, 3), randn(3, 4))
    a, b = randn(2, 3, seed=8), randn(3, 4, seed=9)
    product, total = run(a, b)
    near(product, a @ b)
    near(total, a.sum())


def test_noise(cuda):
    G = generator(16)
    z = randn(2, 8)
    run = posgan_fast.graphed(G, z, noise_mode="random")
    assert not torch.equal(run(z), run(z))
    run = posgan_fast.graphed(G, z)  # constant in evaluation mode
    assert torch.equal(run(z), run(z))


def test_weights(cuda):
    """What is written in place counts; a tensor that replaces another does not, and the old one is kept."""
    G, other = generator(16), generator(16, channel_max=8)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    z = randn(2, 8)
    run = posgan_fast.graphed(G, z)
    before = run(z)
    G.load_state_dict(other.state_dict())
    near(run(z), other(z))
    assert not torch.allclose(run(z), before, rtol=1e-2)
    read = {p.data_ptr() for p in G.parameters()}
    for p in G.parameters():
        p.data = torch.zeros_like(p)
    assert read <= {kept.data_ptr() for kept in run._read[1]}
    G.load_state_dict({k: torch.zeros_like(v) for k, v in other.state_dict().items()}, assign=True)
    near(run(z), other(z))


def test_a_list_of_tensors_that_changes(cuda):
    """A tensor that leaves the caller's list stays in the graph."""
    parts = [randn(2), randn(2, seed=3)]
    run = posgan_fast.graphed(lambda x, parts: x + parts[0] + parts[1], randn(2), parts=parts)
    expected, address = run(torch.ones(2)), parts[0].data_ptr()
    parts[0] = torch.zeros(2)
    assert torch.equal(run(torch.ones(2)), expected)
    assert address in {kept.data_ptr() for kept in run._read[1]}


@pytest.mark.parametrize("c_dim", [0, 3])
def test_a_number_of_samples(cuda, c_dim):
    G = generator(16, c_dim=c_dim)
    for network in (G, torch.compile(G, backend="eager")):
        if network is not G and c_dim:
            continue
        run = posgan_fast.graphed(network, 3)
        inputs = (randn(3, 8), torch.eye(3)) if c_dim else (randn(3, 8),)
        near(run(*inputs), G(*inputs))
        with pytest.raises(ValueError, match=rf"^batch: expected {len(inputs)} tensors, as captured, got 0"):
            run()


def test_autocast_is_that_of_the_capture(cuda):
    G, z = generator(16), randn(2, 8)
    linear, x = torch.nn.Linear(4, 4).eval(), randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = G(z), linear(x)
        run, run_linear = posgan_fast.graphed(G, z), posgan_fast.graphed(linear, x)
    assert (run(z) - expected[0]).norm() <= 1.5e-2 * expected[0].norm() and not torch.allclose(run(z), G(z), atol=1e-4)
    assert torch.equal(run_linear(x), expected[1]) and run_linear(x).dtype == torch.bfloat16
    with torch.no_grad():
        linear.weight.zero_()  # the graph casts it, where autocast has kept it from the call
    assert torch.equal(run_linear(x)[0], run_linear(x)[1])


def test_inference_mode(cuda):
    G = generator(16)
    with torch.inference_mode():
        z = randn(2, 8)
        run = posgan_fast.graphed(G, z)
        image = run(z)
    z = randn(2, 8, seed=3)
    near(run(z), G(z))
    assert image.is_inference()
    with torch.no_grad():  # where nothing could be lost
        near(run(z.requires_grad_()), G(z))


def test_streams(cuda):
    """The warm-ups follow what the caller queued, and the caller's stream follows them."""
    streams = []

    def network(x):
        streams.append(cuda.current)
        return x * 2

    posgan_fast.graphed(network, randn(2), warmups=2)
    (side,) = set(streams)
    assert side is not cuda.default and len(streams) == 4
    assert cuda.log == [(side, cuda.default), "left", (cuda.default, side)]


# Refusals


def refused(kind, match, network, *batch, **arguments):
    with pytest.raises(kind, match=match) as caught:
        posgan_fast.graphed(network, *batch, **arguments)
    return caught.value


def test_the_cpu_is_refused():
    where = "^network and batch: expected all tensors on one CUDA device, got "
    z = randn(2, 8)
    refused(ValueError, where + r"network\.\S+ on cpu", generator(16), z)
    refused(ValueError, where + r"batch\[0\] on cpu", torch.relu, z)
    refused(ValueError, where + r"network\.\S+ on cpu", generator(16), 2)
    refused(ValueError, where + r"batch\[0\] on cpu, maps\[1\] on meta", torch.relu, z, maps=[None, z.to("meta")])
    refused(ValueError, where + "no tensor at all", torch.relu)
    if not torch.cuda.is_available():
        refused(ValueError, "; torch finds no CUDA device here$", torch.relu, z)


def test_wrong_arguments(cuda):
    G, z = generator(16), randn(2, 8)
    refused(TypeError, "^network: expected a module or a function, got int", 3, z)
    refused(TypeError, r"^batch\[1\]: expected a torch.Tensor, got list", G, z, [z])
    refused(TypeError, r"^batch\[1\]: expected a torch.Tensor, got int", G, z, 2)
    refused(TypeError, r"^batch\[1\]: expected no input beside batch\[0\], a number of samples, .* got int$", G, 1, 2)
    for value in (True, [z], None, "2", 2.0):
        refused(TypeError, r"^batch\[0\]: expected a torch.Tensor, or a number of samples, got \w+", G, value)
    refused(TypeError, r"^batch\[0\]: expected a torch.Tensor, as network is no Generator", torch.relu, 2)
    refused(TypeError, r"^batch\[0\]: expected a torch.Tensor, as network is", PGGANGenerator(8).eval(), 2)
    refused(ValueError, r"^batch\[0\]: expected an int >= 1, got 0", G, 0)
    refused(ValueError, "^warmups: expected an int >= 1, got 0", G, z, warmups=0)
    refused(TypeError, "^warmups: expected an int, got float", G, z, warmups=1.0)
    refused(ValueError, r"^batch\[0\]: expected no requires_grad", G, z.clone().requires_grad_())
    maps = [None, z.clone().requires_grad_()]
    refused(ValueError, r"^pad_maps\[1\]: expected no requires_grad", G, z, pad_maps=maps)
    refused(ValueError, "got .* on cpu, noises on meta", G, z, noises=z.to("meta"))
    refused(TypeError, "^scale: expected an int", G, z, scale="2")  # of the network itself


def test_training_mode_is_refused(cuda):
    G = generator(16)
    refused(ValueError, "^network: expected evaluation mode, network.eval.., got network in", G.train(), randn(2, 8))
    G.eval().synthesis.b16.conv1.train()
    refused(ValueError, r"got network\.synthesis\.b16\.conv1 in training mode", G, randn(2, 8))


def test_wrong_results(cuda):
    x = randn(2)
    refused(TypeError, "^network: expected a result of tensors in tuples, .* got a int in it", lambda x: (x, 3), x)
    refused(TypeError, "got a set in it", lambda x: {x}, x)
    refused(ValueError, "^network: expected results on cpu, got one on meta", lambda x: x.to("meta"), x)


def test_wrong_calls(cuda):
    z = randn(2, 8)
    run = posgan_fast.graphed(generator(16), z)
    expected = run(z)
    for kind, match, batch in (
        (ValueError, "^batch: expected 1 tensors, as captured, got 0", ()),
        (ValueError, "^batch: expected 1 tensors, as captured, got 2", (z, z)),
        (TypeError, r"^batch\[0\]: expected a torch.Tensor, got int", (2,)),
        (ValueError, r"^batch\[0\]: expected shape \(2, 8\), as captured, got \(1, 8\)", (z[:1],)),
        (TypeError, r"^batch\[0\]: expected dtype torch.float32, as captured, got torch.float64", (z.double(),)),
        (ValueError, r"^batch\[0\]: expected device cpu like the graph, got meta", (z.to("meta"),)),
        (ValueError, r"^batch\[0\]: expected no requires_grad", (z.clone().requires_grad_(),)),
    ):
        with pytest.raises(kind, match=match):
            run(*batch)
    with pytest.raises(TypeError, match="^copy: expected a bool, got int"):
        run(z, copy=1)
    assert torch.equal(run(z), expected)


# Captures that fail; the fixture then looks whether streams, random numbers and torch's modes are as before


def test_a_network_that_waits_for_the_gpu(cuda):
    """The rehearsal tells, at the line that waits, and no capture begins."""
    torch_says = RuntimeError("called a synchronizing CUDA operation\nand more")

    def network(x):
        assert not cuda.capturing
        if cuda.sync == 2:
            raise torch_says
        return x * 2

    error = refused(RuntimeError, "^network: expected one that only queues work on the GPU", network, randn(2))
    assert error.__cause__ is torch_says and str(error).endswith("torch says: called a synchronizing CUDA operation")


def test_a_capture_that_fails(cuda):
    def network(x):
        if cuda.capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return x * 2

    error = refused(RuntimeError, "torch says: CUDA error: operation failed due to a previous", network, randn(2))
    assert isinstance(error.__cause__, RuntimeError)
    assert cuda.current is cuda.default and cuda.random_numbers == "usable"
    assert cuda.log[1] == "left" and cuda.log[2][0] is cuda.default
    assert posgan_fast.graphed(torch.relu, randn(2))(torch.ones(2)).tolist() == [1, 1]


def test_errors_of_the_network_and_of_memory_pass(cuda):
    def out_of_memory(x):
        if cuda.sync == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    refused(torch.OutOfMemoryError, "^CUDA out of memory", out_of_memory, randn(2))
    refused(RuntimeError, "^mat1 and mat2", lambda x: x[None] @ x[None], randn(2))


def test_another_capture_is_refused(cuda):
    cuda.capturing = True
    refused(RuntimeError, "^network: expected no capture under way on the current stream", torch.relu, randn(2))
    cuda.capturing = False
