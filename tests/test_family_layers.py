"""Layers of every family, converted, against the family's own definition; no checkout is needed."""

from __future__ import annotations

import pytest
import torch
from family_layers import EPS, FAMILIES, image
from stylegan2_states import CHANNELS, SIZE, W, generator, in_family
from tolerances import assert_close

from posgan_fast import use_backend
from posgan_fast.functional import upsample2d
from posgan_fast.models import Generator, convert_generator, load_generator

N, LATENTS = 2, 8
LAYERS = (0, 3, 4, 5)  # at 4 pixels, enlarging to 16, at 16, enlarging to 32 with half as many channels
TINY = 1e-5  # of weights whose squares, summed up, are about as large as eps
STYLES = (".affine.", ".modulation.", ".style_modulation.", ".style.")
ROOT_HALF = 0.5**0.5

each_family = pytest.mark.parametrize("family", FAMILIES)
each_backend = pytest.mark.parametrize("backend", ("reference", "cpu"))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def random_state(family: str, size: float = 1.0) -> dict[str, torch.Tensor]:
    """A network of the family: style weights of this size, styles over three decades, filters without symmetry."""
    rand = torch.Generator().manual_seed(3)
    taps = torch.rand(4, 4, generator=rand) + 0.1
    state = {}
    for name, value in in_family(generator(), family).items():
        value = torch.randn(value.shape, generator=rand)
        if name.endswith(("filter", "kernel")):
            total = 1 if family in ("nvlabs", "hammer") else 4
            value = (taps / taps.sum() * total).reshape(value.shape)
        elif any(part in name for part in STYLES) and name.startswith(("synthesis", "conv", "to_rgb")):
            value *= 10 ** (3 * torch.rand(len(value), generator=rand) - 2).reshape(-1, *[1] * (value.ndim - 1))
        elif value.shape[-2:] == (3, 3):
            value *= size
        state[name] = value
    return state


def converted(state, **overrides) -> Generator:
    """In float64 from the first step on."""
    there, report = convert_generator(state)
    settings = dict(report.settings)
    model = Generator(settings.pop("size"), **settings, **overrides).double().eval()
    model.load_state_dict(there, strict=True)
    return model


def inputs(n: int, channels: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    rand = torch.Generator().manual_seed(n)
    return torch.randn(N, channels, side, side, generator=rand), torch.randn(N, W, generator=rand)


def layer_inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    side = 4 * 2 ** (n // 2)
    return inputs(n, CHANNELS[side], side)


def layer_of(model: Generator, n: int) -> torch.nn.Module:
    return model.synthesis.get_submodule(f"b{4 * 2 ** ((n + 1) // 2)}.conv{1 - n % 2}")


def eps_here(family: str, n: int) -> float:
    """The eps with which the family computes what is computed here, where eps joins the sum over unscaled weights."""
    return EPS / (9 * layer_inputs(n)[0].shape[1]) if FAMILIES[family].scaled else EPS


def doubled(tensors):
    return {name: value.double() for name, value in tensors.items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@each_backend
@pytest.mark.parametrize("size", [1.0, TINY])
@pytest.mark.parametrize("n", LAYERS)
@each_family
def test_style_layers(family, n, size, backend):
    state = doubled(random_state(family, size))
    x, w = (t.double() for t in layer_inputs(n))
    expected = FAMILIES[family].layer(state, n, x, w, eps=eps_here(family, n))
    with use_backend(backend):
        y = layer_of(converted(state), n)(x, w)
    assert y.shape == expected.shape and y.dtype == torch.float64
    assert relative(y, expected) < 1e-12
    assert y.std((1, 2, 3)).min() > 0.1


@each_backend
@pytest.mark.parametrize("n", LAYERS)
@each_family
def test_style_layers_in_float32(family, n, backend):
    """The family's own eps stands in the right place; beside weights of unit variance float32 would not show it."""
    state = random_state(family)
    x, w = layer_inputs(n)
    expected = FAMILIES[family].layer(doubled(state), n, x.double(), w.double())
    with use_backend(backend):
        y = layer_of(load_generator(state), n)(x, w)
    assert_close(y, expected, "modulated_conv2d", torch.float32)


@pytest.mark.parametrize("n", LAYERS)
@each_family
def test_where_eps_counts(family, n):
    """Beside scaled weights eps has I * k * k times the weight it has here: nothing for weights of unit variance, and
    enough for the tiny ones of these tests that a misplaced one shows."""
    x, w = (t.double() for t in layer_inputs(n))
    layer = FAMILIES[family].layer
    for size, bounds in ((1.0, (0, 1e-7)), (TINY, (1e-3, 10))):
        state = doubled(random_state(family, size))
        here = layer_of(converted(state), n)(x, w)
        without = relative(here, layer(state, n, x, w, eps=0))
        assert bounds[0] <= without < bounds[1]
        own = relative(here, layer(state, n, x, w))
        assert own < 1e-12 if not FAMILIES[family].scaled else bounds[0] <= own < bounds[1]


@each_backend
@pytest.mark.parametrize("b", [0, 1, 3])
@each_family
def test_to_rgb(family, b, backend):
    """On top of the image before it, enlarged with the family's filter."""
    state = doubled(random_state(family))
    side = 4 * 2**b
    x, w = (t.double() for t in inputs(b, CHANNELS[side], side))
    skip = inputs(10 + b, 3, side // 2)[0].double() if b else None
    expected = FAMILIES[family].rgb(state, b, x, w, skip)
    block = getattr(converted(state).synthesis, f"b{side}")
    with use_backend(backend):
        y = block.torgb(x, w)
        y = y if skip is None else y + upsample2d(skip, block.resample_filter)
    assert y.shape == expected.shape and relative(y, expected) < 1e-12


@pytest.mark.parametrize("b", [0, 3])
@each_family
def test_to_rgb_in_float32(family, b):
    state = random_state(family)
    x, w = inputs(b, CHANNELS[4 * 2**b], 4 * 2**b)
    expected = FAMILIES[family].rgb(doubled(state), b, x.double(), w.double())
    y = load_generator(state).synthesis.get_submodule(f"b{4 * 2**b}.torgb")(x, w)
    assert_close(y, expected, "modulated_conv2d", torch.float32)


@pytest.mark.parametrize("gain", [1.0, ROOT_HALF])
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.clamps])
def test_clamps(family, gain):
    """The bound of a style layer grows with its gain, that of toRGB is what it is."""
    state, bound = doubled(random_state(family)), 0.5
    model = converted(state, conv_clamp=bound)
    x, w = (t.double() for t in layer_inputs(3))
    y = layer_of(model, 3)(x, w, gain=gain)
    assert relative(y, FAMILIES[family].layer(state, 3, x, w, gain=gain, clamp=bound)) < 1e-12
    assert (y.abs() == bound * gain).any() and (y.abs() < bound * gain).any()
    x, w = (t.double() for t in inputs(2, CHANNELS[16], 16))
    y = model.synthesis.b16.torgb(x, w)
    assert relative(y, FAMILIES[family].rgb(state, 2, x, w, clamp=bound)) < 1e-12
    assert (y.abs() == bound).any() and (y.abs() < bound).any()


@each_family
def test_images(family):
    """Every layer in its place, with the latent that is its own."""
    state = doubled(random_state(family))
    ws = torch.randn(N, LATENTS, W, generator=torch.Generator().manual_seed(9)).double()
    y = converted(state).synthesis(ws)
    assert y.shape == (N, 3, SIZE, SIZE)
    assert relative(y, image(family, state, ws)) < (1e-7 if FAMILIES[family].scaled else 1e-12)
