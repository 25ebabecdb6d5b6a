"""Networks that grew out of StyleGAN2: positional heads at any scale (MS-PIE) and padding maps (PadInv)."""

from __future__ import annotations

import copy

import pytest
import torch
from test_models import discriminator, generator, latents, randn
from torch._subclasses import FakeTensorMode

from posgan_fast import functional as PF

# MS-PIE


@pytest.mark.parametrize("head", ["constant", "csg", "spe"])
def test_sides_of_ms_pie(head):
    """Scales 0, 2, 4, 10, 12 of the network for 256 are 256, 384, 512, 896, 1024 pixels."""
    G = generator(256, head=head, up_after_conv=True)
    D = discriminator(256, adaptive_pool=True)
    pooled = {}
    D.b4.conv.register_forward_hook(lambda module, inputs, y: pooled.update(side=y.shape[2]))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):  # sizes alone
        ws = torch.empty(1, G.num_ws, G.w_dim)
        for s, side in ((0, 256), (2, 384), (4, 512), (10, 896), (12, 1024)):
            assert G.synthesis.noise_sizes(s)[-1] == (side, side)
            image = G.synthesis(ws, scale=s)
            assert image.shape == (1, 3, side, side) and D(image).shape == (1, 1)
            assert pooled["side"] == 4 + s


def test_sizes_without_padding():
    G = generator(256, no_pad=True)
    chain = []
    for name, module in G.synthesis.named_modules():
        if name.endswith(("conv0", "conv1")):
            module._interpolate = lambda x, plain=module._interpolate: chain.append((y := plain(x)).shape[2]) or y
            module.register_forward_hook(lambda module, inputs, y: chain.append(y.shape[2]))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        G.synthesis(torch.empty(1, G.num_ws, G.w_dim))
    assert G.synthesis.b4.const.shape[1:] == (6, 6)
    assert chain == [
        4, 12, 10, 8, 20, 18, 16, 36, 34, 32, 68, 66, 64, 132, 130, 128, 260, 258, 256
    ]  # fmt: skip
    assert [h for h, _ in G.synthesis.noise_sizes()] == [c for i, c in enumerate(chain) if i % 3 != 1]


MS_PIE = {
    "c": dict(up_after_conv=True),
    "d": dict(head="csg", up_after_conv=True),
    "e": dict(head="spe", interp_head=True, up_after_conv=True),
    "f": dict(head="spe", up_after_conv=True),
    "h": dict(no_pad=True),
    "i": dict(head="csg", no_pad=True),
    "j": dict(head="spe", interp_head=True, no_pad=True, interp_pad=4),
    "k": dict(head="spe", no_pad=True, up_after_conv=False),
    "paper's layout": dict(head="spe", layout="paper", up_after_conv=False),
}


@pytest.mark.parametrize("name", MS_PIE)
def test_configurations_of_ms_pie_run_at_every_scale(name):
    G = generator(**MS_PIE[name])
    ws = latents(G)
    for scale, size in ((0, (16, 16)), (2, (24, 24)), ((1, 3), (20, 28))):
        image = G.synthesis(ws, scale=scale)
        assert image.shape == (2, 3, *size) and image.isfinite().all()
        noises = [
            torch.randn(side, generator=torch.Generator().manual_seed(0)) for side in G.synthesis.noise_sizes(scale)
        ]
        given = G.synthesis(ws, noises=noises, scale=scale)
        assert torch.equal(given, G.synthesis(ws, noises=[n[None, None] for n in noises], scale=scale))
        assert not torch.equal(given, image)
    assert discriminator(adaptive_pool=True)(G.synthesis(ws, scale=2)).shape == (2, 1)


@pytest.mark.parametrize("interp", [False, True])
def test_an_encoding_expands_from_the_top_left_or_keeps_its_corners(interp):
    block = generator(head="spe", interp_head=interp).synthesis.b4
    small, large = block._features(2, (0, 0), None), block._features(2, (3, 1), None)
    assert small.shape == (2, 8, 4, 4) and large.shape == (2, 8, 7, 5)
    if interp:
        torch.testing.assert_close(large[:, :, ::6, ::4], small[:, :, ::3, ::3])
    assert torch.equal(large[:, :, :4, :4], small) != interp


