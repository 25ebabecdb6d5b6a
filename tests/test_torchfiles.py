"""Files of torch: the same tensors as torch reads, whatever lies beside them, and nothing of it runs."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import enum
import functools
import io
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from stylegan2_states import generator, in_family
from test_pickles import Call, Named, pickled

from posgan_fast.models import CheckpointError, UnsafeFileError, load_generator, read_checkpoint
from posgan_fast.models.opcodes import Unread
from posgan_fast.models.pickles import LEGACY

ZIPPED = [True, False]


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    pass


class Opts:
    def __init__(self) -> None:
        self.path, self.lambdas = pathlib.Path("/data"), [1.0]


SETTINGS = {
    "namespace": argparse.Namespace(path=pathlib.Path("x"), array=np.arange(3), device=torch.device("cuda"), size=8),
    "path": pathlib.PurePosixPath("a/b"),
    "array": np.ones((2, 3)),
    "objects": np.array([None, {}], dtype=object),
    "text": np.array(["a", "b"]),
    "scalar": np.float64(3.5),
    "random": np.random.default_rng(0).bit_generator.state,
    "date": datetime.datetime(2020, 1, 1),
    "enum": Colour.RED,
    "config": Config(a=1),
    "opts": Opts(),
    "partial": functools.partial(int, base=2),
    "class": Opts,
    "function": pickled,
    "method": "x".join,
    "dtype": torch.float16,
    "size": torch.Size([1, 2]),
    "keys": {(1, 2): 3, 1 << 40: 4, 2.5: 5, None: 6, "a": 7},
    "sets": [{(1, 2)}, frozenset([1])],
    "complex": 1 + 2j,
    "range": range(3),
    "slice": slice(1, 2),
    "bytes": [b"abc", bytearray(b"abc")],
    "integers": [1 << 3000, -(1 << 70)],
    "counter": collections.Counter("aab"),
    "states": collections.defaultdict(dict, {0: {"step": 3}}),
    "generator": torch.Generator().get_state(),
    "sparse": torch.eye(2).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "deque": collections.deque([1, 2]),
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]).state_dict(),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_beside_the_weights(name, zipped, protocol, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(
        {"args": SETTINGS[name], "g_ema": in_family(generator(), "rosinality")},
        path,
        _use_new_zipfile_serialization=zipped,
        pickle_protocol=protocol,
    )
    model = load_generator(path)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in generator().items())
    assert model.report.left["args"] == "not part of the network"


def test_what_is_kept_of_settings(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(SETTINGS, path)
    data = read_checkpoint(path)
    assert data["scalar"] == 3.5 and data["keys"] == {"a": 7} and data["states"] == {0: {"step": 3}}
    assert data["namespace"].size == 8 and isinstance(data["namespace"].path, Unread)
    assert repr(data["path"]) == "<pathlib.PurePosixPath, not read>"
    assert isinstance(data["opts"], Unread) and data["opts"].attributes["lambdas"] == [1.0]


SHARED = torch.arange(24.0)
TENSORS = {
    str(d): torch.arange(4).to(d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool)
}
TENSORS |= {str(d): torch.arange(4).to(d) for d in (torch.complex64, torch.uint16, torch.float8_e4m3fn)}
TENSORS |= {
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.0),
    "parameter": torch.nn.Parameter(SHARED[:3].clone()),
}
TENSORS |= {"view": SHARED[3:].reshape(3, 7)[:, ::2], "whole": SHARED, "transposed": SHARED.reshape(4, 6).t()}
NO_LEGACY = ("torch.uint16", "torch.float8_e4m3fn")  # torch itself does not write these without a zip
TENSORS |= {
    "expanded": torch.ones(1).expand(5),
    "last": torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("zipped", ZIPPED)
def test_the_tensors_that_torch_reads(zipped, tmp_path):
    path = tmp_path / "tensors.pt"
    tensors = TENSORS if zipped else {name: value for name, value in TENSORS.items() if name not in NO_LEGACY}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    data = read_checkpoint(path)
    assert data.keys() == tensors.keys()
    for name, value in torch.load(path, weights_only=True).items():
        assert data[name].dtype == value.dtype and data[name].stride() == value.stride()
        raw = torch.uint8 if value.dtype == torch.float8_e4m3fn else value.dtype
        assert torch.equal(data[name].view(raw), value.view(raw))
    assert data["whole"].data_ptr() == data["transposed"].data_ptr()


def files(body: bytes) -> list[bytes]:
    """A pickle as the object of a file of torch, with a zip and without."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("archive/data.pkl", body)
        target.writestr("archive/data/0", bytes(16))
        target.writestr("archive/version", "3\n")
    facts = (pickle.dumps(part, 2) for part in (1001, {"little_endian": True}))
    return [archive.getvalue(), b"".join([LEGACY, *facts, body, pickle.dumps([], 2)])]


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "ran"
    yield str(path)
    assert not path.exists(), "the file ran code"


