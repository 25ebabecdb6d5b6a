"""PadInv's encoder: its state, its values against plain torch, and the generators that read it.

For ``pad_layers`` = p it makes maps of side 2^(p+1) + 2 at the indices 0 and 1, 3, ... 2p - 1 of the generator's list;
published: p = 4, side 34, 18 latents for 1024 pixels.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from test_singan import lively
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from posgan_fast import functional as PF
from posgan_fast.models import (
    Generator,
    PadInvEncoder,
)

pytestmark = pytest.mark.usefixtures("one_thread")

INDICES = (0, 1, 3, 5, 7)
NEEDED = {0: 4, 1: 6, 3: 10, 5: 18, 7: 34}  # sides of what is read: the constant, and rings around 4, 8, 16, 32
OFFSETS = {0: 15, 1: 14, 3: 12, 5: 8, 7: 0}  # of their centre crops in 34 x 34
SIDE, N = 34, 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def encoder(size=32, **arguments) -> PadInvEncoder:
    """A small encoder, all of whose tensors show in its codes."""
    settings = dict(num_ws=4, levels=(1, 1, 2), width=8, w_dim=16, pad_layers=2) | arguments
    return lively(PadInvEncoder(size, **settings))


def tiny(size=32, **arguments) -> PadInvEncoder:
    return encoder(size, width=2, w_dim=4, **arguments)


@functools.cache
def shared() -> PadInvEncoder:
    """One for tests that change nothing of it."""
    return tiny()


def images(n=2, size=32, **kwargs) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1), **kwargs) * 2 - 1


class Oracle:
    """The encoder as SPEC B2 describes it, from the state alone; what the state does not tell are arguments."""

    def __init__(self, state, pad_layers: int, training: bool = False) -> None:
        self.state, self.pad_layers, self.training = state, pad_layers, training

    def __call__(self, x):
        """Return latents [N, num_ws, w_dim], and whole maps by index."""
        s = self.state
        x = F.prelu(
            self.bn(F.conv2d(x, s["input_layer.0.weight"], padding=1), "input_layer.1"), s["input_layer.2.weight"]
        )
        stages = []
        for stage in range(4):
            for block in range(self.count(f"backbone_stages.{stage}.{{}}.res_layer.1.weight")):
                x = self.block(x, f"backbone_stages.{stage}.{block}", 1 if block else 2)
            stages.append(x)
        smallest = stages[3]
        middle = self.lateral(stages[2], smallest, 1)
        features = [smallest, middle, self.lateral(stages[1], middle, 0)]
        ws = torch.stack([self.latent(features, k) for k in range(self.count("latent_heads.{}.linear.weight"))], dim=1)
        return ws + s["latent_average"], self.maps(features)

    def maps(self, features):
        s = self.state
        if "padding_projection.weight" in s:  # of features with the side of the last layer, where 256 pixels have them
            x = features[{1: 0, 2: 0, 3: 0, 4: 1, 5: 2}[self.pad_layers]]
            x = F.conv2d(x, s["padding_projection.weight"], s["padding_projection.bias"])
        elif blocks := self.count("padding_extractor.{}.res_layer.1.weight"):
            x = features[1]
            for block in range(blocks):
                x = self.block(x, f"padding_extractor.{block}", 1)
        else:
            return {}
        side = {1: 6, 2: 10, 3: 18, 4: 34, 5: 66}[self.pad_layers]
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=True)
        maps = {0: x} | {2 * k + 1: x for k in range(self.pad_layers)}
        for k in range(self.count("padding_modulation_heads.{}.weight")):
            name = f"padding_modulation_heads.{k}"
            maps[2 * k + 1] = F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"])
        return maps

    def count(self, name):
        return next(k for k in range(99) if name.format(k) not in self.state)

    def bn(self, x, name):
        mean, var, weight, bias = (self.state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, self.training, 0.1, 1e-5)

    def block(self, x, name, stride):
        s = self.state
        y = F.conv2d(self.bn(x, f"{name}.res_layer.0"), s[f"{name}.res_layer.1.weight"], padding=1)
        y = F.conv2d(
            F.prelu(y, s[f"{name}.res_layer.2.weight"]), s[f"{name}.res_layer.3.weight"], stride=stride, padding=1
        )
        y = self.bn(y, f"{name}.res_layer.4")
        excited = F.relu(F.conv2d(F.adaptive_avg_pool2d(y, 1), s[f"{name}.res_layer.5.fc1.weight"]))
        y = y * torch.sigmoid(F.conv2d(excited, s[f"{name}.res_layer.5.fc2.weight"]))
        if f"{name}.shortcut_layer.0.weight" not in s:
            return y + F.max_pool2d(x, 1, stride)
        x = F.conv2d(x, s[f"{name}.shortcut_layer.0.weight"], stride=stride)
        return y + self.bn(x, f"{name}.shortcut_layer.1")

    def lateral(self, x, above, k):
        x = F.conv2d(x, *(self.state[f"fpn.lateral_layers.{k}.{part}"] for part in ("weight", "bias")))
        return x + F.interpolate(above, scale_factor=2, mode="bilinear", align_corners=True)

    def latent(self, features, k):
        s, name = self.state, f"latent_heads.{k}"
        convs = sum(f"{name}.convs.{i}.weight" in s for i in range(99))
        (x,) = (x for x in features if x.shape[2] == 2**convs)
        for i in range(convs):
            x = F.conv2d(x, s[f"{name}.convs.{2 * i}.weight"], s[f"{name}.convs.{2 * i}.bias"], stride=2, padding=1)
            x = F.leaky_relu(x, 0.01)
        weight = s[f"{name}.linear.weight"]
        return x.flatten(1) @ (weight / weight.shape[1] ** 0.5).T + s[f"{name}.linear.bias"]


def crop(whole, side):
    """The centre of a map, offsets rounded down."""
    y = (whole.shape[2] - side) // 2
    return whole[:, :, y : y + side, y : y + side]


def ring(whole, side):
    """Top and bottom row with their corners, left and right column, around the centre."""
    x = crop(whole, side + 2)
    return torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]], dim=2)


def close(ours, theirs, bound=1e-10):
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * float(theirs.detach().abs().max()))


def close_codes(ours, theirs, bound=1e-5):
    """Latents and maps of two ways through the same network in float32."""
    close(ours[0], theirs[0], bound)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a is b is None or close(a, b, bound) is None


def compare(codes, oracle, bound=1e-10, rings=True):
    """Latents, and maps or what the generator reads of them."""
    (ws, maps), (expected, whole) = codes, oracle
    close(ws, expected, bound)
    assert (maps is None) == (not whole)
    for index, ours in enumerate(maps or ()):
        assert (ours is not None) == (index in whole)
        if ours is not None and not rings:
            close(ours, whole[index], bound)
        elif ours is not None:
            close(ours, crop(whole[0], 4) if index == 0 else ring(whole[index], 4 * 2 ** (index // 2)), bound)


def test_the_default_state_has_the_names_and_shapes_of_the_released_files():
    expected: dict[str, tuple[int, ...]] = {"latent_average": (18, 512)}  # the released files have it elsewhere

    def norm(name, channels):
        expected.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        expected[f"{name}.num_batches_tracked"] = ()

    def block(name, into, out):
        norm(f"{name}.res_layer.0", into)
        expected[f"{name}.res_layer.1.weight"] = (out, into, 3, 3)
        expected[f"{name}.res_layer.2.weight"] = (out,)
        expected[f"{name}.res_layer.3.weight"] = (out, out, 3, 3)
        norm(f"{name}.res_layer.4", out)
        expected[f"{name}.res_layer.5.fc1.weight"] = (out // 16, out, 1, 1)
        expected[f"{name}.res_layer.5.fc2.weight"] = (out, out // 16, 1, 1)

    expected["input_layer.0.weight"] = (64, 3, 3, 3)
    norm("input_layer.1", 64)
    expected["input_layer.2.weight"] = (64,)
    for s, (blocks, into, out) in enumerate([(3, 64, 64), (4, 64, 128), (14, 128, 256), (3, 256, 512)]):
        for k in range(blocks):
            block(f"backbone_stages.{s}.{k}", out if k else into, out)
        if s:
            expected[f"backbone_stages.{s}.0.shortcut_layer.0.weight"] = (out, into, 1, 1)
            norm(f"backbone_stages.{s}.0.shortcut_layer.1", out)
    for k, channels in enumerate((128, 256)):
        expected[f"fpn.lateral_layers.{k}.weight"] = (512, channels, 1, 1)
        expected[f"fpn.lateral_layers.{k}.bias"] = (512,)
    for k in range(2):
        block(f"padding_extractor.{k}", 512, 512)
    for k in range(4):
        expected[f"padding_modulation_heads.{k}.weight"] = (512, 512, 1, 1)
        expected[f"padding_modulation_heads.{k}.bias"] = (512,)
    for head in range(18):
        for index in (0, 2, 4, 6, *((8,) if head > 2 else ()), *((10,) if head > 6 else ())):
            expected[f"latent_heads.{head}.convs.{index}.weight"] = (512, 512, 3, 3)
            expected[f"latent_heads.{head}.convs.{index}.bias"] = (512,)
        expected[f"latent_heads.{head}.linear.weight"] = (512, 512)
        expected[f"latent_heads.{head}.linear.bias"] = (512,)
    with torch.device("meta"):
        network = PadInvEncoder()
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert network.extra_repr() == "size=256, num_ws=18, padding='heads'"


VALUES = [
    ("heads", 32, 2), ("heads", 64, 4), ("heads", 32, 5), ("shared", 32, 1), ("shared", 64, 3),
    *(("projection", 32, layers) for layers in range(1, 6)), ("projection", 64, 4), (None, 32, 4), (None, 64, 2),
]  # fmt: skip


@pytest.mark.parametrize("padding, size, layers", VALUES)
def test_latents_and_maps_are_those_of_plain_torch(padding, size, layers):
    channels = [40, 24, 8, 16, 32][:layers] if padding == "heads" else None
    network = encoder(size, padding=padding, pad_layers=layers, pad_channels=channels).double()
    x = images(size=size, dtype=torch.float64)
    with torch.no_grad():
        expected = Oracle(network.state_dict(), layers)(x)
        compare(network(x), expected)
        compare(network(x, rings=False), expected, rings=False)
        assert network.pad_sides() == [4, 8, 16, 32, 64][:layers]
        if padding is not None:
            network.pad_constant = False
            maps = network(x)[1]
            assert maps[0] is None and len(maps) == 2 * layers


@pytest.mark.parametrize("padding", ["heads", "shared", "projection"])
def test_rings_are_those_of_whole_maps(padding):
    network = encoder(padding=padding, pad_layers=5)
    with torch.no_grad():
        rings, whole = network(images())[1], network(images(), rings=False)[1]
    assert torch.equal(rings[0], crop(whole[0], 4))
    for k, side in enumerate((4, 8, 16, 32, 64)):
        ring = rings[2 * k + 1]
        assert ring.shape == (2, 64, 4 * side + 4) and whole[2 * k + 1].shape == (2, 64, 66, 66)
        close(ring, PF.ring_from_map(whole[2 * k + 1], side, side), 1e-5)
        assert rings[2 * k] is whole[2 * k] is None or k == 0


def test_num_ws_asks_for_the_first_latents_only():
    network = encoder()
    with torch.no_grad():
        ws, maps = network(images())
        for count in (1, 2, 4):
            some, same = network(images(), num_ws=count)
            assert torch.equal(some, ws[:, :count])
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(maps, same, strict=True))


@pytest.mark.parametrize("padding", ["heads", "shared", "projection", None])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients_are_those_of_plain_torch(padding, training):
    """Train mode normalises by the batch, and moves the running averages."""
    network = encoder(padding=padding).double().train(training)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    leaves = {name: state[name].requires_grad_() for name, _ in network.named_parameters()}
    x, y = (images(4, dtype=torch.float64).requires_grad_() for _ in range(2))
    rand = torch.Generator().manual_seed(2)
    codes, expected = network(x, rings=False), Oracle(state, 2, training)(y)
    compare(codes, expected, 1e-9, rings=False)
    losses = []
    for ws, maps in (codes, (expected[0], [expected[1][k] for k in (0, 1, 3)] if padding else None)):
        rand.manual_seed(2)
        tensors = [ws, *(m for m in maps or () if m is not None)]
        losses.append(sum((t * torch.randn(t.shape, generator=rand, dtype=t.dtype)).sum() for t in tensors))
    for loss in losses:
        loss.backward()
    grads = {name: (p.grad, leaves[name].grad) for name, p in network.named_parameters()} | {"images": (x.grad, y.grad)}
    largest = max(theirs.norm() for _, theirs in grads.values())
    for name, (ours, theirs) in grads.items():
        # A ReLU may keep the only channel of an excitation at 0, and in training a normalisation takes off what a
        # bias ahead of it adds: such gradients are zero up to rounding.
        assert theirs.norm() > 0 or ".5.fc" in name
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm() + 1e-13 * largest, name
    for name, value in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, state[name], rtol=1e-10, atol=1e-12)


def test_gradients_of_rings_are_those_of_whole_maps():
    network = encoder().double()
    weights = [torch.randn(2, 64, 4 * side + 4, dtype=torch.float64) for side in (4, 8)]
    grads = []
    for rings in (True, False):
        maps = network(images(dtype=torch.float64), rings=rings)[1]
        found = [maps[k] if rings else PF.ring_from_map(maps[k], side, side) for k, side in ((1, 4), (3, 8))]
        loss = sum((ring * weight).sum() for ring, weight in zip(found, weights, strict=True))
        parameters = [
            p for name, p in network.named_parameters() if name.startswith(("padding", "input", "fpn.lateral_layers.1"))
        ]
        grads.append(torch.autograd.grad(loss, parameters))
    for ours, theirs in zip(*grads, strict=True):
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
    assert all(grad.norm() > 0 for grad in grads[0])


def small_generator(size, **arguments):
    settings = dict(z_dim=16, w_dim=16, channel_max=32, mapping_layers=1) | arguments
    network = lively(Generator(size, **settings))
    return network.requires_grad_(False)


@pytest.mark.parametrize("size, layers", [(8, 1), (16, 2), (32, 3), (64, 4)])
def test_a_generator_reads_all_codes_and_maps_of_the_encoder_made_for_it(size, layers):
    network = small_generator(size)
    made = lively(PadInvEncoder.for_generator(network, 32)).requires_grad_(False)
    assert made.pad_layers == layers and made.num_ws == network.num_ws and made.w_dim == 16
    ws, maps = made(images())
    image = network.synthesis(ws, maps, "const")
    assert image.shape == (2, 3, size, size) and image.std() > 0.01
    torch.testing.assert_close(network.synthesis(ws, made(images(), rings=False)[1], "const"), image, rtol=0, atol=1e-4)
    for k in range(network.num_ws):
        other = ws.clone()
        other[:, k] += 1
        assert not torch.equal(network.synthesis(other, maps, "const"), image)
    for k in (0, *range(1, 2 * layers, 2)):
        assert not torch.equal(
            network.synthesis(ws, [m if i != k else None for i, m in enumerate(maps)], "const"), image
        )


def test_maps_have_the_channels_of_the_sides_that_they_surround():
    """256 / r channels at side r, at most 64."""
    network = small_generator(64, channel_multiplier=256 / 16384, channel_max=64)
    made = PadInvEncoder.for_generator(network, 32).eval().requires_grad_(False)
    assert (made.channels, made.pad_layers) == (64, 4)
    ws, maps = made(images())
    assert [m.shape[1] for m in maps if m is not None] == [64, 64, 32, 16, 8]
    assert network.synthesis(ws, maps, "const").shape == (2, 3, 64, 64)
    for padding in ("shared", "projection"):
        made = PadInvEncoder.for_generator(network, 32, padding=padding, pad_layers=1).eval().requires_grad_(False)
        ws, maps = made(images())
        assert network.synthesis(ws, maps, "const").shape == (2, 3, 64, 64)
    made = PadInvEncoder.for_generator(network, 32, padding=None, depth=50).eval().requires_grad_(False)
    ws, maps = made(images())
    assert maps is None and network.synthesis(ws, maps, "const").shape == (2, 3, 64, 64)


def test_a_generator_of_256_pixels_reads_the_first_14_of_18_latents():
    network = small_generator(256, channel_max=16)
    made = lively(PadInvEncoder.for_generator(network, 32, num_ws=18)).requires_grad_(False)
    assert network.num_ws == 14 and made.num_ws == 18 and made.levels == (3, 4, 11)
    ws, maps = made(images(1), num_ws=network.num_ws)
    assert torch.equal(ws, made(images(1))[0][:, :14])
    assert network.synthesis(ws, maps, "const").shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match=r"^ws: expected shape \[N, 14, 16\], got \(1, 18, 16\)"):
        network.synthesis(*made(images(1)), "const")


def test_the_average_latent_is_added_and_comes_from_a_generator_a_tensor_or_a_state():
    network = encoder()
    source = small_generator(8)
    with torch.no_grad():
        network.set_latent_average(torch.zeros(16))
        plain = network(images())[0]
        network.set_latent_average(source)
        assert torch.equal(network.latent_average, source.mapping.w_avg.expand(4, 16))
        torch.testing.assert_close(network(images())[0], plain + source.mapping.w_avg)
        each = torch.randn(4, 16)
        network.set_latent_average(each)
        torch.testing.assert_close(network(images())[0], plain + each)
        other = encoder()
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(images())[0], network(images())[0])
    made = PadInvEncoder.for_generator(source, 32)
    assert torch.equal(made.latent_average, source.mapping.w_avg.expand(made.num_ws, 16))


def test_autocast_keeps_codes_within_the_precision_of_bfloat16():
    """Each of the 24 blocks rounds a few times by up to 2^-9; independent errors of that size add up to a few
    hundredths in relative L2. A lower bound shows that autocast had an effect."""
    network, x = encoder(), images(4)
    with torch.no_grad():
        expected, maps = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            ws, half = network(x)
    for ours, theirs in ((ws, expected), *((half[k], maps[k]) for k in (0, 1, 3))):
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert 1e-4 < error < 0.05


def shortened() -> PadInvEncoder:
    """One block for each stage: the others are alike, and tracing each takes time."""
    network = encoder(extractor_depth=1)
    for stage in network.backbone_stages:
        del stage[1:]
    return network


def test_one_graph_without_breaks_computes_the_codes():
    network, x = shortened(), images()
    with torch.no_grad():
        ws, maps = network(x)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    close_codes(compiled, (ws, maps))


def test_an_exported_program_takes_batches_of_any_size():
    network = shortened().requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},)).module()
    for n in (1, 2, 5):
        close_codes(program(images(n)), network(images(n)))


@pytest.fixture(scope="module")
def published():
    """The generator of 1024 pixels in its full width, and sizes alone: those of maps [N, 512, side, side] by index to
    the image's."""
    network = Generator(1024)

    def run(sides: dict[int, int]) -> torch.Size:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            maps = [torch.empty(N, 512, sides[i], sides[i]) if i in sides else None for i in range(18)]
            return network.synthesis(torch.empty(N, 18, 512), maps).shape

    return network, run


