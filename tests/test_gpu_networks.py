"""Whole networks, a generator with padding maps and a discriminator, in three dtypes, against float64 on the device.

Values, gradients of everything, R1, and on a GPU the replay of CUDA graphs. The CPU runs what needs no GPU.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

import posgan_fast
from posgan_fast.models import Discriminator, Generator

SIZE, BATCH = 32, 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Relative L2 of values and of gradients. In float32 a vendor's convolutions by Winograd's algorithm round by several
# units, TF32 would by hundreds. A value that rounds across zero takes the other slope of the leaky ReLU: in
# float32 here and there, in half precision at every layer.
BOUNDS = {torch.float32: (1e-5, 5e-3), torch.float16: (2e-3, 0.15), torch.bfloat16: (1.5e-2, 0.3)}

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@each_device
@each_dtype
def test_generator(dtype, device):
    """Through mapping and synthesis, with maps around some layers and the noise of every layer."""
    network = _varied(Generator(SIZE, z_dim=32, w_dim=32, mapping_layers=2, channel_max=32)).to(device)
    z, maps = _generator_inputs(network, device)
    direction = _randn((BATCH, 3, SIZE, SIZE), 3, device)

    def run(network, z, maps):
        image = network(z, pad_maps=maps, noise_mode="const")
        used = [p for name, p in network.named_parameters() if name != "synthesis.b4.const"]  # a map takes its place
        given = [z, *(m for m in maps if m is not None), *used]
        return image, *_pooled(torch.autograd.grad((image * direction).sum(), given))

    actual, expected = _both(run, network, dtype, device, z, maps)
    _assert_close(actual, expected, dtype)


@each_device
@each_dtype
def test_discriminator(dtype, device):
    """Scores, their gradient in the image, and the gradients of both losses, R1 among them."""
    network = _varied(Discriminator(SIZE, channel_max=32)).to(device)
    image = _randn((BATCH, 3, SIZE, SIZE), 1, device)

    def run(network, image):
        scores = network(image)
        (slope,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
        loss = torch.nn.functional.softplus(-scores).sum() + slope.square().sum()
        return scores, slope, *_pooled(torch.autograd.grad(loss, list(network.parameters())))

    actual, expected = _both(run, network, dtype, device, image)
    _assert_close(actual, expected, dtype)


@pytest.mark.parametrize(
    "device, half",
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
    ],
)
def test_blocks_in_half_precision(device, half):
    """Images, scores and gradients are near those of float32, and finite where features saturate."""
    options = dict(channel_max=32, num_fp16_res=2, conv_clamp=256, half_dtype=half)
    generator = _varied(Generator(SIZE, z_dim=32, w_dim=32, mapping_layers=2, **options)).to(device)
    discriminator = _varied(Discriminator(SIZE, **options)).to(device)
    z, maps = _generator_inputs(generator, device)
    direction = _randn((BATCH, 3, SIZE, SIZE), 3, device)

    def run(force_fp32):
        image = generator(z, pad_maps=maps, noise_mode="const", force_fp32=force_fp32)
        real = image.detach().requires_grad_()
        scores = discriminator(real, force_fp32=force_fp32)
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        made = [p for name, p in generator.named_parameters() if name != "synthesis.b4.const"]
        judged = torch.autograd.grad(scores.sum() + slope.square().sum(), list(discriminator.parameters()))
        return image, scores, _pooled(torch.autograd.grad((image * direction).sum(), made)), _pooled(judged)

    values, gradients = BOUNDS[half]
    for i, (actual, expected) in enumerate(zip(run(False), run(True), strict=True)):
        actual, expected = (torch.cat([t.flatten() for t in x]) if i > 1 else x for x in (actual, expected))
        assert actual.dtype == torch.float32 and actual.isfinite().all()
        assert 0 < (actual - expected).norm() <= (gradients if i > 1 else values) * expected.norm()
    with torch.no_grad():
        generator.synthesis.b32.conv1.bias.fill_(1e6)
        assert generator(z).isfinite().all()


@pytest.mark.gpu
@each_dtype
def test_replay_of_a_cuda_graph(dtype):
    """A captured generator and discriminator follow latents and maps, as when they are called."""
    device = "cuda"
    generator = _varied(Generator(SIZE, z_dim=32, w_dim=32, mapping_layers=2, channel_max=32)).to(device)
    discriminator = _varied(Discriminator(SIZE, channel_max=32)).to(device)
    z, maps = _generator_inputs(generator, device)

    @torch.no_grad()
    def run():
        with _autocast(dtype, device):
            image = generator(z, pad_maps=maps, noise_mode="const")
            return image, discriminator(image)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # compiles, loads, and chooses algorithms
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for seed in (5, 6):
        for i, given in enumerate([z, *(m for m in maps if m is not None)]):
            given.copy_(_randn(given.shape, 10 * seed + i, device))
        graph.replay()
        for replayed, called in zip(captured, run(), strict=True):
            assert replayed.isfinite().all()
            error = (replayed.double() - called.double()).norm() / called.double().norm()
            assert error <= BOUNDS[dtype][0]  # algorithms chosen in a capture may be others


@pytest.mark.gpu
@each_dtype
def test_graphed(dtype):
    """One image as the network itself makes it, and each time a new one; weights count that are written in place."""
    device = "cuda"
    options = dict(num_fp16_res=2, conv_clamp=256, half_dtype=dtype) if dtype != torch.float32 else {}
    network = _varied(Generator(SIZE, z_dim=32, w_dim=32, mapping_layers=2, channel_max=32, **options)).to(device)

    def same(z, image):
        expected = network(z)
        return (image - expected).norm() <= BOUNDS[dtype][0] * expected.norm()  # algorithms of a capture may be others

    run = posgan_fast.graphed(network, 1)
    inputs = [_randn((1, 32), seed, device) for seed in (5, 6)]
    images = [run(z) for z in inputs]
    assert all(image.isfinite().all() and same(z, image) for z, image in zip(inputs, images, strict=True))
    assert torch.equal(run(inputs[0], copy=False), images[0]) and not torch.equal(*images)
    with torch.no_grad():
        network.synthesis.b32.torgb.bias.add_(1)
    assert same(inputs[0], run(inputs[0])) and not torch.equal(run(inputs[0]), images[0])
    old = run(inputs[0])
    network.synthesis.b32.torgb.bias.data = torch.zeros(3, device=device)
    fillers = [torch.full((3,), 1e6, device=device) for _ in range(1000)]  # one would lie where the bias was
    assert torch.equal(run(inputs[0]), old) and len(fillers) == 1000


@pytest.mark.gpu
def test_graphed_noise():
    network = _varied(Generator(SIZE, z_dim=32, w_dim=32, mapping_layers=2, channel_max=32)).to("cuda")
    z = _randn((1, 32), 5, "cuda")
    run = posgan_fast.graphed(network, z, noise_mode="random")
    torch.manual_seed(0)
    first, second = run(z), run(z)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(run(z), first)


@pytest.mark.gpu
def test_graphed_refuses_what_a_graph_cannot_hold():
    """Streams, random numbers and later captures work as before."""
    x = torch.randn(4, device="cuda")
    stream = torch.cuda.current_stream()
    for network in (lambda x: x * x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.ones(4).to("cuda")):
        with pytest.raises(RuntimeError, match="^network: expected one that only queues work on the GPU"):
            posgan_fast.graphed(network, x)
        assert torch.cuda.current_stream() == stream and torch.cuda.get_sync_debug_mode() == 0
        assert torch.randn(4, device="cuda").isfinite().all()
    with pytest.raises(ValueError, match=r"got network\.weight on cpu, batch\[0\] on cuda:0$"):
        posgan_fast.graphed(torch.nn.Linear(4, 4).eval(), x)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=side):
        y = x + 1
        with pytest.raises(RuntimeError, match="^network: expected no capture under way"):
            posgan_fast.graphed(torch.relu, x)
    graph.replay()
    assert torch.equal(y, x + 1) and torch.equal(posgan_fast.graphed(torch.relu, x)(x), x.relu())


def _both(run, network, dtype, device, *inputs):
    """The results of the network in a dtype, and in float64 by the definition."""
    wide = copy.deepcopy(network).double()
    with _autocast(dtype, device):
        actual = run(network, *_leaves(inputs, torch.float32))
    with posgan_fast.use_backend("reference"):
        expected = run(wide, *_leaves(inputs, torch.float64))
    return actual, expected


def _assert_close(actual, expected, dtype):
    """The value first, then the gradients."""
    values, gradients = BOUNDS[dtype]
    assert len(actual) == len(expected) > 10
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.isfinite().all()
        error = ((a.double() - e).norm() / e.norm()).item()
        assert error <= (gradients if i else values), f"result {i}, {tuple(a.shape)}: relative L2 {error:.1e}"


def _pooled(gradients):
    """Gradients of scalars, in which terms cancel, as one vector beside the others."""
    return [torch.stack([g for g in gradients if g.ndim == 0] or [gradients[0].sum()])] + [
        g for g in gradients if g.ndim
    ]


def _autocast(dtype, device):
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def _leaves(inputs, dtype):
    def leaf(t):
        return None if t is None else t.detach().to(dtype).requires_grad_()

    return [[leaf(t) for t in given] if isinstance(given, list) else leaf(given) for given in inputs]


def _generator_inputs(network, device):
    sizes = network.synthesis.pad_map_sizes()
    maps = [_randn((BATCH, *size), i, device) if i in (0, 1, 3, 4) else None for i, size in enumerate(sizes)]
    return _randn((BATCH, network.z_dim), 2, device), maps


def _varied(network):
    """Everything that starts at zero has a say."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        elif name.endswith("weight"):
            parameter.data = torch.randn(parameter.shape, generator=generator)
        if name == "b4.out.weight":
            parameter.data.abs_()  # or the scores are what is left of terms that cancel
    return network.eval()


def _randn(shape, seed, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