def test_a_constant_head_is_interpolated_with_its_corners_kept():
    block = generator().synthesis.b4
    large = block._features(1, (3, 1), None)
    torch.testing.assert_close(large[0, :, -1, -1], block.const[:, -1, -1])
    torch.testing.assert_close(large[0, :, ::2, 0], block.const[:, :, 0])


def test_images_need_not_be_square():
    G, D = generator(head_size=(4, 6)), discriminator(head_size=(4, 6))
    image = G(randn(2, 8))
    assert image.shape == (2, 3, 16, 24) and D(image).shape == (2, 1)
    assert G.synthesis.b16.conv0.noise_const.shape == (16, 24) and G.img_size == D.img_size == (16, 24)


# PadInv


@pytest.fixture(scope="module")
def inversion():
    """A network of 64 pixels, latents, and the maps [N, C, 34, 34] of the indices 0, 1, 3, 5, 7."""
    G = generator(64)
    maps = [randn(2, 8, 34, 34, seed=k) if k in (0, 1, 3, 5, 7) else None for k in range(18)]
    return G, latents(G), maps


def test_zero_maps_change_nothing(inversion):
    G, ws, maps = inversion
    plain = G.synthesis(ws)
    zeros = [None if m is None else torch.zeros_like(m) for m in maps]
    zeros[0][:, :, 15:19, 15:19] = G.synthesis.b4.const
    assert torch.equal(G.synthesis(ws, zeros), plain)
    assert torch.equal(G.synthesis(ws, [G.synthesis.b4.const.expand(2, -1, -1, -1)]), plain)
    assert torch.equal(G.synthesis(ws, []), plain) and torch.equal(G.synthesis(ws, [None] * 30), plain)