HOSTILE = """os.system posix.system nt.system subprocess.Popen subprocess.call builtins.eval builtins.exec
    __builtin__.eval builtins.__import__ builtins.open builtins.compile sys.setprofile shutil.rmtree runpy.run_path
    importlib.import_module pickle.loads torch.load torch.hub.load torch.jit.load"""


@pytest.mark.parametrize("name", HOSTILE.split())
def test_names_that_only_harm_are_refused(name, marker, tmp_path):
    path = tmp_path / "weights.pt"
    for content in (Call(name, f"touch {marker}"), Named(name), {"g_ema": [Call(name, marker, state={"a": 1})]}):
        for data in files(pickled(content)):
            path.write_bytes(data)
            for read in (read_checkpoint, load_generator):
                with pytest.raises(UnsafeFileError, match=f"refused, asks for '{name}', which weights have no need of"):
                    read(path)


def touch(marker: str) -> list[object]:
    """Ways to a file of that name, if any of them were run."""
    get = "builtins.getattr"
    path = Call("pathlib.Path", marker)
    system = Call(get, Named("platform.os"), "system")
    return [
        Call("pathlib.Path.touch", path),
        Call(get, path, "touch"),
        Call("operator.methodcaller", "touch"),
        [system, Call("functools.partial", system, f"touch {marker}")],
        Call("builtins.map", Named("posgan_fast.models.files.read_checkpoint"), [marker]),
        Call("torch.serialization.load", marker),
        Call("torch._utils._import_dotted_name", "os.system"),
        Call("torch.utils.serialization.config.load", marker),
        Call(
            "numpy.core.multiarray._reconstruct", Named("numpy.ndarray"), (0,), b"b", state=(1, (1,), "O8", 0, [path])
        ),
        Call("numpy.load", marker),
        Call("numpy.memmap", marker, "u1", "w+", 0, (1,)),
        Call("logging.FileHandler", marker, state={"__class__": 1, "__dict__": {}}),
        Call("torch._tensor._rebuild_from_type_v2", Named("platform.popen"), 1, (f"touch {marker}",), {}),
        Call("collections.defaultdict", Named("platform.popen")),
        Call("argparse.FileType", "w"),
        Call("argparse.Namespace", state={"__class__": path, "__eq__": path, "__reduce__": path}),
        Call("copyreg._reconstructor", Named("platform.popen"), Named("builtins.object"), None),
        Call("collections.OrderedDict", state={"__class__": path, "update": path}),
        Call("torch.nn.modules.linear.Linear", state={"_modules": {"a": path}, "forward": system}),
    ]


@pytest.mark.parametrize("index", range(len(touch(""))))
def test_calls_are_never_made(index, marker, tmp_path):
    path = tmp_path / "weights.pt"
    for data in files(pickled({"x": touch(marker)[index]})):
        path.write_bytes(data)
        assert "x" in read_checkpoint(path)
        with pytest.raises(CheckpointError, match="no generator among x"):
            load_generator(path)


def test_opcodes_that_call(marker, tmp_path):
    path = tmp_path / "weights.pt"
    text = pickle.SHORT_BINUNICODE + bytes([len(marker)]) + marker.encode()
    for name, body in {
        "INST": b"(" + text + b"iplatform\npopen\n.",
        "OBJ": b"(cplatform\npopen\n" + text + b"o.",
        "EXT1": b"\x82\x01.",
        "PERSID": b"Pos.system\n.",
        "NEXT_BUFFER": b"\x97.",
    }.items():
        for data in files(b"\x80\x04" + body):
            path.write_bytes(data)
            with pytest.raises(UnsafeFileError, match=f"opcode {name},"):
                read_checkpoint(path)
    for data in files(b"\x80\x04" + b"cplatform\npopen\n" + text + b"\x85}\x92."):  # NEWOBJ_EX
        path.write_bytes(data)
        assert repr(read_checkpoint(path)) == "<platform.popen, not read>"


def tensor(count: int, *view: object) -> bytes:
    """The pickle of a tensor over the 16 zero bytes in the archive of ``files``."""
    function = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    about = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    about += pickle.dumps(count, 2)[2:-1] + b"tQ"
    return function + about + b"".join(pickle.dumps(part, 2)[2:-1] for part in view) + b"tR."