def test_latents_and_maps_of_the_encoder(published):
    network, run = published
    assert network.num_ws == network.synthesis.num_ws == 18 and network.w_dim == 512
    assert run(dict.fromkeys(INDICES, SIDE)) == (N, 3, 1024, 1024)


@pytest.mark.parametrize("index", INDICES)
def test_the_smallest_map_of_each_index(published, index):
    _, run = published
    assert run({index: NEEDED[index]}) == (N, 3, 1024, 1024)
    with pytest.raises(ValueError, match=rf"^pad_maps\[{index}\]: expected"):
        run({index: NEEDED[index] - 1})


@pytest.mark.parametrize("layers, side", [(1, 6), (2, 10), (3, 18), (4, 34), (5, 66)])
def test_the_side_that_the_encoder_chooses(published, layers, side):
    """Just enough for the last of its layers."""
    _, run = published
    indices = [0, *range(1, 2 * layers, 2)]
    assert side == 2 ** (layers + 1) + 2
    assert run(dict.fromkeys(indices, side)) == (N, 3, 1024, 1024)
    for short in (side - 1, 2**layers + 2):
        with pytest.raises(ValueError, match=rf"^pad_maps\[{indices[-1]}\]: expected"):
            run(dict.fromkeys(indices, short))


def test_centre_crops_of_the_maps():
    """Each index reads its own crop of 34 x 34, at the offset rounded down, the first all of it and the others a ring;
    whatever else a map holds, and its further rows and columns, do not count."""
    torch.manual_seed(0)
    network = Generator(64, w_dim=12, channel_max=8, mapping_layers=1).double()
    rand = torch.Generator().manual_seed(1)
    ws = torch.randn(N, network.num_ws, 12, generator=rand, dtype=torch.float64)
    maps = {i: torch.randn(N, 8, SIDE, SIDE, generator=rand, dtype=torch.float64) for i in INDICES}

    def image(maps: dict[int, torch.Tensor]) -> torch.Tensor:
        return network.synthesis(ws, [maps.get(i) for i in range(network.num_ws)])

    expected = image(maps)
    for index in INDICES:
        inside = slice(OFFSETS[index], OFFSETS[index] + NEEDED[index])
        crop = maps[index][:, :, inside, inside]
        assert crop.shape[2:] == (NEEDED[index], NEEDED[index])
        assert torch.equal(image({**maps, index: crop}), expected)
        larger = torch.nn.functional.pad(crop, (3, 4, 2, 3), value=5.0)  # off the centre by half a pixel
        assert torch.equal(image({**maps, index: larger}), expected)
        other = {**maps, index: maps[index].clone()}
        other[index][:, :, inside.start, inside.stop - 1] += 1  # a corner
        assert not torch.equal(image(other), expected)


def test_training_writes_within_its_memory():
    """In channels_last torch 2.13 ends the process at the gradient of a 1x1 kernel of 8 channels with stride 2."""
    code = """
        import torch
        from posgan_fast.models import PadInvEncoder
        encoder = PadInvEncoder(128, num_ws=3, width=8, w_dim=8, padding=None)
        for _ in range(2):
            encoder(torch.rand(2, 3, 128, 128))[0].square().sum().backward()
    """
    environment = os.environ | {"MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
