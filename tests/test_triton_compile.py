"""Every config of the launch tables compiles for sm_80, sm_90 and sm_100 without a GPU, spills nothing and fits.

Most binaries differ in little, so a run without --slow compiles those alone that show something new: see ``_shows``.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton", reason="triton has no build for this platform")

from posgan_fast.kernels import (
    bias_act,
    epilogue2d,
    epilogue2d_backward,
    modulated_conv2d,
    prologue2d,
    upfirdn2d,
)

ARCHS = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MODULES = {
    "upfirdn2d": upfirdn2d,
    "bias_act": bias_act,
    "prologue2d": prologue2d,
    "epilogue2d": epilogue2d,
    "epilogue2d_backward": epilogue2d_backward,
    "modulated_conv2d": modulated_conv2d,
}
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}


class Build(NamedTuple):
    """One binary: op, index into its launch table, the fields of its KernelKey, dtype and architecture."""

    op: str
    config: int
    key: tuple
    dtype: str
    arch: int

    def __str__(self):
        fields = self.parts()[2]._asdict().items()
        return f"{self.op}-{self.config}-{self.dtype}-sm{self.arch}-" + ",".join(f"{k}={v}" for k, v in fields if v)

    def parts(self):
        module = MODULES[self.op]
        return module, module.TABLE[self.config], module.KernelKey(*self.key)


class Result(NamedTuple):
    registers: int
    stack: int
    local: int
    shared: int
    vectors: bool  # loads and stores of 16 bytes
    tensor_cores: bool


def _upfirdn2d_builds():
    # fw, fh, up, down: the hungriest first, which is built for every architecture
    filters = {
        "full": [(4, 4, 1, 1), (4, 4, 2, 1), (4, 4, 1, 2)],
        "separable": [(12, 12, 1, 1), (12, 12, 2, 1), (12, 12, 1, 2), (24, 24, 2, 1)],
        "looped": [(7, 7, 1, 1)],
    }
    for i, config in enumerate(upfirdn2d.TABLE):
        for dtype, itemsize in ITEMSIZE.items():
            if itemsize not in config.itemsizes:
                continue
            vec = 16 // itemsize if config.layout == "nhwc" else 1
            for k, (fw, fh, up, down) in enumerate(filters[config.kernel][: 1 if dtype == "bf16" else None]):
                for separable in (False, True) if config.kernel == "looped" else (config.kernel == "separable",):
                    fw, fh = (40, 40) if config.kernel == "looped" and separable else (fw, fh)
                    key = (config.layout != "nchw", separable, fw, fh, up, up, down, down, up - 1, vec)
                    assert upfirdn2d.KernelKey(*key, True).kernel == config.kernel
                    yield from (Build("upfirdn2d", i, (*key, True), dtype, a) for a in (ARCHS if k == 0 else (90,)))
                    if k == 0 and dtype == "fp32":
                        yield Build("upfirdn2d", i, (*key, False), dtype, 90)


def _served(table):
    """Yield every config with each dtype it serves: its index, the config, the dtype, the elements in 16 bytes."""
    for i, config in enumerate(table):
        for dtype, itemsize in ITEMSIZE.items():
            if itemsize == config.itemsize:
                yield i, config, dtype, 16 // itemsize


def _bias_act_builds():
    for i, _, dtype, vec in _served(bias_act.TABLE):
        for arch in ARCHS:
            for bias in (bias_act.BIAS_PER_ROW, bias_act.BIAS_PER_COLUMN):
                yield Build("bias_act", i, ("lrelu", 0, True, bias, True, vec, True), dtype, arch)
        if dtype == "bf16":  # which differs from fp16 by its conversions only
            continue
        yield Build("bias_act", i, ("lrelu", 1, True, bias_act.NO_BIAS, True, vec, True), dtype, 90)
        yield Build("bias_act", i, ("tanh", 2, False, bias_act.BIAS_PER_ROW, True, 1, True), dtype, 90)
        yield Build("bias_act", i, ("swish", 1, False, bias_act.BIAS_PER_COLUMN, True, vec, False), dtype, 90)


def _prologue2d_builds():
    for i, _, dtype, vec in _served(prologue2d.TABLE):
        # everything at once, the hungriest; padding alone; an encoding alone
        everything = [("instance", last, True, 2, False, True, True, vec if last else 1) for last in (False, True)]
        for arch in (90,) if dtype == "bf16" else ARCHS:  # bf16 differs from fp16 by its conversions only
            yield from (Build("prologue2d", i, (*key, True), dtype, arch) for key in everything)
        if dtype == "bf16":
            continue
        yield from (Build("prologue2d", i, (*key, False), dtype, 90) for key in everything)
        yield Build("prologue2d", i, ("reflect", False, True, 1, True, True, False, 1, True), dtype, 90)
        yield Build("prologue2d", i, ("zeros", False, True, 1, False, True, False, vec, True), dtype, 90)
        yield Build("prologue2d", i, ("zeros", True, True, 0, False, True, False, vec, True), dtype, 90)
        yield Build("prologue2d", i, ("zeros", True, False, 2, False, False, False, 1, True), dtype, 90)


def _epilogue2d_builds():
    for i, _, dtype, vec in _served(epilogue2d.TABLE):
        for channels_last in (False, True):
            # everything there is, vectors and not, in both widths of offsets
            full = ("lrelu", channels_last, True, epilogue2d.NOISE_PER_SAMPLE, True, True)
            archs = (90,) if dtype == "bf16" else ARCHS  # bf16 differs from fp16 by its conversions only
            yield from (Build("epilogue2d", i, (*full, vec, True), dtype, arch) for arch in archs)
            if dtype != "bf16":
                yield Build("epilogue2d", i, ("swish", *full[1:], 1, False), dtype, 90)
                one = ("linear", channels_last, False, epilogue2d.ONE_NOISE, False, False, vec, True)
                yield Build("epilogue2d", i, one, dtype, 90)


def _epilogue2d_backward_builds():
    for i, _, dtype, vec in _served(epilogue2d_backward.TABLE):
        for channels_last in (False, True):
            # every result, the slope read off the output; off the input; the sums of products alone
            everything = (True, True, True, True)
            training = ("lrelu", 1, channels_last, True, 0, False, *everything, True)
            smooth = ("swish", 2, channels_last, True, epilogue2d.NOISE_PER_SAMPLE, True, *everything, True)
            product = ("linear", 0, channels_last, False, 0, False, False, True, True, False, False)
            archs = (90,) if dtype == "bf16" else ARCHS  # bf16 differs from fp16 by its conversions only
            yield from (Build("epilogue2d_backward", i, (*training, vec, True), dtype, arch) for arch in archs)
            if dtype != "bf16":
                yield Build("epilogue2d_backward", i, (*smooth, vec, True), dtype, 90)
                yield Build("epilogue2d_backward", i, (*smooth, 1, False), dtype, 90)
                yield Build("epilogue2d_backward", i, (*product, vec, True), dtype, 90)


def _modulated_conv2d_builds():
    for i, config, dtype, vec in _served(modulated_conv2d.TABLE):
        out_vec = vec if config.filters % vec == 0 else 1
        noise = epilogue2d.NOISE_PER_SAMPLE
        # weights that hold the styles; styles apart; and a padding map
        for styles, border in ((False, False), (True, False), (True, True))[: 2 if config.side == 1 else 3]:
            layer = ("lrelu", config.side, styles, border, True, noise, True, True)
            yield from (Build("modulated_conv2d", i, (*layer, vec, out_vec, True), dtype, arch) for arch in ARCHS)
            if dtype != "bf16":  # which differs from fp16 by its conversions only
                yield Build("modulated_conv2d", i, (*layer, vec, out_vec, False), dtype, 90)
                yield from (Build("modulated_conv2d", i, (*layer, 1, 1, True), dtype, arch) for arch in ARCHS)
        bare = ("swish", config.side, True, False, False, epilogue2d.NO_NOISE, False, False, vec, out_vec, True)
        yield Build("modulated_conv2d", i, bare, dtype, 90)


BUILDS = [
    *_upfirdn2d_builds(),
    *_bias_act_builds(),
    *_prologue2d_builds(),
    *_epilogue2d_builds(),
    *_epilogue2d_backward_builds(),
    *_modulated_conv2d_builds(),
]


def _shows(build: Build) -> set[tuple]:
    """Return what a build shows: its config fits in its dtype, its branches compile, its op has its target. Tensor
    cores and shared memory differ by architecture, so for modulated_conv2d each config counts on each of them."""
    key = tuple((k, v) for k, v in build.parts()[2]._asdict().items() if k not in ("vec", "out_vec"))
    shown = {(build.op, key), (build.op, build.dtype), (build.op, build.arch)}
    if build.dtype != "bf16":  # which differs from fp16 by its conversions only
        shown.add((build.op, build.config, build.dtype))
    if build.op == "modulated_conv2d":
        shown.add((build.op, build.config, build.arch))
    return shown


def _parameters():
    seen: set[tuple] = set()
    for build in sorted(BUILDS, key=lambda build: build.arch != 90):
        new = _shows(build) - seen
        seen |= new
        yield pytest.param(build, id=str(build), marks=() if new else pytest.mark.slow)


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """Compile the builds of this run into an empty cache, over all cores if the suite does not use them already."""
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_fits"]
    builds = [item.callspec.params["build"] for item in items if not item.get_closest_marker("skip")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.delenv("TRITON_INTERPRET", raising=False)
        if len(builds) < 4 or "PYTEST_XDIST_WORKER" in os.environ:
            return dict(zip(builds, map(_build, builds), strict=True))
        workers = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            return dict(zip(builds, pool.map(_build, builds, chunksize=4), strict=True))


@pytest.mark.parametrize("build", [*_parameters()])
def test_fits(build, results):
    result = results[build]
    assert not isinstance(result, str), result
    assert (result.stack, result.local) == (0, 0), "spilled registers"
    assert result.shared <= SHARED_LIMIT[build.arch]
    _, config, key = build.parts()
    size = ITEMSIZE[build.dtype]
    if build.op == "upfirdn2d":
        assert result.registers <= config.options(size)["maxnreg"]
    if build.op == "modulated_conv2d":
        assert result.tensor_cores == (build.dtype != "fp32")
        assert result.vectors == (key.vec > 1 and key.out_vec > 1)
    elif key.vec > 1 and config.block_cols * size >= 16 and getattr(config, "kernel", "full") == "full":
        assert result.vectors, "no accesses of 16 bytes"


def test_every_config_serves_a_call():
    """Each config is selected for the sizes at its limit."""
    served = set()
    for b in BUILDS:
        module, config, key = b.parts()
        size = ITEMSIZE[b.dtype]
        if b.op == "modulated_conv2d":
            chosen = module.select(
                b.arch, size, config.side, min(config.channels, 2**40), config.filters, config.pixels
            )
        else:
            chosen = module.select(b.arch, *((key,) if b.op == "upfirdn2d" else ()), size, min(config.limit, 2**40))
        served.add((b.op, chosen))
    assert served == {(op, config) for op, module in MODULES.items() for config in module.TABLE}


def _build(build: Build) -> Result | str:
    """Compile in a worker; an exception comes back as text, since not all of Triton's can be pickled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, config, key = build.parts()
    constants = module.constants(key, config)
    if build.op == "upfirdn2d":
        kernel, options = module.KERNELS[config.kernel], config.options(ITEMSIZE[build.dtype])
    else:
        kernel, options = module.kernel, config.options()
    constants = constants | dict.fromkeys(name for name, given in _optional(build.op, key).items() if not given)
    signature = {name: _type(name, constants, build.dtype) for name in kernel.arg_names}
    index = kernel.arg_names.index
    aligned = {(index(name),): [["tt.divisibility", 16]] for name, kind in signature.items() if kind[0] == "*"}
    source = ASTSource(kernel, signature, {(index(name),): value for name, value in constants.items()}, aligned)
    try:
        binary = triton.compile(source, target=GPUTarget("cuda", build.arch, 32), options=options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    ptx = binary.asm["ptx"]
    loads, stores = (re.search(rf"{access}\.global\.(v4\.b32|v2\.b64)", ptx) for access in ("ld", "st"))
    loads = loads or re.search(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10", ptx)
    tensor_cores = re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx) is not None
    return Result(registers, stack, local, binary.metadata.shared, bool(loads and stores), tensor_cores)


def _optional(op: str, key: Any) -> dict[str, bool]:
    """Tell for each tensor that a call may leave out whether this one has it."""
    if op == "bias_act":
        return dict(b=key.bias, ref=key.grad, dy=key.grad == 2)
    if op == "epilogue2d":
        return dict(scale=key.scale, noise=key.noise, b=key.bias)
    if op == "epilogue2d_backward":
        given = dict(y=key.reads == 1, x=key.reads == 2 or key.products, scale=key.scale, noise=key.noise, b=key.bias)
        return given | dict(dx=key.dx, channel_sums=key.channels, pixel_sums=key.pixels)
    if op == "prologue2d":
        tables = dict.fromkeys(("columns", "rows"), key.encoding > 0)
        return dict(residual=key.residual, styles=key.styles, border=key.mode == "instance") | tables
    if op == "modulated_conv2d":
        return dict(styles=key.styles, border=key.border, dcoefs=key.dcoefs, noise=key.noise, bias=key.bias)
    return {}


def _type(name: str, constants: dict[str, Any], dtype: str) -> str:
    if name in constants:
        return "constexpr"
    wide = ("f", "scale", "dcoefs", "noise", "styles", "columns", "channel_sums", "pixel_sums")
    if name in wide or (name == "rows" and "HAS_X" in constants):
        return "*fp64" if dtype == "fp64" else "*fp32"
    if name in ("x", "y", "b", "bias", "ref", "dy", "dx", "out", "residual", "border", "weight"):
        return f"*{dtype}"
    return "fp64" if name in ("alpha", "gain", "clamp") else "i32"
