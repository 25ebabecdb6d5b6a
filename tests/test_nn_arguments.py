"""The arguments that a network of other layers needs to be rewritten layer by layer, against float64 oracles."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from test_nn import W_DIM, N, randn
from torch.nn import functional as F

from posgan_fast import nn

F4 = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).double() / 64
SQRT2 = math.sqrt(2)


def close(actual: torch.Tensor, expected) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected), rtol=1e-11, atol=1e-11)


def styled(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(N, 4, *size).double(), randn(N, W_DIM, seed=1).double()


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return module


def test_a_style_layer_without_resolution_keeps_no_noise():
    x, w = styled(6, 5)
    layer = shaken(nn.StyleConv(4, 3, W_DIM))
    assert "noise_const" not in layer.state_dict() and "noise_strength" in layer.state_dict()
    with pytest.raises(ValueError, match="^noise_mode: expected 'random', 'none' or a tensor as noise .* got 'const'"):
        layer(x, w, noise_mode="const")
    kept = nn.StyleConv(4, 3, W_DIM, (6, 5)).double()
    kept.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(layer(x, w, noise=kept.noise_const), kept(x, w, noise_mode="const"))
    assert torch.equal(layer(x, w, noise_mode="none"), kept(x, w, noise_mode="none"))
    torch.manual_seed(1)
    drawn = layer(x, w, noise_mode="random")
    torch.manual_seed(1)
    assert torch.equal(drawn, kept(x, w, noise_mode="random"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["const", "random", "none", None])
def test_noise_mode_of_the_layer(mode, training):
    """It holds where the call has none of its own; without either, training draws and evaluation does not."""
    x, w = styled(6, 5)
    layer = shaken(nn.StyleConv(4, 3, W_DIM, (6, 5), noise_mode=mode)).train(training)
    meant = mode or ("random" if training else "const")
    torch.manual_seed(1)
    actual = layer(x, w, noise_mode=None)
    torch.manual_seed(1)
    assert torch.equal(actual, layer(x, w, noise_mode=meant))
    assert torch.equal(layer(x, w, noise_mode="none"), layer(x, w, noise=torch.zeros(6, 5).double()))


NO_FILTER = {
    "StyleConv": lambda **kwargs: nn.StyleConv(4, 3, W_DIM, (6, 5), **kwargs),
    "StyleConv, interpolated": lambda **kwargs: nn.StyleConv(4, 3, W_DIM, (12, 10), up=2, up_after_conv=True, **kwargs),
    "ModulatedConv2d": lambda **kwargs: nn.ModulatedConv2d(4, 3, w_dim=W_DIM, **kwargs),
    "EqualConv2d": lambda **kwargs: nn.EqualConv2d(4, 3, **kwargs),
}


@pytest.mark.parametrize("name", NO_FILTER)
def test_a_layer_that_does_not_resample_needs_no_filter(name):
    """The default keeps the key, so that states written before load."""
    default, bare = NO_FILTER[name](), NO_FILTER[name](resample_filter=None)
    assert set(default.state_dict()) - set(bare.state_dict()) == {"resample_filter"}
    state = {key: value for key, value in default.state_dict().items() if key != "resample_filter"}
    bare.load_state_dict(state)
    inputs = (randn(N, 4, 6, 5),) if name == "EqualConv2d" else (randn(N, 4, 6, 5), randn(N, W_DIM))
    mode = {"noise_mode": "const"} if name.startswith("StyleConv") else {}
    assert torch.equal(default(*inputs, **mode), bare(*inputs, **mode))


def test_no_filter_is_the_identity_where_a_layer_resamples():
    for layer in (
        nn.StyleConv(4, 3, W_DIM, up=2, resample_filter=None),
        nn.EqualConv2d(4, 3, down=2, resample_filter=None),
    ):
        assert torch.equal(layer.resample_filter, torch.ones(1, 1))


def test_modulated_conv2d_makes_its_styles_of_the_latent():
    x, w = styled(6, 5)
    for demodulate in (True, False):
        layer = shaken(nn.ModulatedConv2d(4, 3, w_dim=W_DIM, demodulate=demodulate))
        styles = w @ (layer.affine.weight / math.sqrt(W_DIM)).t() + layer.affine.bias
        styles = styles if demodulate else styles / 6
        close(layer(x, w), oracle.modulated_conv2d(x, layer.weight, styles, padding=1, demodulate=demodulate))
    with pytest.raises(ValueError, match=r"^styles: expected shape \(2, 5\), got \(2, 4\)"):
        layer(x, w[:, :4])


def test_eps_shows_where_styles_are_small():
    x, w = styled(6, 5)
    layer = shaken(nn.StyleConv(4, 3, W_DIM, eps=0.5))
    alone = nn.ModulatedConv2d(4, 3, w_dim=W_DIM, eps=0.5).double()
    alone.load_state_dict(layer.state_dict(), strict=False)
    styles = w @ (layer.affine.weight / math.sqrt(W_DIM)).t() + layer.affine.bias
    d = ((layer.weight[None] * styles[:, None, :, None, None]).square().sum((2, 3, 4)) + 0.5).rsqrt()
    y = F.conv2d(x * styles[:, :, None, None], layer.weight, padding=1) * d[:, :, None, None]
    close(alone(x, w), y.detach())
    expected = F.leaky_relu(y + layer.bias[:, None, None], 0.2) * SQRT2
    close(layer(x, w, noise_mode="none"), expected.detach())


@pytest.mark.parametrize("padding", [0, 2, (-1, 0), (1, 2, 0, -1)])
def test_blur2d_with_padding(padding):
    x = randn(N, 3, 6, 5).double()
    x0, x1, y0, y1 = {0: (0,) * 4, 2: (2,) * 4, (-1, 0): (-1, -1, 0, 0)}.get(padding, padding)
    expected = oracle.upfirdn2d(x, F4, padding=(2 + x0, 1 + x1, 2 + y0, 1 + y1), gain=4.0)
    assert expected.shape == (N, 3, 6 + y0 + y1, 5 + x0 + x1)
    close(nn.Blur2d(padding=padding, gain=4).double()(x), expected)


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 2), (2, 0), (2, 1), (3, 2)])
def test_equal_conv2d_with_stride_and_padding(k, stride, padding):
    layer = shaken(nn.EqualConv2d(4, 3, k, stride=stride, padding=padding, act="lrelu"))
    x = randn(N, 4, 7, 9).double()
    y = F.conv2d(x, layer.weight / math.sqrt(4 * k * k), layer.bias, stride, padding)
    close(layer(x), (F.leaky_relu(y, 0.2) * SQRT2).detach())


@pytest.mark.parametrize("up, down", [(2, 1), (1, 2)])
@pytest.mark.parametrize("padding", [0, 2])
def test_equal_conv2d_pads_the_resampled_image(up, down, padding):
    layer = shaken(nn.EqualConv2d(4, 3, up=up, down=down, padding=padding))
    x = randn(N, 4, 6, 8).double()
    expected = oracle.modulated_conv2d(
        x, layer.weight / 6, torch.ones(N, 4), up, down, padding, None, F4, False, up == 1, None, layer.bias
    )
    close(layer(x), expected)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1)])
def test_to_rgb_adds_the_smaller_image(taps):
    x, w = styled(6, 4)
    layer = shaken(nn.ToRGB(4, 3, W_DIM, clamp=0.5, resample_filter=taps))
    skip = randn(N, 3, 3, 2).double()
    f = torch.outer(torch.tensor(taps), torch.tensor(taps)).double()
    t = len(taps)
    enlarged = oracle.upfirdn2d(skip, f / f.sum(), (2, 2), padding=((t + 1) // 2, (t - 2) // 2) * 2, gain=4.0)
    close(layer(x, w, skip), layer(x, w).detach() + torch.as_tensor(enlarged))
    assert layer.to(torch.bfloat16)(x.bfloat16(), w.bfloat16(), skip.float()).dtype == torch.float32


def test_to_rgb_keeps_its_state():
    """The filter is no part of it; it follows the module all the same."""
    layer = nn.ToRGB(4, 3, W_DIM)
    assert set(layer.state_dict()) == {"weight", "bias", "affine.weight", "affine.bias"}
    assert layer.double().resample_filter.dtype == torch.float64


MODULES = {
    "ModulatedConv2d": (lambda: nn.ModulatedConv2d(4, 3, w_dim=W_DIM, eps=0.1), ((4, 6, 5), (W_DIM,))),
    "EqualConv2d": (lambda: nn.EqualConv2d(4, 3, stride=2, padding=2, act="lrelu"), ((4, 7, 6),)),
    "ToRGB": (lambda: nn.ToRGB(4, 3, W_DIM), ((4, 6, 4), (W_DIM,), (3, 3, 2))),
    "Blur2d": (lambda: nn.Blur2d(padding=(1, -1)), ((3, 6, 5),)),
}


@pytest.mark.parametrize("name", MODULES)
def test_derivatives_and_compilation(name):
    build, shapes = MODULES[name]
    layer = shaken(build())
    inputs = [randn(N, *shape, seed=i).double().requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)
    torch._dynamo.reset()
    close(torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs), layer(*inputs).detach())


X, W = torch.zeros(1, 4, 6, 6), torch.zeros(1, 5)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: nn.StyleConv(4, 3, 5, noise_mode="konst"), ValueError, "^noise_mode: expected one of .*got 'konst'"),
        (lambda: nn.StyleConv(4, 3, 5, noise_mode=1), TypeError, "^noise_mode: expected one of .*got int"),
        (lambda: nn.StyleConv(4, 3, 5, eps=-1), ValueError, "^eps: expected a number >= 0, got -1"),
        (lambda: nn.ModulatedConv2d(4, 3, w_dim=0), ValueError, "^w_dim: expected an int >= 1, got 0"),
        (lambda: nn.ModulatedConv2d(4, 3, eps="0"), TypeError, "^eps: expected a number, got str"),
        (lambda: nn.Blur2d(padding=1.5), TypeError, "^padding: expected an int, got float"),
        (lambda: nn.Blur2d(padding=(1, 2, 3)), ValueError, r"^padding: expected an int, \[x, y\] or .* got 3 values"),
        (lambda: nn.EqualConv2d(4, 3, padding=-1), ValueError, "^padding: expected an int >= 0, got -1"),
        (lambda: nn.EqualConv2d(4, 3, stride=0), ValueError, "^stride: expected an int >= 1, got 0"),
        (lambda: nn.EqualConv2d(4, 3, stride=2, down=2), ValueError, "^stride: expected 1 beside up=1 and down=2"),
        (lambda: nn.EqualConv2d(4, 3, 7, padding=0)(X), ValueError, "^x: expected at least the size of the kernel"),
        (lambda: nn.EqualConv2d(4, 3, 7, padding=0, stride=2)(X), ValueError, "^x: expected at least the size of the"),
        (lambda: nn.ToRGB(4, 3, 5)(X, W, torch.zeros(1, 3, 6, 6)), ValueError, r"^skip: expected shape \(1, 3, 3, 3\)"),
        (lambda: nn.ToRGB(4, 3, 5)(X, W, 1), TypeError, "^skip: expected a torch.Tensor, got int"),
        (lambda: nn.ToRGB(4, 3, 5)(X[:, :, 1:], W, X), ValueError, "^skip: expected None for .* odd size 5 x 6"),
        (lambda: nn.ToRGB(4, 3, 5, resample_filter=None)(X, W, X), ValueError, "^skip: expected None for a layer"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(build, error, message):
    with pytest.raises(error, match=message):
        build()
