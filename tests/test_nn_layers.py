"""The results of each layer against float64 oracles, and the arguments that it refuses."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from test_nn import W_DIM, N, randn
from torch.nn import functional as F

from posgan_fast import functional as PF
from posgan_fast import nn


def _assert_equal(actual: torch.Tensor, expected) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected), rtol=1e-11, atol=1e-11)


SQRT2 = math.sqrt(2)


@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_equal_linear(act):
    module = nn.EqualLinear(6, 4, act=act, lr_multiplier=0.25, bias_init=2.0, dtype=torch.float64)
    x = randn(3, 7, 6).double()
    assert torch.all(module.bias == 2)
    expected = x.numpy() @ (module.weight.detach().numpy() * 0.25 / math.sqrt(6)).T + 0.5
    if act == "lrelu":
        expected = np.where(expected > 0, expected, 0.2 * expected) * SQRT2
    _assert_equal(module(x), expected)


@pytest.mark.parametrize("shape", [(7, 6), (3, 7, 6)], ids=str)
def test_equal_linear_with_a_gain(shape):
    """The gain reaches the bias too; two dimensions are a path of their own."""
    module = nn.EqualLinear(6, 4, lr_multiplier=0.25, bias_init=2.0, dtype=torch.float64)
    x = randn(*shape).double()
    expected = x.numpy() @ (module.weight.detach().numpy() * 0.25 / math.sqrt(6)).T + 0.5
    _assert_equal(module(x), expected)
    _assert_equal(module(x, gain=3.0), 3 * expected)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2)])
def test_equal_conv2d(k, up, down):
    torch.manual_seed(0)
    module = nn.EqualConv2d(4, 3, k, up=up, down=down, act="lrelu", clamp=1.0).double()
    module.bias.data.normal_()
    x = randn(N, 4, 6, 8).double()
    expected = oracle.modulated_conv2d(
        x, module.weight / math.sqrt(4 * k * k), torch.ones(N, 4), up, down, k // 2, None, module.resample_filter,
        False, up == 1, None, module.bias, "lrelu", 0.2, 0.5 * SQRT2, 0.5,
    )  # fmt: skip
    assert expected.shape == (N, 3, 6 * up // down, 8 * up // down)
    _assert_equal(module(x, gain=0.5), expected)


def test_modulated_conv2d_without_demodulation_scales_the_styles():
    module = nn.ModulatedConv2d(4, 3, demodulate=False).double()
    x, styles = randn(N, 4, 6, 5).double(), randn(N, 4).double()
    expected = oracle.modulated_conv2d(x, module.weight, styles / 6, padding=1, demodulate=False)
    _assert_equal(module(x, styles), expected)


def _style_conv(**kwargs) -> nn.StyleConv:
    torch.manual_seed(0)
    module = nn.StyleConv(4, 3, W_DIM, kwargs.pop("resolution"), clamp=2.0, **kwargs).double()
    for parameter in module.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return module.eval()


def _styles(module, w):
    return w @ (module.affine.weight / math.sqrt(W_DIM)).t() + module.affine.bias


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("mapped", [False, True])
def test_style_conv(up, mapped):
    module = _style_conv(resolution=(6 * up, 5 * up), up=up)
    x, w = randn(N, 4, 6, 5).double(), randn(N, W_DIM).double()
    pad_map = randn(N, 4 if up == 1 else 3, 17, 17, seed=3).double() if mapped else None
    expected = oracle.modulated_conv2d(
        x, module.weight, _styles(module, w), up, 1, 1, pad_map, module.resample_filter, True, up == 1,
        module.noise_const * module.noise_strength, module.bias, "lrelu", 0.2, 0.5 * SQRT2, 1.0,
    )  # fmt: skip
    _assert_equal(module(x, w, pad_map=pad_map, gain=0.5), expected)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("no_pad", [False, True])
def test_style_conv_with_interpolation(after, no_pad):
    padding, extra = (0, 4) if no_pad else (1, 0)
    module = _style_conv(resolution=9, up=2, up_after_conv=after, padding=padding, interp_pad=extra)
    x, w, noise = randn(N, 4, 6, 5).double(), randn(N, W_DIM).double(), randn(N, 1, 1, 1).double()

    def enlarge(t):
        return F.interpolate(t, [2 * side + extra for side in t.shape[2:]], mode="bilinear", align_corners=True)

    x_in = x if after else enlarge(x)
    y = oracle.modulated_conv2d(x_in, module.weight, _styles(module, w), padding=padding)
    y = enlarge(y) if after else y
    assert module.out_size(6, 5) == y.shape[2:]
    noise = randn(N, 1, *y.shape[2:]).double()
    y = y + noise * module.noise_strength.detach()
    (expected,) = oracle.bias_act(y, module.bias, 1, "lrelu", 0.2, SQRT2, 2.0)
    _assert_equal(module(x, w, noise=noise), expected)


def test_noise_modes():
    module = _style_conv(resolution=(6, 5))
    x, w = randn(N, 4, 6, 5).double(), randn(N, W_DIM).double()
    none = module(x, w, noise_mode="none")
    assert torch.equal(module(x, w, noise=torch.zeros(6, 5).double()), none)
    const = module(x, w)
    assert torch.equal(module(x, w, noise=module.noise_const), const) and not torch.equal(const, none)
    first, second = (module(x, w, noise_mode="random") for _ in range(2))
    assert not torch.equal(first, second)
    same = module(x[:1].expand(2, -1, -1, -1), w[:1].expand(2, -1), noise_mode="random")
    assert not torch.equal(same[0], same[1]), "noise is drawn for each sample"
    torch.manual_seed(0)
    assert torch.equal(const, module.train()(x, w, noise_mode="const"))
    drawn = module(x, w, noise_mode="random")
    torch.manual_seed(0)
    assert torch.equal(module(x, w), drawn), "anew in training"
    with pytest.raises(ValueError, match=r"^noise_mode: expected one of .*'const'.*got 'konst'"):
        module(x, w, noise_mode="konst")
    silent = nn.StyleConv(4, 3, W_DIM, 6, use_noise=False)
    assert not hasattr(silent, "noise_const")
    with pytest.raises(ValueError, match="^noise: expected None for a layer without noise"):
        silent(x.float(), w.float(), noise=torch.zeros(6, 5))


def test_constant_noise_continues_beyond_its_size():
    module = _style_conv(resolution=(3, 4))
    x, w = randn(N, 4, 6, 5).double(), randn(N, W_DIM).double()
    rows, columns = torch.arange(6) % 3, torch.arange(5) % 4
    assert torch.equal(module(x, w), module(x, w, noise=module.noise_const[rows][:, columns]))


def test_to_rgb():
    torch.manual_seed(0)
    module = nn.ToRGB(4, 3, W_DIM, clamp=0.5).double()
    module.bias.data.normal_()
    x, w = randn(N, 4, 6, 5).double(), randn(N, W_DIM).double()
    expected = oracle.modulated_conv2d(
        x, module.weight, _styles(module, w) / 2, demodulate=False, bias=module.bias, clamp=0.5
    )
    _assert_equal(module(x, w), expected)


def test_resampling():
    x = randn(N, 3, 6, 5).double()
    f = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    up = oracle.upfirdn2d(x, f, (3, 2), (1, 1), (3, 0, 2, 1), gain=6.0)
    _assert_equal(nn.Upsample2d((3, 2)).double()(x), up)
    _assert_equal(nn.Downsample2d(gain=0.5).double()(x), oracle.upfirdn2d(x, f, (1, 1), (2, 2), (1, 1, 1, 1), gain=0.5))
    _assert_equal(nn.Blur2d().double()(x), oracle.upfirdn2d(x, f, padding=(2, 1, 2, 1)))


def test_bias_act():
    module = nn.BiasAct(5, dim=-1, act="swish", gain=0.7, clamp=0.5, dtype=torch.float64)
    module.bias.data.normal_()
    x = randn(4, 3, 5).double()
    (expected,) = oracle.bias_act(x, module.bias, 2, "swish", 0, 0.7, 0.5)
    _assert_equal(module(x), expected)
    assert nn.BiasAct(5, bias=False, act="linear")(x) is x


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 2)])
def test_padding_space_conv2d(stride, groups):
    plain = torch.nn.Conv2d(4, 6, 3, stride, 1, groups=groups).eval()
    module = nn.PaddingSpaceConv2d.from_conv(plain)
    assert module.weight is plain.weight and module.bias is plain.bias and not module.training
    x, pad_map = randn(N, 4, 6, 5), randn(N, 4, 11, 12, seed=1)
    before = pad_map.clone()
    assert torch.equal(module(x), plain(x))
    torch.testing.assert_close(module(x, torch.zeros_like(pad_map)), plain(x))
    padded = pad_map[:, :, 1:9, 2:9].clone()  # the centre 8 x 7, offsets rounded down
    padded[:, :, 1:-1, 1:-1] = x
    torch.testing.assert_close(module(x, pad_map), F.conv2d(padded, plain.weight, plain.bias, stride, groups=groups))
    torch.testing.assert_close(module(x, PF.ring_from_map(pad_map, 6, 5)), module(x, pad_map))
    assert torch.equal(nn.InstancePad2d()(x, pad_map), padded) and torch.equal(pad_map, before)


@pytest.mark.parametrize("kernel_size, dilation", [(3, 1), (2, 2)])
def test_padding_space_conv2d_takes_the_same_padding_where_it_is_one(kernel_size, dilation):
    plain = torch.nn.Conv2d(4, 6, kernel_size, padding="same", dilation=dilation)
    x = randn(N, 4, 6, 5)
    assert torch.equal(nn.PaddingSpaceConv2d.from_conv(plain)(x), plain(x))


@pytest.mark.parametrize(
    "conv, message",
    [
        (torch.nn.Conv2d(4, 6, 3), r"^conv: expected padding 1 of zeros, got \(0, 0\) of 'zeros'"),
        (torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), r"of 'reflect'"),
        (torch.nn.Conv2d(4, 6, 5, padding="same"), r"got same of"),
        (torch.nn.Conv2d(4, 6, (3, 1), padding="same"), r"got same of"),
        (torch.nn.Conv2d(4, 6, 3, padding="same", dilation=2), r"got same of"),
        (torch.nn.Conv2d(4, 6, 3, padding="valid"), r"got valid of"),
    ],
)
def test_padding_space_conv2d_refuses(conv, message):
    with pytest.raises(ValueError, match=message):
        nn.PaddingSpaceConv2d.from_conv(conv)


def test_padding_space_conv2d_takes_plain_convolutions_only():
    """The new layer would not know what a subclass, a hook or a parametrization does."""
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(3, 4, 3, padding=1))
    for conv in (torch.nn.Linear(3, 4), type("Scaled", (torch.nn.Conv2d,), {})(3, 4, 3, padding=1), spectral):
        with pytest.raises(TypeError, match="^conv: expected a plain torch.nn.Conv2d, got"):
            nn.PaddingSpaceConv2d.from_conv(conv)
    hooked = torch.nn.Conv2d(3, 4, 3, padding=1)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(TypeError, match="^conv: expected a torch.nn.Conv2d without hooks"):
        nn.PaddingSpaceConv2d.from_conv(hooked)


@pytest.mark.parametrize("layout", ["mmgen", "paper"])
@pytest.mark.parametrize("base_size", [None, (4, 3)])
def test_encodings(layout, base_size):
    x = randn(N, 8, 6, 5).double()
    grid = PF.sinusoidal_encoding2d(6, 5, 8, layout=layout, base_size=base_size, dtype=torch.float64)
    _assert_equal(nn.SinusoidalEncoding2d(8, layout=layout, base_size=base_size)(x), x + grid)
    behind = torch.cat([x[:, :3], grid.expand(N, -1, -1, -1)], dim=1)
    _assert_equal(nn.SinusoidalEncoding2d(8, join="concat", layout=layout, base_size=base_size)(x[:, :3]), behind)
    grid = PF.cartesian_grid2d(6, 5, layout=layout, base_size=base_size, dtype=torch.float64)
    _assert_equal(nn.CartesianGrid2d(join="add", layout=layout, base_size=base_size)(x[:, :2]), x[:, :2] + grid)
    behind = torch.cat([x, grid.expand(N, -1, -1, -1)], dim=1)
    _assert_equal(nn.CartesianGrid2d(layout=layout, base_size=base_size)(x), behind)
    with pytest.raises(ValueError, match="^x: expected 8 channels to add the encoding to, got 3"):
        nn.SinusoidalEncoding2d(8)(x[:, :3])


def test_encodings_begin_at_one_and_expand_from_the_top_left():
    """The check values of the released code: positions from 1, width first, all sines before all cosines."""
    zeros = torch.zeros(1, 8, 7, 7, dtype=torch.float64)
    y = nn.SinusoidalEncoding2d(8)(zeros)
    first = [math.sin(1), math.sin(1e-4), math.cos(1), math.cos(1e-4)]
    second = [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)]
    torch.testing.assert_close(y[0, :, 1, 0], torch.tensor(first + second, dtype=torch.float64))
    assert torch.equal(nn.SinusoidalEncoding2d(8)(zeros[:, :, :4, :4]), y[:, :, :4, :4])


@pytest.mark.parametrize("encode, channels", [(None, 3), ("csg", 2), ("spe", 8)])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("weight", [1.0, 0.3, torch.tensor(0.3)])
def test_positional_noise2d(encode, channels, mode, weight):
    noise, image = randn(N, 1, 7, 8).double(), randn(N, channels, 7, 8, seed=1).double()
    grid = 0.0
    if encode == "csg":
        grid = PF.cartesian_grid2d(7, 8, dtype=torch.float64)
    elif encode == "spe":
        grid = PF.sinusoidal_encoding2d(7, 8, 8, dtype=torch.float64)
    module = nn.PositionalNoise2d(channels, encode=encode, padding=5, mode=mode)
    z = (noise.expand(-1, channels, -1, -1) + grid) * float(weight)
    kind = "constant" if mode == "zeros" else mode
    torch.testing.assert_close(module(noise, image, weight), F.pad(z + image, (5,) * 4, kind), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(noise, None, weight), F.pad(z, (5,) * 4, kind), rtol=1e-12, atol=1e-12)
    assert module(noise.float(), image).dtype == torch.float64, "the image's"
    with pytest.raises(ValueError, match=rf"^noise: expected 1 or {channels} channels"):
        module(randn(N, 5, 7, 8))
    with pytest.raises(ValueError, match="^image: expected shape"):
        module(noise, image[:, :, 1:])
    with pytest.raises(TypeError, match="^weight: expected a number, got str"):
        module(noise, image, "a")
    with pytest.raises(ValueError, match="^weight: expected a finite number, got nan"):
        module(noise, image, math.nan)


@pytest.mark.parametrize("group, channels", [(4, 1), (2, 3), (None, 1)])
def test_minibatch_std_strides_its_groups_over_the_batch(group, channels):
    x = randn(8, 6, 3, 4).double()
    count = 8 // (group or 8)
    expected = np.empty((8, channels, 3, 4))
    for i in range(8):
        members = x.numpy()[[j for j in range(8) if j % count == i % count]]
        for f in range(channels):
            part = members[:, f * 6 // channels : (f + 1) * 6 // channels]
            expected[i, f] = np.sqrt(part.var(axis=0) + 1e-8).mean()
    _assert_equal(nn.MinibatchStd(group, channels)(x), torch.cat([x, torch.from_numpy(expected)], dim=1))


def test_minibatch_std_of_small_and_odd_batches():
    module = nn.MinibatchStd(4)
    x = randn(3, 2, 2, 2).double()
    whole = nn.MinibatchStd(None)(x)
    assert torch.equal(module(x), whole), "a batch of three forms one group"
    with pytest.raises(ValueError, match="^x: expected a batch that is a multiple of group_size=4, got 6"):
        module(randn(6, 2, 2, 2))


X4, W5 = torch.zeros(1, 4, 6, 6), torch.zeros(1, 5)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: nn.EqualLinear(0, 4), ValueError, "^in_features: expected an int >= 1, got 0"),
        (lambda: nn.EqualLinear(3, 4, act="gelu"), ValueError, "^act: expected one of"),
        (lambda: nn.EqualLinear(3, 4, dtype="float32"), TypeError, "^dtype: expected one of .* got 'float32'"),
        (lambda: nn.StyleConv(3, 4, 5, 8, dtype=torch.int32), TypeError, "^dtype: expected one of .* got torch.int32"),
        (lambda: nn.EqualLinear(6, 4)(X4.to("meta")), ValueError, "^x: expected device cpu like weight, got meta"),
        (lambda: nn.EqualConv2d(4, 4)(X4.to("meta")), ValueError, "^x: expected device cpu like weight, got meta"),
        (lambda: nn.ToRGB(4, 3, 5)(X4, W5.to("meta")), ValueError, "^w: expected device cpu like x, got meta"),
        (lambda: nn.prepack(nn.ToRGB(4, 3, 5), "no"), TypeError, "^enable: expected a bool, got str"),
        (lambda: nn.EqualLinear(3, 4, lr_multiplier=0), ValueError, "^lr_multiplier: expected a number > 0, got 0"),
        (lambda: nn.EqualLinear(3, 4, lr_multiplier="1"), TypeError, "^lr_multiplier: expected a number, got str"),
        (lambda: nn.EqualLinear(3, 4, bias_init=None), TypeError, "^bias_init: expected a number, got NoneType"),
        (lambda: nn.EqualLinear(3, 4, bias=torch.ones(4)), TypeError, "^bias: expected a bool, got Tensor"),
        (lambda: nn.BiasAct(3, clamp=-1), ValueError, "^clamp: expected a number >= 0, got -1"),
        (lambda: nn.BiasAct(3, dim=1.0), TypeError, "^dim: expected an int, got float"),
        (lambda: nn.BiasAct(3, gain="1"), TypeError, "^gain: expected a number, got str"),
        (lambda: nn.BiasAct(3, alpha="1"), TypeError, "^alpha: expected a number, got str"),
        (lambda: nn.EqualConv2d(3, 4, clamp=-1), ValueError, "^clamp: expected a number >= 0, got -1"),
        (lambda: nn.StyleConv(3, 4, 5, 8, clamp="1"), TypeError, "^clamp: expected a number, got str"),
        (lambda: nn.ToRGB(3, 4, 5, clamp=-0.5), ValueError, "^clamp: expected a number >= 0, got -0.5"),
        (lambda: nn.EqualConv2d(3, 4, up=2, down=2), ValueError, "^down: expected 1 beside up=2, got 2"),
        (lambda: nn.StyleConv(3, 4, 5, 8, interp_pad=4), ValueError, "^interp_pad: expected 0 unless"),
        (lambda: nn.StyleConv(3, 4, 0, 8), ValueError, "^w_dim: expected an int >= 1, got 0"),
        (lambda: nn.StyleConv(3, 4, 5, (8,)), ValueError, r"^resolution: expected an int or \[height, width\], got 1"),
        (lambda: nn.ToRGB(3, 4, 5.0), TypeError, "^w_dim: expected an int, got float"),
        (lambda: nn.ModulatedConv2d(3, 4, padding=-1), ValueError, "^padding: expected an int >= 0, got -1"),
        (lambda: nn.ModulatedConv2d(3, 4, up=2, down=2), ValueError, "^down: expected 1 beside up=2, got 2"),
        (lambda: nn.PaddingSpaceConv2d(3, 4, 0), ValueError, "^kernel_size: expected an int >= 1, got 0"),
        (lambda: nn.PaddingSpaceConv2d(3, 0), ValueError, "^out_channels: expected an int >= 1, got 0"),
        (lambda: nn.PaddingSpaceConv2d(3, 4, stride=(1, 0)), ValueError, r"^stride\[1\]: expected an int >= 1, got 0"),
        (lambda: nn.SinusoidalEncoding2d(6), ValueError, "^channels: expected a multiple of 4, got 6"),
        (lambda: nn.SinusoidalEncoding2d(4), ValueError, "^channels: expected at least 8 in the layout 'mmgen'"),
        (lambda: nn.PositionalNoise2d(3, encode="csg"), ValueError, "^channels: expected 2 with encode='csg', got 3"),
        (lambda: nn.PositionalNoise2d(3, encode="spe"), ValueError, "^channels: expected an int >= 4, got 3"),
        (
            lambda: nn.PositionalNoise2d(3, base_size=(4, 4)),
            ValueError,
            "^base_size: expected None without",
        ),
        (lambda: nn.PositionalNoise2d(3, padding=(1, -1)), ValueError, "^padding: expected no negative number"),
        (lambda: nn.CartesianGrid2d(join="mul"), ValueError, r"^join: expected one of \('add', 'concat'\), got 'mul'"),
        (lambda: nn.PositionalNoise2d(3, mode="instance"), ValueError, "^mode: expected one of"),
        (lambda: nn.Upsample2d("2"), TypeError, "^factor: expected an int, got str"),
        (lambda: nn.MinibatchStd(0), ValueError, "^group_size: expected an int >= 1, got 0"),
        (lambda: nn.EqualConv2d("3", 4), TypeError, "^in_channels: expected an int, got str"),
        (lambda: nn.ToRGB(3, 4, 5, kernel_size=0), ValueError, "^kernel_size: expected an int >= 1, got 0"),
        (lambda: nn.CartesianGrid2d(base_size=4), TypeError, r"^base_size: expected \[height, width\], got int"),
        (lambda: nn.PositionalNoise2d(2, base_size=[4]), ValueError, r"^base_size: expected .*, got 1 values"),
        (lambda: nn.EqualConv2d(3, 4)(X4), ValueError, r"^x: expected 3 channels, got shape \(1, 4, 6, 6\)"),
        (lambda: nn.ModulatedConv2d(3, 4)(X4, W5), ValueError, r"^x: expected 3 channels, got shape \(1, 4, 6, 6\)"),
        (lambda: nn.StyleConv(3, 4, 5, 6)(X4, W5), ValueError, r"^x: expected 3 channels, got shape \(1, 4, 6, 6\)"),
        (lambda: nn.ToRGB(3, 4, 5)(X4, W5), ValueError, r"^x: expected 3 channels, got shape \(1, 4, 6, 6\)"),
        (lambda: nn.EqualConv2d(4, 4)(X4, gain="1"), TypeError, "^gain: expected a number, got str"),
        (lambda: nn.EqualConv2d(3, 4)(None), TypeError, "^x: expected a torch.Tensor, got NoneType"),
        (lambda: nn.EqualLinear(3, 4)(X4), ValueError, r"^x: expected shape \[\.\.\., 3\], got \(1, 4, 6, 6\)"),
        (lambda: nn.StyleConv(4, 4, 5, 6)(X4, X4), ValueError, r"^w: expected shape \(1, 5\), got \(1, 4, 6, 6\)"),
        (lambda: nn.StyleConv(4, 4, 5, 6)(X4, W5, noise=1.0), TypeError, "^noise: expected a torch.Tensor, got float"),
        (lambda: nn.StyleConv(4, 4, 5, 6)(X4[0], W5), ValueError, "^x: expected 4 dimensions"),
        (lambda: nn.ToRGB(4, 3, 5)(X4, None), TypeError, "^w: expected a torch.Tensor, got NoneType"),
        (lambda: nn.SinusoidalEncoding2d(8)(None), TypeError, "^x: expected a torch.Tensor, got NoneType"),
        (lambda: nn.PositionalNoise2d(3)([1.0]), TypeError, "^noise: expected a torch.Tensor, got list"),
        (lambda: nn.MinibatchStd()(X4[0]), ValueError, "^x: expected 4 dimensions"),
    ],
)
def test_refusals_name_the_argument(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_minibatch_std_of_one_in_half_precision():
    x = randn(1, 2, 2, 2).half().requires_grad_()
    y = nn.MinibatchStd()(x)
    assert y.dtype == torch.float16 and torch.autograd.grad(y.sum(), x)[0].isfinite().all()
