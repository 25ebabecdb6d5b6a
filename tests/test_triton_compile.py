"""Every row of the launch tables compiles for sm_80, sm_90 and sm_100 without a GPU, spills nothing and fits."""

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

from posgan_fast.kernels import bias_act, epilogue2d, modulated_conv2d, prologue2d, upfirdn2d

ARCHS = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MODULES = {
    "upfirdn2d": upfirdn2d,
    "bias_act": bias_act,
    "prologue2d": prologue2d,
    "epilogue2d": epilogue2d,
    "modulated_conv2d": modulated_conv2d,
}
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}


class Build(NamedTuple):
    """One binary: module and row of the launch table, what else it depends on, dtype and architecture."""

    op: str
    row: int
    spec: tuple
    dtype: str
    arch: int

    def __str__(self):
        spec = self.parts()[2]._asdict().items()
        return f"{self.op}-{self.row}-{self.dtype}-sm{self.arch}-" + ",".join(f"{k}={v}" for k, v in spec if v)

    def parts(self):
        module = MODULES[self.op]
        return module, module.TABLE[self.row], module.Spec(*self.spec)


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
    for i, row in enumerate(upfirdn2d.TABLE):
        for dtype, itemsize in ITEMSIZE.items():
            if itemsize not in row.itemsizes:
                continue
            vec = 16 // itemsize if row.layout == "nhwc" else 1
            for k, (fw, fh, up, down) in enumerate(filters[row.kernel][: 1 if dtype == "bf16" else None]):
                for separable in (False, True) if row.kernel == "looped" else (row.kernel == "separable",):
                    fw, fh = (40, 40) if row.kernel == "looped" and separable else (fw, fh)
                    spec = (row.layout != "nchw", separable, fw, fh, up, up, down, down, up - 1, vec)
                    assert upfirdn2d.Spec(*spec, False).kernel == row.kernel
                    yield from (Build("upfirdn2d", i, (*spec, False), dtype, a) for a in (ARCHS if k == 0 else (90,)))
                    if k == 0 and dtype == "fp32":
                        yield Build("upfirdn2d", i, (*spec, True), dtype, 90)


def _served(table):
    """Every row with each dtype it serves: its index, itself, the dtype, the elements in 16 bytes."""
    for i, row in enumerate(table):
        for dtype, itemsize in ITEMSIZE.items():
            if itemsize == row.itemsize:
                yield i, row, dtype, 16 // itemsize


def _bias_act_builds():
    for i, _, dtype, vec in _served(bias_act.TABLE):
        for arch in ARCHS:
            for bias in (bias_act.BIAS_PER_ROW, bias_act.BIAS_PER_COLUMN):
                yield Build("bias_act", i, ("lrelu", 0, True, bias, True, vec, False), dtype, arch)
        if dtype == "bf16":  # which differs from fp16 by its conversions only
            continue
        yield Build("bias_act", i, ("lrelu", 1, True, bias_act.NO_BIAS, True, vec, False), dtype, 90)
        yield Build("bias_act", i, ("tanh", 2, False, bias_act.BIAS_PER_ROW, True, 1, False), dtype, 90)
        yield Build("bias_act", i, ("swish", 1, False, bias_act.BIAS_PER_COLUMN, True, vec, True), dtype, 90)


def _prologue2d_builds():
    for i, _, dtype, vec in _served(prologue2d.TABLE):
        # everything at once, the hungriest; padding alone; an encoding alone
        everything = [("instance", last, True, 2, False, True, True, vec if last else 1) for last in (False, True)]
        for arch in (90,) if dtype == "bf16" else ARCHS:  # bf16 differs from fp16 by its conversions only
            yield from (Build("prologue2d", i, (*spec, False), dtype, arch) for spec in everything)
        if dtype == "bf16":
            continue
        yield from (Build("prologue2d", i, (*spec, True), dtype, 90) for spec in everything)
        yield Build("prologue2d", i, ("reflect", False, True, 1, True, True, False, 1, False), dtype, 90)
        yield Build("prologue2d", i, ("zeros", False, True, 1, False, True, False, vec, False), dtype, 90)
        yield Build("prologue2d", i, ("zeros", True, True, 0, False, True, False, vec, False), dtype, 90)
        yield Build("prologue2d", i, ("zeros", True, False, 2, False, False, False, 1, False), dtype, 90)


def _epilogue2d_builds():
    for i, _, dtype, vec in _served(epilogue2d.TABLE):
        for channels_last in (False, True):
            # everything there is, vectors and not, in both widths of offsets
            full = ("lrelu", channels_last, True, epilogue2d.NOISE_PER_SAMPLE, True, True)
            archs = (90,) if dtype == "bf16" else ARCHS  # bf16 differs from fp16 by its conversions only
            yield from (Build("epilogue2d", i, (*full, vec, False), dtype, arch) for arch in archs)
            if dtype != "bf16":
                yield Build("epilogue2d", i, ("swish", *full[1:], 1, True), dtype, 90)
                one = ("linear", channels_last, False, epilogue2d.ONE_NOISE, False, False, vec, False)
                yield Build("epilogue2d", i, one, dtype, 90)


