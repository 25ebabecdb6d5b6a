"""SinGAN: values against plain torch in float64, the published state, sizes, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from posgan_fast import functional as PF
from posgan_fast import use_backend
from posgan_fast.models import (
    CheckpointError,
    SinGANDiscriminator,
    SinGANGenerator,
    UnsafeFileError,
    load_singan,
    load_singan_discriminator,
)

SIZES = [(13, 11), (17, 14), (23, 19)]
WEIGHTS = [1.0, 0.3, 0.2]
KINDS = {
    "original": {},
    "original, reflected": dict(padding="reflect"),
    "padded in each": dict(pad_at="conv"),
    "reflected in each": dict(padding="reflect", pad_at="conv"),
    "csg": dict(encode="csg"),
    "spe": dict(encode="spe"),
    "spe at the head": dict(encode="spe", pad_at="head"),
    "spe, paper's layout": dict(encode="spe", layout="paper", encoding_channels=12),
    "interp": dict(padding="interp"),
    "none": dict(padding="none"),
    "spe, none": dict(padding="none", encode="spe"),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Weights and averages that all show in the result, in evaluation mode."""
    rand = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=rand)
            elif value.dtype.is_floating_point:
                width = value[0].numel() ** -0.5 if value.ndim == 4 else 0.3
                value.add_(torch.randn(value.shape, generator=rand) * width)
    return network.eval()


def singan(stages: int = 3, **arguments) -> SinGANGenerator:
    generator = lively(SinGANGenerator(stages, width=8, **arguments))
    generator.store_noises(generator.draw_noises(SIZES[:stages], seed=1), WEIGHTS[:stages])
    return generator


def oracle(generator: SinGANGenerator, noises, weights) -> torch.Tensor:
    """The module's formula, layer by layer, in float64."""
    net = copy.deepcopy(generator).double()
    encode, margin = generator.encode, generator.margin
    mode = "reflect" if generator.padding == "reflect" else "constant"
    head = 5 if not margin and generator.pad_at == "head" else 0
    each = 1 if not margin and generator.pad_at == "conv" else 0
    image = None
    for t, (noise, weight) in enumerate(zip(noises, weights, strict=True)):
        noise = noise.double()
        h, w = (side - margin for side in noise.shape[2:])
        image = torch.zeros(len(noise), 3, h, w, dtype=torch.float64) if image is None else up(image, (h, w))
        inside = up(image, noise.shape[2:]) if margin else image
        if t == 0 and encode:
            size = noise.shape[2:]
            options = dict(layout=generator.first_input.layout, dtype=torch.float64)
            channels = generator.blocks[0].in_channels
            grid = (
                PF.cartesian_grid2d(*size, **options)
                if encode == "csg"
                else PF.sinusoidal_encoding2d(*size, channels, **options)
            )
            x = (noise + grid) * weight
        else:
            x = noise * weight + inside
        x = F.pad(x, (head,) * 4, mode=mode)
        block = net.blocks[t]
        for layer in (block.head, *block.body, block.tail):
            x = F.conv2d(F.pad(x, (each,) * 4, mode=mode), layer.conv.weight, layer.conv.bias)
            if layer.bn is not None:
                x = F.leaky_relu(layer.bn(x), 0.2)
        if generator.padding == "none":
            image = inside[:, :, 5:-5, 5:-5]
        image = x.tanh() + image
    return image


def up(image, size):
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bicubic", align_corners=True)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_values(kind, backend):
    generator = singan(**KINDS[kind])
    noises = generator.draw_noises([(h + 3, 2 * w) for h, w in SIZES], 2, seed=5)
    with torch.no_grad(), use_backend(backend):
        image, expected = generator(noises, WEIGHTS), oracle(generator, noises, WEIGHTS)
        assert image.shape == expected.shape == (2, 3, SIZES[-1][0] + 3, 2 * SIZES[-1][1])
        assert expected.std() > 0.1
        torch.testing.assert_close(image.double(), expected, rtol=0, atol=2e-5)


