"""Files that would take memory, or time, out of proportion to their size."""

from __future__ import annotations

import io
import pickle
import tracemalloc

import pytest
import torch
from test_pickles import Call, persistent, pickled

from posgan_fast.models import CheckpointError, UnsafeFileError, load_generator
from posgan_fast.models.pickles import LEGACY, read_pickle


def again(function: str, argument: object, times: int, *more: object, state: object = None) -> bytes:
    """One large object, named in many calls."""
    calls = [Call(function, argument, *more, state=state) for _ in range(times)]
    for call in calls:
        call.function, call.arguments = calls[0].function, calls[0].arguments
    return pickled(calls)


LARGE: dict[str, object] = {"list": [None] * 4000, "bytes": b"\0" * 24_000, "ints": list(range(10_000))}
LARGE |= {"pairs": [(i, None) for i in range(5000)]}
STORAGE = torch.zeros(6000)._typed_storage().__reduce__()[1][0]
SCALAR = Call("torch.storage._load_from_bytes", torch.zeros(1)._typed_storage().__reduce__()[1][0])
GROWING = {  # files of at most 64 KB that would take 10 MB to 1 GB
    "torch.Size": again("torch.Size", LARGE["list"], 2000),
    "torch.Size of bytes": again("torch.Size", LARGE["bytes"], 2000),
    "torch.Size of text": again("torch.Size", "\u4e00" * 15_000, 500),
    "set": again("builtins.set", LARGE["ints"], 2000),
    "OrderedDict": again("collections.OrderedDict", LARGE["pairs"], 1500),
    "storage": again("torch.storage._load_from_bytes", STORAGE, 2000),
    "tensor": again("torch._utils._rebuild_tensor_v2", SCALAR, 9000, 0, (), ()),
    "sets": b"\x80\x04](" + pickle.EMPTY_SET * 60_000 + b"e.",
    "memo": b"\x80\x04N" + pickle.MEMOIZE * 60_000 + b".",
}
STEPS = {  # what the machine itself keeps for a step, or a step adds to what is there
    "marks": pickle.MARK * 100_000,
    "list": b"](" + pickle.NONE * 200_000 + b"e.",
    "set": b"K\x01\x94\x8f(" + b"h\x00" * 150_000 + b"\x90.",
}
GROWING |= {f"step: {name}": b"\x80\x04" + body for name, body in STEPS.items()}
MATCH = "would take more than .* bytes of memory, too much for a file of|torch.Size: expected a list or a tuple"


@pytest.mark.parametrize("kind", GROWING)
def test_files_that_grow(kind):
    assert len(GROWING[kind]) < 1 << (19 if kind.startswith("step") else 16)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=MATCH):
            read_pickle(io.BytesIO(GROWING[kind]))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["numeric._frombuffer", "multiarray._reconstruct"])
def test_arrays_stay_as_small_as_they_are_in_the_file(name):
    f2 = Call("numpy.dtype", "f2")
    arrays = again(f"numpy.core.{name}", LARGE["bytes"], 1500, f2, (1,), state=(1, (1,), f2, False, LARGE["bytes"]))
    tracemalloc.start()
    try:
        assert len(read_pickle(io.BytesIO(arrays))) == 1500
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_storage_of_every_type_and_no_call_inside():
    for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64):
        for value in (torch.arange(5).to(dtype), torch.zeros(0, dtype=dtype)):
            assert torch.equal(read_pickle(io.BytesIO(pickle.dumps(value, 4))), value)
    nested = b"\x80\x02ctorch.storage\n_load_from_bytes\n."
    for inside in (nested, b"\x80\x02cbuiltins\nset\n)R."):
        with pytest.raises(UnsafeFileError, match="the bytes of a tensor: refused, asks for"):
            read_pickle(io.BytesIO(pickled(Call("torch.storage._load_from_bytes", LEGACY + inside))))


@pytest.mark.parametrize("kind", [set, dict.fromkeys])
def test_keys_of_one_hash(kind):
    """These would take time quadratic in their number."""
    assert read_pickle(io.BytesIO(pickle.dumps(kind([3, 1 - (1 << 32), "a"]), 4))) == kind([3, 1 - (1 << 32), "a"])
    for sign in (1, -1):
        same = kind(sign * (i * (2**61 - 1) + 7) for i in range(100))
        with pytest.raises(CheckpointError, match="key of more than 32 bits"):
            read_pickle(io.BytesIO(pickle.dumps(same, 4)))


def test_long_names():
    """Each store is tried under short and long prefixes; every module that holds one would copy it."""
    tree = persistent("G", {})
    for _ in range(4):
        tree = persistent("G", {"_modules": {"a" * 300: tree}})
    trees = [tree, *(persistent("G", {store: {"a" * 60_000: None}}) for store in ("_parameters", "_buffers"))]
    trees.append(persistent("G", {"_modules": {str(i): trees[1] for i in range(3000)}}))
    for tree in trees:
        data = read_pickle(io.BytesIO(pickled(tree)))
        with pytest.raises(CheckpointError, match="a name of more than 1000 characters") as caught:
            data.state_dict()
        assert len(str(caught.value)) < 300
    state = {"synthesis.b4.conv1.weight" + "a" * 60_000: torch.zeros(1)}
    with pytest.raises(CheckpointError, match="no StyleGAN2 generator .* it holds synthesis") as caught:
        load_generator(state)
    assert len(str(caught.value)) < 300


def test_parameters_shared_by_many_modules():
    """2 ** 12 modules in the tree, each with the same 2000 parameters."""
    stores: dict = {"_parameters": {str(i): None for i in range(2000)}}
    tree = persistent("G", stores)
    for _ in range(12):
        tree = persistent("G", {**stores, "_modules": {"a": tree, "b": tree}})
    data = read_pickle(io.BytesIO(pickled(tree)))
    with pytest.raises(CheckpointError, match="more than 20000 modules and tensors"):
        data.state_dict()
