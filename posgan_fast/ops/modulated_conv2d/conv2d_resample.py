"""The convolution between the stages: plain, or resampled by a filter, with the paddings of the NVlabs code.

``padding`` counts pixels of the upsampled image; the filter's own are added. Autograd, backends and dtypes are those of
the ops that are called.
"""

from __future__ import annotations

from .. import epilogue2d, prologue2d, upfirdn2d
from ..common.records import Resample
from ..conv2d.convolution import convolve


def downsample_conv2d(x, w, styles, down, padding, pad_map, f, backend):
    """Scale by the styles unless they are None, pad or filter, convolve with w [O, I, kh, kw] by stride ``down``."""
    if down > 1:
        z, stride = filtered(x, w, styles, down, padding, f, backend)
        return convolve(z, w, stride=stride, backend=backend)
    if pad_map is not None:
        z = prologue2d.prologue2d(x, styles, padding=1, mode="instance", pad_map=pad_map, backend=backend)
        return convolve(z, w, backend=backend)
    return convolve(prologue2d.prologue2d(x, styles, backend=backend), w, padding=padding, backend=backend)


def filtered(x, w, styles, down, padding, f, backend):
    """Scale, pad and filter the input of a convolution; return it and the stride of the convolution.

    A 1x1 kernel commutes with the decimation, which then comes first.
    """
    fw, fh = f.shape[-1], f.shape[0]
    pad = [padding + (t - down + i) // 2 for t in (fw, fh) for i in (1, 0)]
    early = down if w.shape[2:] == (1, 1) else 1
    if styles is None:
        z = upfirdn2d.upfirdn2d(x, f, down=early, padding=pad, backend=backend)
    else:
        z = epilogue2d.epilogue2d(x, f, styles, down=early, padding=pad, backend=backend)
    return z, down // early


def upsample_conv2d(z, w, up, padding, pad_map, f, backend):
    """Convolve, transposed, with w [I, O, kh, kw]; returns the result and the resampling that completes it.

    A 1x1 kernel commutes with the insertion of zeros, so it is convolved before, with w [O, I, 1, 1].
    """
    pad, cut = up_padding(w, up, padding, f)
    if w.shape[2:] == (1, 1):
        return convolve(z, w, backend=backend), Resample((up, up), (1, 1), pad, False, float(up * up))
    y = convolve(z, w, stride=up, padding=cut, transposed=True, backend=backend)
    return surrounded(y, up, pad, pad_map, backend)


def surrounded(y, up, pad, pad_map, backend):
    """Surround the result of a transposed convolution by a map unless it is None; return it and the resampling that
    completes it, whose padding is ``pad`` or a pixel less."""
    if pad_map is not None:
        y = prologue2d.instance_pad2d(y, pad_map, backend=backend)
        pad = [p - 1 for p in pad]
    return y, Resample((1, 1), (1, 1), pad, False, float(up * up))


def up_padding(w, up, padding, f):
    """Return the padding of the filter [x0, x1, y0, y1] and what the transposed convolution crops [height, width]."""
    (fw, fh), (kh, kw) = (f.shape[-1], f.shape[0]), w.shape[2:]
    pad = [padding + p for t in (fw, fh) for p in ((t + up - 1) // 2, (t - up) // 2)]
    if (kh, kw) == (1, 1):
        return pad, [0, 0]
    pad = [pad[0] - kw + 1, pad[1] - kw + up, pad[2] - kh + 1, pad[3] - kh + up]
    cut = [max(min(-pad[2], -pad[3]), 0), max(min(-pad[0], -pad[1]), 0)]
    return [pad[0] + cut[1], pad[1] + cut[1], pad[2] + cut[0], pad[3] + cut[0]], cut


def surrounded_size(size, w, up, padding, f):
    """Return the size that a padding map surrounds: that of the input, or with ``up`` of the transposed convolution."""
    if up == 1:
        return list(size)
    _, cut = up_padding(w, up, padding, f)
    return [(s - 1) * up + k - 2 * p for s, k, p in zip(size, w.shape[2:], cut, strict=True)]


def out_size(x, weight, up, down, padding, f):
    """Return the height and width of the result."""
    kernel, taps = weight.shape[2:], (1, 1) if f is None else (f.shape[0], f.shape[-1])
    # the upsampled image, padded and filtered; one of up and down is 1
    grow = [2 * padding + (t + up - down) // 2 + (t - up * down) // 2 - (t - 1) for t in taps]
    h, w = ((s * up + g - k) // down + 1 for s, g, k in zip(x.shape[2:], grow, kernel, strict=True))
    return h, w