def test_state_has_the_published_names_and_shapes():
    """The published names, written out."""
    for encode, first in ((None, 3), ("csg", 2), ("spe", 8)):
        expected = {}
        for t in range(10):
            w = (32, 64, 128)[t // 4]
            layers = {"head": (w, 3 if t else first), **{f"body.block{i}": (w, w) for i in (1, 2, 3)}}
            for layer, (outputs, inputs) in layers.items():
                expected[f"blocks.{t}.{layer}.conv.weight"] = (outputs, inputs, 3, 3)
                for name in ("weight", "bias", "running_mean", "running_var"):
                    expected[f"blocks.{t}.{layer}.bn.{name}"] = (outputs,)
                expected[f"blocks.{t}.{layer}.bn.num_batches_tracked"] = ()
            expected[f"blocks.{t}.tail.conv.weight"] = (3, w, 3, 3)
            expected[f"blocks.{t}.tail.conv.bias"] = (3,)
        state = SinGANGenerator(10, encode=encode).state_dict()
        assert {name: tuple(value.shape) for name, value in state.items()} == expected
    plain = {name for name in expected if ".bn." not in name}
    plain |= {name.replace("weight", "bias") for name in plain}
    state = SinGANDiscriminator(10, norm=False).state_dict()
    assert set(state) == plain and state["blocks.9.tail.conv.weight"].shape == (1, 128, 3, 3)
    assert set(SinGANDiscriminator(10).state_dict()) == set(expected)


def test_gradients_reach_every_weight_and_the_noise():
    generator = SinGANGenerator(2, encode="spe", width=4).double().train()
    noises = [noise.requires_grad_() for noise in generator.draw_noises([(6, 5), (8, 7)], 2, seed=0)]
    generator(noises, [1.0, 0.5]).square().sum().backward()
    assert all(noise.grad.abs().sum() > 0 for noise in noises)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("kind", ["original", "spe", "none"])
def test_evaluation_mode_has_gradients_too(kind):
    generator = singan(2, **KINDS[kind]).double()
    noises = [noise.requires_grad_() for noise in generator.draw_noises([(6, 6), (7, 7)], seed=0)]
    assert torch.autograd.gradcheck(lambda *n: generator(n, [1.0, 0.5]), noises, fast_mode=True)


def test_reconstruction_and_samples():
    generator = singan(encode="spe")
    assert torch.equal(generator.reconstruct(), generator(generator.noises, WEIGHTS))
    assert generator.reconstruct().shape == (1, 3, *SIZES[-1])
    one = generator.sample(2, seed=3)
    assert one.shape == (2, 3, *SIZES[-1]) and torch.equal(one, generator.sample(2, seed=3))
    assert not torch.equal(one, generator.sample(2, seed=4)) and not torch.equal(one[0], one[1])
    assert torch.equal(generator.sample(1, scale=(1, 1.5), seed=0), generator.sample(1, size=(23, 28), seed=0))
    assert generator.sample(3, scale=2).shape == (3, 3, 46, 38) and generator.sample(0).shape == (0, 3, 23, 19)
    torch.manual_seed(7)
    drawn = generator.sample(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, generator.sample(1))


def test_samples_that_start_later_share_what_was_before():
    """All stages but the last from the stored noise, and no noise in the last: the reconstruction."""
    generator = singan()
    generator.noise_weights = [1.0, 0.3, 0.0]
    image = generator.sample(2, start_stage=2)
    torch.testing.assert_close(image, generator.reconstruct().expand(2, -1, -1, -1))
    assert not torch.allclose(generator.sample(1, start_stage=1), image[:1])


def test_spe_continues_in_larger_images_and_csg_spreads():
    noise = torch.zeros(1, 1, 9, 9)
    for encode in ("spe", "csg"):
        encoding = SinGANGenerator(1, encode=encode).first_input
        small, large = encoding(noise), encoding(torch.zeros(1, 1, 9, 14))
        assert torch.equal(large[..., :9], small) == (encode == "spe")
        assert torch.allclose(large[..., -1], small[..., -1]) == (encode == "csg")


def test_stored_noises_move_along():
    generator = singan().double()
    assert generator.noises[0].dtype == torch.float64 and generator.reconstruct().dtype == torch.float64
    twin = pickle.loads(pickle.dumps(generator))
    assert torch.equal(twin.reconstruct(), generator.reconstruct())
    assert generator.to("meta").noises[0].is_meta


def files(folder, generator, discriminator=None, **data):
    """The pair of files that mmgeneration writes."""
    state = {f"generator.{name}": value for name, value in generator.state_dict().items()}
    state |= {
        f"discriminator.{name}": value for name, value in (discriminator or SinGANDiscriminator(3)).state_dict().items()
    }
    if generator.encode == "spe":
        state["generator.head_position_encode._float_tensor"] = torch.zeros(1)
    torch.save({"meta": {}, "state_dict": state, "optimizer": {}}, folder / "x.pth")
    noises = [noise.numpy() for noise in generator.noises]
    with (folder / "x.pkl").open("wb") as file:
        pickle.dump(dict(fixed_noises=noises, noise_weights=generator.noise_weights, curr_stage=2) | data, file)
    return folder / "x.pth", folder / "x.pkl"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_of_files(tmp_path, kind):
    generator = singan(**KINDS[kind])
    weights, noises = files(tmp_path, generator)
    loaded = load_singan(weights, noises=noises, **KINDS[kind])
    assert torch.equal(loaded.reconstruct(), generator.reconstruct()) and not loaded.training
    assert loaded.report.left["discriminator"] == "another network"
    assert "BGR" in str(loaded.report)
    assert ("padding" in loaded.report.assumed) == (generator.padding == "zeros")
    judge = load_singan_discriminator(weights)
    assert judge.report.settings == dict(stages=3, width=32, max_width=128, channels=3, norm=True)


def test_encoding_is_inferred_from_the_channels(tmp_path):
    for encode in ("csg", "spe"):
        generator = singan(encode=encode)
        loaded = load_singan(files(tmp_path, generator)[0])
        assert loaded.encode == encode and loaded.pad_at == "conv"
        assert "no tensor tells" in loaded.report.assumed["encode"]
        with pytest.raises(ValueError, match="^noises: expected stored noises, which tell the size of each stage, got"):
            loaded.sample(1)
    assert loaded.report.left["head_position_encode._float_tensor"]
    assert load_singan(SinGANGenerator(9, width=4, max_width=16).state_dict()).report.settings["max_width"] == 16


def test_noises_in_the_same_file_or_as_tensors():
    generator = singan()
    data = dict(state_dict=generator.state_dict(), fixed_noises=generator.noises, noise_weights=WEIGHTS)
    assert torch.equal(load_singan(data).reconstruct(), generator.reconstruct())
    half = load_singan(data, noises=generator.noises[:2], noise_weights=WEIGHTS)
    assert half.reconstruct().shape == (1, 3, *SIZES[1])


def test_files_without_counters_of_batches():
    generator = singan()
    state = {name: value for name, value in generator.state_dict().items() if "num_batches" not in name}
    loaded = load_singan(state)
    assert loaded.report.filled["blocks.0.head.bn.num_batches_tracked"] == "zero; the file does not count batches"
    assert torch.equal(loaded(generator.noises, WEIGHTS), generator.reconstruct())


def test_nothing_in_the_noises_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    with (tmp_path / "x.pkl").open("wb") as file:
        pickle.dump({"fixed_noises": [Evil()], "noise_weights": [1]}, file)
    with pytest.raises(UnsafeFileError, match="refused, asks for"):
        load_singan(singan().state_dict(), noises=tmp_path / "x.pkl")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("blocks.1.head.conv.weight"), "blocks.1.head.conv.weight is missing"),
        (lambda s: s.update({"blocks.0.head.conv.bias": torch.zeros(8)}), "blocks.0.head.conv.bias is no part of it"),
        (
            lambda s: s.update({"blocks.2.tail.conv.bias": torch.zeros(4)}),
            r"blocks.2.tail.conv.bias: expected shape \[3\], got \[4\]",
        ),
        (lambda s: s.update({"blocks.0.head.conv.weight": torch.zeros(8, 3)}), "expected 4 dimensions, none empty"),
        (lambda s: s.update({"blocks.0.head.conv.weight": torch.zeros(8, 3, 3, 3).int()}), "expected floating point"),
        (lambda s: s.update({"blocks.0.head.conv.weight": torch.zeros(8, 5, 3, 3)}), "a multiple of 4 input"),
    ],
)
def test_states_that_do_not_fit(change, message):
    state = singan().state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_singan(state)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(encode="csg"), CheckpointError, "expected 2 input channels with encode='csg', got 3"),
        (dict(encode="sinus"), ValueError, "^encode: expected one of"),
        (dict(padding="circular"), CheckpointError, "padding: expected one of"),
        (
            dict(padding="interp", pad_at="conv"),
            CheckpointError,
            "pad_at: expected 'head' or None with padding='interp'",
        ),
        (dict(stages=2), CheckpointError, "^state: .* stages: expected 3, which the tensors tell, got 2"),
        (dict(depth=5), TypeError, "^depth: expected an argument of SinGANGenerator, one of stages, encode"),
        (dict(noises=[torch.zeros(1, 1, 9, 9)]), CheckpointError, "^noise_weights: expected one number for each noise"),
        (dict(noise_weights=[1.0]), CheckpointError, "^noise_weights: expected noises beside them, got none"),
        (dict(noises={"noise": []}), CheckpointError, "^noises: expected the entries fixed_noises and noise_weights"),
        (
            dict(noises={"fixed_noises": 3, "noise_weights": []}),
            CheckpointError,
            "^noises: expected a list of arrays, got int",
        ),
        (
            dict(noises={"fixed_noises": [torch.zeros(1, 1, 9, 9)], "noise_weights": ["1"]}),
            CheckpointError,
            "^noise_weights: expected a list of numbers",
        ),
        (dict(noises=[np.zeros((1, 1, 9, 9))], noise_weights=[1]), CheckpointError, "expected names and tensors, got"),
        (
            dict(noises=[torch.zeros(1, 2, 9, 9)], noise_weights=[1]),
            ValueError,
            r"^noises\[0\]: expected shape \[1, 1 or 3, >= 1, >= 1\], got \(1, 2, 9, 9\)",
        ),
        (dict(noises=3), TypeError, "^source: expected a path or a state dictionary, got int"),
        (dict(ema=1), TypeError, "^ema: expected a bool, got int"),
    ],
)
def test_refusals_of_the_loader(arguments, error, message):
    with pytest.raises(error, match=message):
        load_singan(singan().state_dict(), **arguments)


