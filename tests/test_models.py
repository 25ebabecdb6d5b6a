"""StyleGAN2 and its descendants: NVlabs' own modules, the published sizes, padding maps, derivatives."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from posgan_fast.models import Discriminator, Generator

ROOT = Path(__file__).parent.parent
TINY = dict(z_dim=8, w_dim=12, mapping_layers=2, channel_max=8)


def generator(size: int = 16, **kwargs) -> Generator:
    """A network in which everything that starts at zero or one has a say."""
    torch.manual_seed(0)
    return randomized(Generator(size, **{**TINY, **kwargs})).eval()


def discriminator(size: int = 16, **kwargs) -> Discriminator:
    torch.manual_seed(0)
    return randomized(Discriminator(size, **{"channel_max": 8, "mapping_layers": 2, **kwargs})).eval()


def randomized(network):
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith(("bias", "noise_strength", "w_avg")):
            tensor.data.add_(0.3 * torch.randn_like(tensor))
    return network


def latents(network: Generator, n: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, network.num_ws, network.w_dim, generator=torch.Generator().manual_seed(1)).to(dtype)


def randn(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Names and shapes of the state


def _synthesis_layer(prefix: str, i: int, o: int, side: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.weight": (o, i, 3, 3), f"{prefix}.noise_strength": (), f"{prefix}.bias": (o,),
        f"{prefix}.resample_filter": (4, 4), f"{prefix}.noise_const": (side, side), f"{prefix}.affine.weight": (i, 512),
        f"{prefix}.affine.bias": (i,),
    }  # fmt: skip


def test_generator_state_is_that_of_nvlabs():
    """The published architecture, on no memory."""
    with torch.device("meta"):
        state = {k: tuple(v.shape) for k, v in Generator(256).state_dict().items()}
    expected = {"mapping.w_avg": (512,), "synthesis.b4.const": (512, 4, 4)}
    for j in range(8):
        expected |= {f"mapping.fc{j}.weight": (512, 512), f"mapping.fc{j}.bias": (512,)}
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128}
    for r, c in channels.items():
        block = f"synthesis.b{r}"
        if r > 4:
            expected |= _synthesis_layer(f"{block}.conv0", channels[r // 2], c, r)
        expected |= _synthesis_layer(f"{block}.conv1", c, c, r)
        expected |= {
            f"{block}.resample_filter": (4, 4), f"{block}.torgb.weight": (3, c, 1, 1), f"{block}.torgb.bias": (3,),
            f"{block}.torgb.affine.weight": (c, 512), f"{block}.torgb.affine.bias": (c,),
        }  # fmt: skip
    assert state == expected


def test_discriminator_state_is_that_of_nvlabs():
    with torch.device("meta"):
        state = {k: tuple(v.shape) for k, v in Discriminator(1024, channel_multiplier=1).state_dict().items()}
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    convolutions = {"b1024.fromrgb": (16, 3, 1, 1), "b4.conv": (512, 513, 3, 3)}
    expected = {
        "b4.fc.weight": (512, 8192), "b4.fc.bias": (512,), "b4.out.weight": (1, 512), "b4.out.bias": (1,),
    }  # fmt: skip
    for r, c in channels.items():
        if r > 4:
            convolutions |= {f"b{r}.conv0": (c, c, 3, 3), f"b{r}.conv1": (channels[r // 2], c, 3, 3)}
            expected |= {
                f"b{r}.resample_filter": (4, 4), f"b{r}.skip.weight": (channels[r // 2], c, 1, 1),
                f"b{r}.skip.resample_filter": (4, 4),
            }  # fmt: skip
    for name, shape in convolutions.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1], f"{name}.resample_filter": (4, 4)}
    assert state == expected


def test_state_of_the_other_configurations():
    plain = set(generator().state_dict())
    skips = {"synthesis.b8.skip.weight", "synthesis.b8.skip.resample_filter"}
    images = {k for k in plain if "torgb" in k and "b16" not in k}
    assert set(generator(architecture="orig").state_dict()) == plain - images
    residual = set(generator(architecture="resnet").state_dict())
    assert residual == plain - images | skips | {k.replace("b8", "b16") for k in skips}
    assert set(generator(c_dim=3).state_dict()) == plain | {"mapping.embed.weight", "mapping.embed.bias"}
    for head in ("csg", "spe"):
        assert set(generator(head=head, up_after_conv=True).state_dict()) == plain - {"synthesis.b4.const"}
    no_pad = generator(no_pad=True).state_dict()
    assert set(no_pad) == plain and no_pad["synthesis.b4.const"].shape == (8, 6, 6)
    assert no_pad["synthesis.b8.conv0.noise_const"].shape == (10, 10)
    assert no_pad["synthesis.b8.conv1.noise_const"].shape == (8, 8)
    csg = generator(head="csg").state_dict()
    assert csg["synthesis.b4.conv1.weight"].shape == (8, 2, 3, 3) and csg["synthesis.b4.conv1.affine.bias"].shape == (
        2,
    )
    fc = discriminator(256, adaptive_pool=True).state_dict()["b4.fc.weight"]
    assert fc.shape == (8, 32)


# NVlabs' own modules


@pytest.fixture
def nvlabs(peers, tmp_path, missing_modules):
    """States, inputs and answers of the networks in a checkout."""
    path = os.pathsep.join(map(str, (peers["nvlabs"], *missing_modules)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    script, out = ROOT / "tests" / "fixtures" / "scripts" / "nvlabs_stylegan2.py", tmp_path / "nvlabs.pt"
    done = subprocess.run(
        [sys.executable, str(script), str(out)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out)


def test_the_networks_of_nvlabs(nvlabs):
    """The same state in the same order, and the same images, latents, gradients and logits."""
    widths = dict(channel_multiplier=256 / 16384, channel_max=16, mapping_layers=2)
    for options, expected in nvlabs["generators"]:
        G = Generator(z_dim=8, w_dim=12, **widths, **options).eval()
        assert list(G.state_dict()) == list(expected["state"])
        G.load_state_dict(expected["state"])
        z, c = expected["z"], expected["c"]
        _assert_near(G.mapping(z, c), expected["w"])
        _assert_near(G.mapping(z, c, truncation_psi=0.6, truncation_cutoff=3), expected["cut"])
        for mode in ("const", "none"):
            for fused in (False, True):
                _assert_near(G.synthesis(expected["cut"], noise_mode=mode), expected[f"{mode}, {fused}"])
        image = G(z, c, truncation_psi=0.6, truncation_cutoff=3)
        _assert_near(image, expected["const, False"])
        (pull,) = torch.autograd.grad(image.square().sum(), G.synthesis.b4.conv1.affine.weight)
        assert (pull - expected["pull"]).norm() <= 1e-4 * expected["pull"].norm()
    for options, expected in nvlabs["discriminators"]:
        D = Discriminator(**{k: v for k, v in widths.items() if k != "mapping_layers"}, **options).eval()
        assert list(D.state_dict()) == list(expected["state"])
        D.load_state_dict(expected["state"])
        _assert_near(D(expected["image"], expected["c"]), expected["logits"])


def _assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


# Mapping


def test_mapping_tracks_the_average_and_truncates_towards_it():
    G = generator()
    z = randn(5, 8)
    G.train()
    before, w = G.mapping.w_avg.clone(), G.mapping(z, skip_w_avg_update=True)
    assert w.shape == (5, 6, 12) and torch.equal(G.mapping.w_avg, before)
    torch.testing.assert_close(G.mapping(3 * z, skip_w_avg_update=True), w)
    G.mapping(z)
    torch.testing.assert_close(G.mapping.w_avg, 0.995 * before + 0.005 * w[:, 0].mean(0))
    G.eval()
    average = G.mapping.w_avg.clone()
    torch.testing.assert_close(G.mapping(z, truncation_psi=0.7), average + 0.7 * (w - average))
    cut = G.mapping(z, truncation_psi=0.0, truncation_cutoff=2)
    torch.testing.assert_close(cut, torch.cat([average.expand(5, 2, 12), w[:, 2:]], dim=1))
    assert torch.equal(G.mapping.w_avg, average)


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


# Derivatives, precision, compilation


def test_path_length_and_r1_run_twice_backward():
    G, D = generator(16).double(), discriminator(16, mbstd_group_size=2).double()
    ws = latents(G, dtype=torch.float64).requires_grad_()
    image = G.synthesis(ws)
    (pull,) = torch.autograd.grad((image * randn(*image.shape).double()).sum(), ws, create_graph=True)
    lengths = pull.square().sum(2).mean(1).sqrt()
    (lengths - 1).square().mean().backward()
    for name, parameter in G.synthesis.named_parameters():
        constant = name.endswith(("bias", "noise_strength")) and "affine" not in name
        assert constant or parameter.grad.abs().sum() > 0, name

    def slope_of(logits, real):
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean()

    real = randn(2, 3, 16, 16).double().requires_grad_()
    penalty = slope_of(D(real), real)
    weight = D.b16.conv1.weight
    (g,) = torch.autograd.grad(penalty, weight)
    direction, step = randn(*weight.shape, seed=4).double(), 1e-6
    values = []
    for sign in (1, -1):
        weight.data.add_(direction, alpha=sign * step)
        values.append(slope_of(D(real), real).item())
        weight.data.sub_(direction, alpha=sign * step)
    assert abs((values[0] - values[1]) / (2 * step) - (g * direction).sum().item()) <= 1e-5 * g.norm().item()


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_autocast(architecture):
    """Convolutions run in bfloat16; images and logits come out in float32, close to those of float32."""
    G, D = generator(32, architecture=architecture), discriminator(32, architecture=architecture)
    z = randn(4, 8)
    seen = set()
    for module in (*G.modules(), *D.modules()):
        if hasattr(module, "weight") and module.weight.ndim == 4:
            module.register_forward_hook(lambda module, inputs, y: seen.add(y.dtype))
    image, logits = G(z), D(G(z))
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        half = G(z)
        half_logits = D(image)
    assert seen == {torch.bfloat16} and half.dtype == half_logits.dtype == torch.float32
    assert (half - image).norm() <= 0.02 * image.norm()
    assert (half_logits - logits).norm() <= 0.05 * logits.norm()
    (half.square().sum() + half_logits.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (*G.parameters(), *D.parameters()))


def test_other_dtypes():
    G, D = generator(16).double(), discriminator(16).double()
    image = G(randn(2, 8).double())
    assert image.dtype == torch.float64 and D(image).dtype == torch.float64
    torch.testing.assert_close(generator(16)(randn(2, 8)), image.float(), rtol=1e-4, atol=1e-5)


def test_copies_and_pickles():
    G, D = generator(16, head="spe"), discriminator(16)
    z = randn(2, 8)
    for other in (copy.deepcopy((G, D)), pickle.loads(pickle.dumps((G, D)))):
        assert torch.equal(other[0](z), G(z)) and torch.equal(other[1](other[0](z)), D(G(z)))
    assert "size=16, img_size=(16, 16), num_ws=6" in repr(G) and "adaptive_pool=False" in repr(D)


def test_compiles_without_a_graph_break():
    G, D = generator(8), discriminator(8, mbstd_group_size=2)
    z, maps = randn(2, 8), [randn(2, 8, 6, 6), randn(2, 8, 6, 6)]

    def both(z, maps):
        return D(G(z, pad_maps=maps, truncation_psi=0.7))

    expected = torch.autograd.grad(both(z, maps).sum(), list(G.parameters()), allow_unused=True)
    torch._dynamo.reset()
    logits = torch.compile(both, fullgraph=True, backend="aot_eager")(z, maps)
    torch.testing.assert_close(logits, both(z, maps), rtol=1e-5, atol=1e-5)
    for g, e in zip(torch.autograd.grad(logits.sum(), list(G.parameters()), allow_unused=True), expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or (g - e).norm() <= 1e-4 * e.norm() + 1e-7


def test_groups_of_the_discriminator_are_strided():
    """Samples 0 and 2 share a group, 1 and 3 the other."""
    D = discriminator(16, mbstd_group_size=2)
    image = randn(4, 3, 16, 16)
    changed = image.clone()
    changed[3] += 1
    same = (D(changed) == D(image)).flatten().tolist()
    assert same == [True, False, True, False]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Generator(48), "^size: expected a power of two >= 8, got 48"),
        (lambda: Discriminator(4), "^size: expected a power of two >= 8, got 4"),
        (lambda: generator(head="cpe"), r"^head: expected one of \('constant', 'csg', 'spe'\), got 'cpe'"),
        (lambda: generator(architecture="dense"), "^architecture: expected one of"),
        (lambda: generator(no_pad=True, up_after_conv=True), "^up_after_conv: expected False or None with no_pad"),
        (lambda: generator(interp_pad=4), "^interp_pad: expected 0 or None with no_pad=False, got 4"),
        (lambda: generator(head_size=(0, 4)), "^head_size: expected a height and a width >= 1"),
        (lambda: generator()(randn(2, 9)), r"^z: expected shape \[N, 8\], got \(2, 9\)"),
        (lambda: generator(c_dim=3)(randn(2, 8)), r"^c: expected shape \[N, 3\], got None"),
        (lambda: generator().synthesis(randn(2, 7, 12)), r"^ws: expected shape \[N, 6, 12\], got \(2, 7, 12\)"),
        (lambda: generator().synthesis(randn(2, 6, 12), [randn(1, 8, 4, 4)]), r"^pad_maps\[0\]: expected \[2, 8, >= 4"),
        (
            lambda: generator().synthesis(randn(2, 6, 12), noises=[None] * 6),
            "^noises: expected at most 5 tensors, got 6",
        ),
        (lambda: generator().synthesis(randn(2, 6, 12), scale=-1), "^scale: expected pixels >= 0, got -1"),
        (
            lambda: generator(no_pad=True).synthesis(randn(2, 6, 12), [None, randn(2, 8, 8, 8)]),
            "^pad_map: expected None",
        ),
        (lambda: discriminator()(randn(2, 3, 24, 24)), r"^image: expected \(16, 16\) pixels, got \(24, 24\)"),
        (lambda: discriminator()(randn(2, 1, 16, 16)), r"^image: expected shape \[N, 3, H, W\]"),
    ],
)
def test_refusals_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