def _modulated_conv2d_builds():
    for i, row, dtype, vec in _served(modulated_conv2d.TABLE):
        out_vec = vec if row.filters % vec == 0 else 1
        noise = modulated_conv2d.NOISE_PER_SAMPLE
        for border in (False, True)[: 1 if row.side == 1 else 2]:
            layer = ("lrelu", row.side, border, True, noise, True, True)
            yield from (Build("modulated_conv2d", i, (*layer, vec, out_vec, False), dtype, arch) for arch in ARCHS)
            if dtype != "bf16":  # which differs from fp16 by its conversions only
                yield Build("modulated_conv2d", i, (*layer, vec, out_vec, True), dtype, 90)
                yield from (Build("modulated_conv2d", i, (*layer, 1, 1, False), dtype, arch) for arch in ARCHS)
        bare = ("swish", row.side, False, False, modulated_conv2d.NO_NOISE, False, False, vec, out_vec, False)
        yield Build("modulated_conv2d", i, bare, dtype, 90)


BUILDS = [
    *_upfirdn2d_builds(),
    *_bias_act_builds(),
    *_prologue2d_builds(),
    *_epilogue2d_builds(),
    *_modulated_conv2d_builds(),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What became of each build; all at once, over the cores there are, into an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.delenv("TRITON_INTERPRET", raising=False)
        workers = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            return dict(zip(BUILDS, pool.map(_build, BUILDS, chunksize=4), strict=True))


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_fits(build, results):
    result = results[build]
    assert not isinstance(result, str), result
    assert (result.stack, result.local) == (0, 0), "spilled registers"
    assert result.shared <= SHARED_LIMIT[build.arch]
    _, row, spec = build.parts()
    if build.op == "upfirdn2d":
        assert result.registers <= row.options(ITEMSIZE[build.dtype])["maxnreg"]
    if build.op == "modulated_conv2d":
        assert result.tensor_cores == (build.dtype != "fp32")
        assert result.vectors == (spec.vec > 1 and spec.out_vec > 1)
    elif spec.vec > 1 and row.cols * ITEMSIZE[build.dtype] >= 16 and getattr(row, "kernel", "full") == "full":
        assert result.vectors, "no accesses of 16 bytes"


def test_every_row_serves_a_call():
    """The rows that select returns, over the sizes at every row's limit and beyond, are all the rows there are."""
    served = set()
    for b in BUILDS:
        module, row, spec = b.parts()
        size = ITEMSIZE[b.dtype]
        if b.op == "modulated_conv2d":
            chosen = module.select(b.arch, size, row.side, min(row.channels, 2**40), row.filters, row.pixels)
        else:
            chosen = module.select(b.arch, *((spec,) if b.op == "upfirdn2d" else ()), size, min(row.limit, 2**40))
        served.add((b.op, chosen))
    assert served == {(op, row) for op, module in MODULES.items() for row in module.TABLE}


def _build(build: Build) -> Result | str:
    """Compile in a worker; an exception comes back as text, since not all of Triton's can be pickled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, row, spec = build.parts()
    if build.op == "upfirdn2d":
        kernel, constants, options = module.KERNELS[row.kernel], spec.constants(row), row.options(ITEMSIZE[build.dtype])
    elif build.op == "prologue2d":
        given = dict(residual=spec.residual, styles=spec.styles, border=spec.mode == "instance")
        given |= dict.fromkeys(("columns", "rows"), spec.encoding > 0)
        absent = [name for name, there in given.items() if not there]
        kernel, constants, options = module.kernel, spec.constants(row) | dict.fromkeys(absent), row.options()
    elif build.op == "modulated_conv2d":
        given = dict(border=spec.border, scale=spec.scale, noise=spec.noise, b=spec.bias)
        absent = [name for name, there in given.items() if not there]
        kernel, constants, options = module.kernel, spec.constants(row) | dict.fromkeys(absent), row.options()
    else:
        parts = {"b": spec.bias}
        if build.op == "bias_act":
            parts |= {"ref": spec.order, "dy": spec.order == 2}
        else:
            parts |= {"scale": spec.scale, "noise": spec.noise}
        absent = [name for name, there in parts.items() if not there]
        kernel, constants, options = module.kernel, spec.constants(row) | dict.fromkeys(absent), row.options()
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


def _type(name: str, constants: dict[str, Any], dtype: str) -> str:
    if name in constants:
        return "constexpr"
    if name in ("f", "scale", "noise", "styles", "columns") or (name == "rows" and "HAS_X" in constants):
        return "*fp64" if dtype == "fp64" else "*fp32"
    if name in ("x", "y", "b", "ref", "dy", "out", "residual", "border", "weight"):
        return f"*{dtype}"
    return "fp64" if name in ("alpha", "gain", "clamp") else "i32"