def test_a_discriminator_is_no_generator():
    with pytest.raises(CheckpointError, match="tail.conv.weight: expected 1 output channel, got 3, as in a generator"):
        load_singan_discriminator(singan().state_dict())
    with pytest.raises(CheckpointError, match="encode"):
        load_singan(SinGANDiscriminator(2).state_dict(), encode="csg")
    with pytest.raises(CheckpointError, match="no SinGAN generator among"):
        load_singan({"generator": {}})


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda g: SinGANGenerator(0), ValueError, "^stages: expected an int >= 1, got 0"),
        (lambda g: SinGANGenerator(3, encode="spe", encoding_channels=3.5), TypeError, "^encoding_channels: expected"),
        (lambda g: SinGANGenerator(3, encode="spe", encoding_channels=6), ValueError, "multiple of 4"),
        (lambda g: SinGANGenerator(3, width=64, max_width=32), ValueError, "^max_width: expected an int >= 64, got 32"),
        (lambda g: SinGANGenerator(3, padding="interp", pad_at="conv"), ValueError, "^pad_at: expected 'head' or None"),
        (lambda g: SinGANGenerator(3, pad_at="tail"), ValueError, "^pad_at: expected one of"),
        (lambda g: g([], []), ValueError, "^noises: expected 1 to 3 tensors, got 0"),
        (lambda g: g([torch.zeros(1, 1, 9, 9)] * 4, [1] * 4), ValueError, "^noises: expected 1 to 3 tensors, got 4"),
        (lambda g: g(torch.zeros(1, 1, 9, 9), [1]), TypeError, "^noises: expected a sequence of tensors, got Tensor"),
        (lambda g: g([torch.zeros(1, 9, 9)], [1]), ValueError, r"^noises\[0\]: expected 4 dimensions"),
        (lambda g: g([None], [1]), TypeError, r"^noises\[0\]: expected a torch.Tensor, got NoneType"),
        (lambda g: g(g.noises, [1, 1]), ValueError, "^noise_weights: expected 3 numbers, one for each noise, got 2"),
        (lambda g: g(g.noises, [1, 1, "1"]), TypeError, r"^noise_weights\[2\]: expected a number, got str"),
        (lambda g: g(g.noises, 1), TypeError, "^noise_weights: expected a sequence of numbers, got int"),
        (
            lambda g: g([torch.zeros(1, 1, 9, 9), torch.zeros(2, 1, 9, 9)], [1, 1]),
            ValueError,
            r"^noises\[1\]: expected shape \[1, ",
        ),
        (
            lambda g: g(g.noises, WEIGHTS, torch.zeros(1, 3, 5, 5)),
            ValueError,
            r"^image: expected shape \(1, 3, 13, 11\), got \(1, 3, 5, 5\)",
        ),
        (lambda g: g.sample(-1), ValueError, "^n: expected an int >= 0, got -1"),
        (lambda g: g.store_noises([torch.zeros(2, 1, 9, 9)], [1]), ValueError, r"^noises\[0\]: expected one sample"),
        (lambda g: g.draw_noises(5), ValueError, r"^sizes: expected 1 to 3 pairs \[height, width\], got 5"),
        (lambda g: g.draw_noises([(9, 9)], channels=[1, 1]), ValueError, "^channels: expected 1 ints"),
        (lambda g: g.draw_noises([(9, 9)], seed=2**64), ValueError, "^seed: expected an int <= "),
        (lambda g: load_singan({1: torch.zeros(1)}), CheckpointError, "expected names and tensors|no SinGAN generator"),
        (lambda g: load_singan(g.state_dict(), encode=["spe"]), TypeError, "^encode: expected one of"),
        (lambda g: g.sample(1, scale=2, size=(9, 9)), ValueError, "^size: expected None beside scale"),
        (lambda g: g.sample(1, scale=0.01), ValueError, "^scale: expected an image of at least one pixel, got 0 x 0"),
        (lambda g: g.sample(1, scale=-1), ValueError, "^scale: expected an image of at least one pixel, got -23 x -19"),
        (lambda g: g.sample(1, scale=(1, 2, 3)), ValueError, r"^scale: expected a number or \[rows, columns\], got 3"),
        (lambda g: g.sample(1, scale="2"), TypeError, "^scale: expected a number, got str"),
        (lambda g: g.sample(1, size=(9, 0)), ValueError, r"^size\[1\]: expected an int >= 1, got 0"),
        (lambda g: g.sample(1, seed=-1), ValueError, "^seed: expected an int >= 0, got -1"),
        (lambda g: g.sample(1, start_stage=3), ValueError, "^start_stage: expected an int <= 2, got 3"),
        (lambda g: SinGANDiscriminator(2)(torch.zeros(1, 3, 10, 20)), ValueError, "^image: expected more than 10 rows"),
        (lambda g: SinGANDiscriminator(2)(torch.zeros(1, 1, 20, 20)), ValueError, "^image: expected 3 channels"),
        (lambda g: SinGANDiscriminator(2)(torch.zeros(1, 3, 20, 20), 2), ValueError, "^stage: expected an int <= 1"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(singan())


def test_reflection_needs_more_pixels_than_it_pads():
    generator = SinGANGenerator(1, padding="reflect")
    with pytest.raises(ValueError, match="reflect"):
        generator(generator.draw_noises([(5, 9)]), [1])
    assert generator(generator.draw_noises([(6, 9)]), [1]).shape == (1, 3, 6, 9)