def test_only_the_rings_of_the_maps_count_and_they_are_never_written(inversion):
    G, ws, maps = inversion
    before = copy.deepcopy(maps)
    image = G.synthesis(ws, maps)
    assert torch.equal(G.synthesis(ws, maps), image)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(maps, before, strict=True))
    hollow = copy.deepcopy(maps)
    for index, r in ((1, 4), (3, 8), (5, 16), (7, 32)):
        inside = slice((34 - r) // 2, (34 + r) // 2)
        hollow[index][:, :, inside, inside] = 0
    assert torch.equal(G.synthesis(ws, hollow), image)
    shared = [maps[0] if m is not None else None for m in maps]
    assert torch.equal(G.synthesis(ws, shared), G.synthesis(ws, shared))


@pytest.mark.parametrize("index", [0, 1, 3, 5, 7])
def test_each_map_matters(inversion, index):
    G, ws, maps = inversion
    image = G.synthesis(ws, maps)
    one = list(maps)
    one[index] = maps[index] + 1
    assert not torch.equal(G.synthesis(ws, one), image)
    one[index] = maps[index].clone().requires_grad_()
    (g,) = torch.autograd.grad(G.synthesis(ws, one).square().sum(), one[index])
    r = 4 if index == 0 else 2 ** (index // 2 + 2) + 2
    inside = slice((34 - r) // 2, (34 + r) // 2)
    reached = torch.zeros_like(g)
    reached[:, :, inside, inside] = 1
    if index:
        reached[:, :, inside.start + 1 : inside.stop - 1, inside.start + 1 : inside.stop - 1] = 0
    assert torch.equal(g != 0, reached != 0)


def test_maps_of_the_enlarging_layers_and_further_entries(inversion):
    G, ws, _ = inversion
    up = [None, None, randn(2, 8, 11, 11)]  # around 9 x 9, the transposed convolution of 4 x 4
    assert not torch.equal(G.synthesis(ws, up), G.synthesis(ws))
    beyond = [None] * 10 + ["ignored"]
    assert torch.equal(G.synthesis(ws, beyond), G.synthesis(ws))


# Sizes, and what is refused


@pytest.mark.parametrize("name", MS_PIE)
def test_sizes_of_the_maps_are_the_least_that_will_do(name):
    """Each map of that size is taken, as is its ring, and one pixel or channel less is not."""
    G = generator(**MS_PIE[name])
    ws, scale = latents(G), (1, 3)
    sizes = G.synthesis.pad_map_sizes(scale)
    no_pad = MS_PIE[name].get("no_pad", False)
    assert len(sizes) == 6 and [size is None for size in sizes] == [False, *[no_pad] * 5]
    for i, size in enumerate(sizes):
        if size is None:
            continue
        c, h, w = size
        maps = [None] * i + [randn(2, c, h, w)]
        image = G.synthesis(ws, maps, scale=scale)
        if i:
            ring = PF.ring_from_map(maps[i])
            assert torch.equal(G.synthesis(ws, [*maps[:i], ring], scale=scale), image)
        for less in ((c - 1, h, w), (c, h - 1, w), (c, h, w - 1)):
            with pytest.raises(ValueError, match=rf"^pad_maps\[{i}\]: expected \[2, {c}, >= {h}, >= {w}\]"):
                G.synthesis(ws, [*maps[:i], randn(2, *less)], scale=scale)


def test_sizes_of_the_maps_of_the_plain_network():
    sizes = generator().synthesis.pad_map_sizes()
    assert sizes == [(8, 4, 4), (8, 6, 6), (8, 11, 11), (8, 10, 10), (8, 19, 19), (8, 18, 18)]


def test_maps_in_a_list_of_parameters(inversion):
    G, ws, _ = inversion
    parameters = torch.nn.ParameterList([torch.zeros(2, *size) for size in G.synthesis.pad_map_sizes()])
    G.synthesis(ws, parameters).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            dict(pad_maps=randn(2, 8, 4, 4)),
            TypeError,
            "^pad_maps: expected a sequence of tensors and None, or None, got T",
        ),
        (dict(pad_maps={0: None}), TypeError, "^pad_maps: expected a sequence of tensors and None, or None, got dict"),
        (dict(pad_maps="maps"), TypeError, "^pad_maps: expected a sequence of tensors and None, or None, got str"),
        (dict(pad_maps=[None, 1.0]), TypeError, r"^pad_maps\[1\]: expected a torch.Tensor, got float"),
        (dict(pad_maps=[randn(1, 8, 4, 4)]), ValueError, r"^pad_maps\[0\]: expected \[2, 8, >= 4, >= 4\], got shape"),
        (dict(pad_maps=[randn(2, 8, 12)]), ValueError, r"^pad_maps\[0\]: expected \[2, 8, >= 4, >= 4\], got shape"),
        (
            dict(pad_maps=[None, None, None, randn(2, 8, 9, 10)]),
            ValueError,
            r"^pad_maps\[3\]: expected \[2, 8, >= 10, >= 10\] or a ring \[2, 8, 36\], got shape \(2, 8, 9, 10\)",
        ),
        (
            dict(pad_maps=[None, randn(2, 8, 6, 6).to("meta")]),
            ValueError,
            r"^pad_maps\[1\]: expected device cpu like ws, got meta",
        ),
        (dict(noises=randn(4, 4)), TypeError, "^noises: expected a sequence of tensors and None, or None, got Tensor"),
        (dict(noises={}), TypeError, "^noises: expected a sequence of tensors and None, or None, got dict"),
        (dict(noises=[None] * 6), ValueError, "^noises: expected at most 5 tensors, got 6"),
        (dict(noises=[None, "noise"]), TypeError, r"^noises\[1\]: expected a torch.Tensor, got str"),
        (
            dict(noises=[None, randn(8, 7)]),
            ValueError,
            r"^noises\[1\]: expected shape \(8, 8\), \(1, 1, 8, 8\) or \(2, 1, 8, 8\), got \(8, 7\)",
        ),
        (dict(noise_mode="konst"), ValueError, "^noise_mode: expected one of"),
        (dict(scale=-1), ValueError, "^scale: expected an int >= 0, got -1"),
        (dict(scale=0.5), TypeError, "^scale: expected an int, got float"),
        (dict(scale="2"), TypeError, "^scale: expected an int, got str"),
        (dict(scale=(1, 2, 3)), ValueError, r"^scale: expected an int or \[rows, columns\], got 3 values"),
    ],
)
def test_refusals_of_maps_noises_and_scales(arguments, error, message):
    G = generator()
    with pytest.raises(error, match=message):
        G.synthesis(latents(G), **arguments)


def test_layers_without_padding_take_no_maps():
    G = generator(no_pad=True)
    with pytest.raises(ValueError, match=r"^pad_maps\[1\]: expected None for a convolution without padding, got shape"):
        G.synthesis(latents(G), [None, randn(2, 8, 8, 8)])
