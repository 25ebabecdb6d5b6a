"""StyleGAN2: NVlabs' own modules, the published sizes, derivatives, what the networks refuse."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("options", [{}, dict(no_pad=True, head="spe"), dict(architecture="resnet")])
def test_meta_tensors(options):
    """Sizes of the published networks, without memory."""
    with torch.device("meta"):
        G, D, z = Generator(64, **options), Discriminator(64), torch.randn(4, 512)
        for noise_mode in ("const", "random"):
            image = G(z, noise_mode=noise_mode, truncation_psi=0.7)
            assert image.is_meta and image.shape == (4, 3, 64, 64)
    logits = D(generator(64, **options).to("meta")(z[:, :8]))
    assert logits.is_meta and logits.shape == (4, 1)
    logits.sum().backward()


def test_copies_and_pickles():
    G, D = generator(16, head="spe"), discriminator(16)
    z = randn(2, 8)
    for other in (copy.deepcopy((G, D)), pickle.loads(pickle.dumps((G, D)))):
        assert torch.equal(other[0](z), G(z)) and torch.equal(other[1](other[0](z)), D(G(z)))
    assert "size=16, img_size=(16, 16), num_ws=6" in repr(G) and "adaptive_pool=False" in repr(D)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend):
    G, D = generator(8), discriminator(8, mbstd_group_size=2)
    z, maps = randn(2, 8), [randn(2, 8, 6, 6), randn(2, 8, 6, 6)]

    def both(z, maps):
        return D(G(z, pad_maps=maps, truncation_psi=0.7))

    expected = torch.autograd.grad(both(z, maps).sum(), list(G.parameters()), allow_unused=True)
    torch._dynamo.reset()
    logits = torch.compile(both, fullgraph=True, backend=backend)(z, maps)
    torch.testing.assert_close(logits, both(z, maps), rtol=1e-5, atol=1e-5)
    for g, e in zip(torch.autograd.grad(logits.sum(), list(G.parameters()), allow_unused=True), expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or (g - e).norm() <= 1e-4 * e.norm() + 1e-7


def test_features_are_channels_last():
    """Convolutions and filters run fastest in this format, which the format of the image does not change."""
    found = []
    look = lambda module, inputs, y: found.append(y.is_contiguous(memory_format=torch.channels_last))  # noqa: E731
    G, D = generator(16), discriminator(16)
    for module in (G.synthesis.b8.conv0, G.synthesis.b16.conv1, D.b16.conv0, D.b8.conv1):
        module.register_forward_hook(look)
    D(G(randn(2, 8)).contiguous())
    assert found == [True] * 4


def test_exports_with_a_batch_of_any_size():
    G = generator(8)
    with torch.no_grad():
        exported = torch.export.export(G, (randn(3, 8),), dynamic_shapes={"z": {0: torch.export.Dim("n", min=2)}})
    torch.testing.assert_close(exported.module()(randn(5, 8)), G(randn(5, 8)))


def test_groups_of_the_discriminator_are_strided():
    """Samples 0 and 2 share a group, 1 and 3 the other."""
    D = discriminator(16, mbstd_group_size=2)
    image = randn(4, 3, 16, 16)
    changed = image.clone()
    changed[3] += 1
    same = (D(changed) == D(image)).flatten().tolist()
    assert same == [True, False, True, False]


BUILDS = [
    # call, exception, message
    (lambda: Generator(48), ValueError, "^size: expected a power of two >= 8, got 48"),
    (lambda: Generator("64"), TypeError, "^size: expected an int, got str"),
    (lambda: Discriminator(4), ValueError, "^size: expected a power of two >= 8, got 4"),
    (lambda: generator(head="cpe"), ValueError, r"^head: expected one of \('constant', 'csg', 'spe'\), got 'cpe'"),
    (lambda: generator(architecture="dense"), ValueError, "^architecture: expected one of"),
    (lambda: generator(layout="foo"), ValueError, r"^layout: expected one of \('mmgen', 'paper'\), got 'foo'"),
    (lambda: generator(no_pad=1), TypeError, "^no_pad: expected a bool, got int"),
    (lambda: generator(interp_head=None), TypeError, "^interp_head: expected a bool, got NoneType"),
    (lambda: generator(div_half_dim="no"), TypeError, "^div_half_dim: expected a bool, got str"),
    (lambda: generator(up_after_conv="no"), TypeError, "^up_after_conv: expected a bool, got str"),
    (lambda: generator(no_pad=True, up_after_conv=True), ValueError, "^up_after_conv: expected False or None with"),
    (lambda: generator(interp_pad=4), ValueError, "^interp_pad: expected 0 or None with no_pad=False, got 4"),
    (lambda: generator(head_size=4), TypeError, r"^head_size: expected \[height, width\], got int"),
    (lambda: generator(head_size=(4, 4, 4)), ValueError, r"^head_size: expected \[height, width\], got 3 values"),
    (lambda: generator(head_size=(0, 4)), ValueError, r"^head_size\[0\]: expected an int >= 1, got 0"),
    (lambda: discriminator(head_size=(4, 4.0)), TypeError, r"^head_size\[1\]: expected an int, got float"),
    (
        lambda: generator(channel_multiplier=-1),
        ValueError,
        "^channel_multiplier: expected a number >= 0.000976.*got -1",
    ),
    (lambda: generator(32, channel_multiplier=31 / 16384), ValueError, "^channel_multiplier: expected a number >= "),
    (lambda: discriminator(channel_multiplier="2"), TypeError, "^channel_multiplier: expected a number, got str"),
    (lambda: generator(channel_max=0), ValueError, "^channel_max: expected an int >= 1, got 0"),
    (lambda: generator(channel_max=6, head="spe"), ValueError, "^channel_max: expected a multiple of 4, got 6"),
    (lambda: generator(conv_clamp=-1), ValueError, "^conv_clamp: expected a number >= 0, got -1"),
    (lambda: discriminator(conv_clamp="256"), TypeError, "^conv_clamp: expected a number, got str"),
    (lambda: generator(img_channels=0), ValueError, "^img_channels: expected an int >= 1, got 0"),
    (lambda: discriminator(img_channels=3.0), TypeError, "^img_channels: expected an int, got float"),
    (lambda: generator(mapping_layers=0), ValueError, "^mapping_layers: expected an int >= 1, got 0"),
    (lambda: generator(z_dim=0), ValueError, "^z_dim: expected a latent or a label, got z_dim=0 and c_dim=0"),
    (lambda: generator(z_dim=-1, c_dim=3), ValueError, "^z_dim: expected an int >= 0, got -1"),
    (lambda: generator(w_dim=0), ValueError, "^w_dim: expected an int >= 1, got 0"),
    (lambda: generator(c_dim="3"), TypeError, "^c_dim: expected an int, got str"),
    (lambda: discriminator(c_dim=-1), ValueError, "^c_dim: expected an int >= 0, got -1"),
    (lambda: discriminator(adaptive_pool=1), TypeError, "^adaptive_pool: expected a bool, got int"),
    (lambda: discriminator(mbstd_group_size=0), ValueError, "^mbstd_group_size: expected an int >= 1, got 0"),
    (lambda: discriminator(mbstd_num_channels=-1), ValueError, "^mbstd_num_channels: expected an int >= 0, got -1"),
]
CALLS = [
    (lambda: generator()(randn(2, 8).to("meta")), ValueError, "^z: expected device cpu like the network, got meta"),
    (lambda: generator()(randn(2, 8).to(torch.complex64)), TypeError, "^z: expected real numbers, got torch.complex64"),
    (lambda: discriminator()(randn(2, 3, 16, 16).to("meta")), ValueError, "^image: expected device cpu like weight"),
    (lambda: generator()(randn(2, 9)), ValueError, r"^z: expected shape \[N, 8\], got \(2, 9\)"),
    (lambda: generator()([0.0] * 8), TypeError, r"^z: expected shape \[N, 8\], got list"),
    (lambda: generator(c_dim=3)(randn(2, 8)), TypeError, r"^c: expected shape \[2, 3\], got NoneType"),
    (lambda: generator(c_dim=3)(randn(2, 8), randn(1, 3)), ValueError, r"^c: expected shape \[2, 3\], got \(1, 3\)"),
    (lambda: generator()(randn(2, 8), randn(2, 3)), ValueError, r"^c: expected None with c_dim=0, got \(2, 3\)"),
    (lambda: generator()(randn(2, 8), truncation_psi="0.7"), TypeError, "^truncation_psi: expected a number, got str"),
    (lambda: generator()(randn(2, 8), truncation_cutoff=1.0), TypeError, "^truncation_cutoff: expected an int, got"),
    (lambda: generator().synthesis(None), TypeError, "^ws: expected a torch.Tensor, got NoneType"),
    (lambda: generator().synthesis(randn(2, 7, 12)), ValueError, r"^ws: expected shape \[N, 6, 12\], got \(2, 7, 12\)"),
    (lambda: discriminator()(randn(2, 3, 24, 24)), ValueError, r"^image: expected \(16, 16\) pixels, got \(24, 24\)"),
    (lambda: discriminator()(randn(2, 1, 16, 16)), ValueError, r"^image: expected 3 channels, got shape \(2, 1, 16"),
    (lambda: discriminator()([1.0]), TypeError, "^image: expected a torch.Tensor, got list"),
    (lambda: discriminator()(randn(2, 3, 16, 16), randn(2, 3)), ValueError, "^c: expected None with c_dim=0, got"),
    (
        lambda: discriminator(c_dim=3)(randn(2, 3, 16, 16), randn(1, 3)),
        ValueError,
        r"^c: expected shape \[2, 3\], got \(1, 3\)",
    ),
]


@pytest.mark.parametrize("call, error, message", BUILDS + CALLS)
def test_refusals_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_label_without_values_is_none():
    """NVlabs' code passes a label of no columns to networks without labels."""
    G, D, z, image = generator(), discriminator(), randn(2, 8), randn(2, 3, 16, 16)
    assert torch.equal(G(z, torch.zeros(2, 0)), G(z)) and torch.equal(D(image, torch.zeros(2, 0)), D(image))