OUTSIDE = [(0, (1 << 40,), (1,)), (0, (5,), (1,)), (3, (2,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (3, 1))]
OUTSIDE += [(0, (2,), (1 << 62,)), (0, (-1,), (1,)), (0, (1.0,), (1,)), (0, (1,) * 9, (1,) * 9), (0, (2, 2), (2,))]
OUTSIDE += [(0, (1 << 62, 1 << 62), (0, 0)), (1 << 70, (), ()), (4, (), ())]


@pytest.mark.parametrize("view", OUTSIDE)
def test_tensors_stay_inside_their_storage(view, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(files(tensor(4, 0, (2, 2), (1, 2)))[0])
    assert read_checkpoint(path).shape == (2, 2)
    path.write_bytes(files(tensor(4, *view))[0])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("count", [5, 3, -4, 1 << 60, 1 << 80, True])
def test_storages_have_the_size_that_they_say(count, tmp_path):
    path = tmp_path / "weights.pt"
    for data in files(tensor(count, 0, (1,), (1,))):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"damaged|announces more|not described as torch does"):
            read_checkpoint(path)


GROWING = {
    "unread": b"\x80\x02(cx\ny\n" + b"q\x00" + b"h\x00)R" * 20_000 + b"t.",
    "lists": b"\x80\x02(" + b"]" * 50_000 + b"t.",
    "text": b"\x80\x04c_codecs\nencode\nq\x00X\x20\x4e\x00\x00" + b"a" * 20_000
    + b"q\x01X\x06\x00\x00\x00latin1q\x02(" + b"h\x00h\x01h\x02\x86R" * 5000 + b"t.",
    "bytearray": b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 1 << 30) + b"\x85R.",
    "zeros": b"\x80\x02cnumpy\nzeros\nJ" + struct.pack("<i", 1 << 30) + b"\x85R.",
    "integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "dictionaries": b"\x80\x02ccollections\nOrderedDict\nq\x00(" + b"h\x00)R" * 20_000 + b"t.",
}  # fmt: skip


@pytest.mark.parametrize("kind", GROWING)
def test_memory_is_a_multiple_of_the_file(kind, tmp_path):
    path = tmp_path / "weights.pt"
    for data in files(GROWING[kind]):
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with contextlib.suppress(CheckpointError):
                read_checkpoint(path)
            assert tracemalloc.get_traced_memory()[1] < (8 << 20) + 40 * len(data)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("zipped", ZIPPED)
def test_files_cut_short(zipped, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"g_ema": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in [*range(8, len(whole) - 30, 197)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_a_command_line_cannot_change_the_budget(tmp_path):
    """Its attributes are the file's, under any name; copies of one long state are counted."""
    path = tmp_path / "weights.pt"
    new = b"cargparse\nNamespace\n)\x81"
    names = {"cost": -(10**12), "__setstate__": None, "__class__": 1}
    build = pickle.dumps(names, 2)[2:-1] + b"b"
    for data in files(b"\x80\x02" + new + build + build + b"."):
        path.write_bytes(data)
        assert vars(read_checkpoint(path)) == names
    lists = new + build + build + b"0(" + b"]" * 400_000 + b"t."
    long = pickle.dumps({f"{i:x}": None for i in range(5000)}, 4)[11:-1]
    copies = b"](" + new + long + b"q\xffb" + (new + b"h\xffb") * 400 + b"e."
    for body in (lists, copies):
        for data in files(b"\x80\x04" + body):
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match="would take more than"):
                read_checkpoint(path)


@pytest.mark.parametrize("count", [0, 1, 3, -4, 1 << 60])
def test_counts_of_a_legacy_file_agree(count, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.arange(4.0), "b": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    place = len(whole) - 24
    assert whole[place : place + 8] == struct.pack("<q", 4)
    path.write_bytes(whole[:place] + struct.pack("<q", count) + whole[place + 8 :])
    with pytest.raises(CheckpointError, match=f"damaged: storage .* has {count} elements, expected 4"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", ZIPPED)
def test_negative_and_conjugate_bits(zipped, tmp_path):
    path = tmp_path / "tensors.pt"
    numbers, other = (torch.randn(3, dtype=torch.complex64) for _ in range(2))
    tensors = {"neg": torch._neg_view(torch.arange(3.0)), "conj": numbers.conj(), "imag": other.conj().imag}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    for name, value in read_checkpoint(path).items():
        assert value.is_neg() == tensors[name].is_neg() and value.is_conj() == tensors[name].is_conj()
        assert torch.equal(value, tensors[name]) and torch.equal(value.clone(), tensors[name])
    state = in_family(generator(), "rosinality")
    name = "conv1.conv.modulation.bias"
    torch.save({**state, name: torch._neg_view(-state[name])}, path, _use_new_zipfile_serialization=zipped)
    assert all(torch.equal(load_generator(path).state_dict()[key], value) for key, value in generator().items())


@pytest.mark.parametrize("bits", [{"neg": 1}, {"conj": True}, 3, {"conj": None}])
def test_bits_that_say_nothing(bits, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(files(tensor(4, 0, (2,), (1,), False, None, {"neg": True, "other": 3}))[0])
    assert read_checkpoint(path).is_neg()
    path.write_bytes(files(tensor(4, 0, (2,), (1,), False, None, bits))[0])
    with pytest.raises(CheckpointError, match="a tensor (whose bits|of conjugates)"):
        read_checkpoint(path)
