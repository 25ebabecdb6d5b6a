"""Files that want to run something: each is refused by name, and nothing of it runs."""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from stylegan2_states import discriminator, generator

from posgan_fast.models import CheckpointError, UnsafeFileError, load_discriminator, load_generator, read_checkpoint
from posgan_fast.models.pickles import Array, PickledModule, read_pickle

SOURCE = "import pathlib\npathlib.Path({marker!r}).touch()\nclass Generator: pass\n"


class Named:
    """Pickles as a global of any name."""

    def __init__(self, name: str) -> None:
        self.module, _, self.name = name.rpartition(".")


class Call:
    """Pickles as a call of a global, with a state to set where one is given."""

    def __init__(self, name: str, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = Named(name), arguments, state


class Pickler(pickle._Pickler):  # the one in Python takes names that cannot be imported
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, (Named, Call)) and id(obj) in self.memo:
            self.write(self.get(self.memo[id(obj)][0]))
        elif isinstance(obj, Named):
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
            self.memoize(obj)
        else:
            super().save(obj, save_persistent_id)


def pickled(obj: object) -> bytes:
    file = io.BytesIO()
    Pickler(file, 4).dump(obj)
    return file.getvalue()


def persistent(class_name: str, state: dict, source: str = "") -> Call:
    """An object as torch_utils.persistence pickles it."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def module(state: dict[str, torch.Tensor], name: str, attributes: dict[str, dict], source: str = "") -> Call:
    """A tree of modules that holds ``state``; ``attributes`` are further ones by path."""
    below: dict[str, dict] = {}
    own: dict[str, object] = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = value
        elif first in ("w_avg", "noise_const", "resample_filter"):
            own["_buffers"][first] = value  # type: ignore[index]
        else:
            own["_parameters"][first] = torch.nn.Parameter(value)  # type: ignore[index]
    inner: dict[str, dict] = {}
    for path, values in attributes.items():
        first, _, rest = path.partition(".")
        if first:
            inner.setdefault(first, {})[rest] = values
    own |= attributes.get("", {})
    own["_modules"] = collections.OrderedDict(
        (key, module(value, key.title(), inner.get(key, {}), source)) for key, value in below.items()
    )
    return persistent(name, own, source)


def network_pickle(source: str = "") -> bytes:
    scale = Call("numpy.core.multiarray.scalar", Call("numpy.dtype", "f8", False, True, state=(3, "<")), b"\0" * 8)
    facts = {"synthesis.b4.conv1": {"conv_clamp": 256, "activation": "lrelu", "act_gain": scale}}
    facts["synthesis.b32"] = {"use_fp16": True, "_non_persistent_buffers_set": set()}
    judge = {"b4.conv": {"conv_clamp": 256}, "b4.mbstd": {"group_size": 8, "num_channels": 1}}
    averaged = module(generator(), "Generator", facts, source)
    data = {"G_ema": averaged, "G": averaged, "augment_pipe": None, "training_set_kwargs": {"path": "x", "sizes": {1}}}
    data["D"] = module({**discriminator(), "b4.mbstd.w_avg": None}, "Discriminator", judge, source)  # type: ignore[dict-item]
    return pickled(data)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "the file ran code"


def refused(data: bytes, tmp_path, match: str, kind: type = UnsafeFileError) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    for read in (read_checkpoint, load_generator, load_discriminator):
        with pytest.raises(CheckpointError, match=match) as caught:
            read(path)
        assert type(caught.value) is kind and str(path) in str(caught.value)


def test_a_network_pickle(tmp_path, marker):
    path = tmp_path / "network.pkl"
    path.write_bytes(network_pickle(SOURCE.format(marker=str(marker))))
    model = load_generator(path)
    assert model.state_dict().keys() == generator().keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in generator().items())
    assert model.report.settings["conv_clamp"] == 256 and not model.report.assumed
    assert model.report.settings["num_fp16_res"] == model.num_fp16_res == 1
    assert "blocks of side 32 run in float16 off the CPU, as there" in str(model.report)
    assert model.synthesis.b4.const.is_contiguous() and model.report.left.keys() >= {"D", "G", "augment_pipe"}
    judge = load_discriminator(path)
    assert all(torch.equal(judge.state_dict()[name], value) for name, value in discriminator().items())
    assert judge.report.settings["mbstd_group_size"] == 8 and judge.report.settings["conv_clamp"] == 256


NAMES = """os.system posix.system builtins.eval builtins.exec builtins.getattr builtins.__import__ subprocess.Popen
    torch.load torch.hub.load pickle.loads copyreg._reconstructor _codecs.encode runpy.run_path
    torch.nn.modules.linear.Linear dnnlib.tflib.network.Network torch_utils.persistence._src_to_module
    collections.OrderedDict.fromkeys torch.storage._load_from_bytes.__globals__"""


@pytest.mark.parametrize("name", NAMES.split())
def test_names(name, tmp_path, marker):
    for content in (Call(name, f"touch {marker}"), Named(name), {"G_ema": [Call(name, str(marker), state={"a": 1})]}):
        refused(pickled(content), tmp_path, f"asks for '{name}'")
    place, _, attribute = name.rpartition(".")
    line = f"c{place}\n{attribute}\n".encode()
    refused(b"\x80\x03" + line + pickle.dumps((str(marker),), 3)[2:-1] + b"R.", tmp_path, f"asks for '{name}'")


def test_opcodes(tmp_path, marker):
    text = pickle.SHORT_BINUNICODE + bytes([len(str(marker))]) + str(marker).encode()
    command = b"(" + text + b"ios\nsystem\n."
    for name, body in {
        "INST": command,
        "OBJ": b"(" + b"cos\nsystem\n" + text + b"o.",
        "EXT1": b"\x82\x01.",
        "EXT4": b"\x84\x01\x00\x00\x00.",
        "PERSID": b"Pos.system\n.",
        "BINPERSID": text + b"Q.",
        "NEWOBJ_EX": b")}\x92.",
        "NEXT_BUFFER": b"\x97.",
        "UNICODE": b"Vabc\n.",
        "LONG4": b"\x8b\xff\xff\xff\x7f.",
    }.items():
        match = "os.system" if name == "OBJ" else f"opcode {name},"
        refused(b"\x80\x04" + body, tmp_path, match)


def test_calls_and_states_of_the_allowed(tmp_path, marker):
    persistence = "torch_utils.persistence._reconstruct_persistent_obj"
    function = b"\x80\x04c" + persistence.replace("._r", "\n_r").encode() + b"\n"
    refused(function + b"}b.", tmp_path, "sets attributes of a Global")
    refused(function + b"N}\x86b.", tmp_path, "sets attributes of a Global")  # slots, which setattr would take
    refused(function + b")\x81.", tmp_path, "calls a Global")
    refused(b"\x80\x04K\x01)R.", tmp_path, "calls a int")
    refused(b"\x80\x04ccollections\nOrderedDict\n)R)R.", tmp_path, "calls a dict")
    refused(pickled(Call("torch.Size", (1,), state={"__class__": 1})), tmp_path, "sets attributes of a tuple")
    broken = CheckpointError
    refused(pickled(Call(persistence, {"type": "function"})), tmp_path, "expected the description of a class", broken)
    refused(pickled(Call(persistence)), tmp_path, "broken pickle", broken)
    deep = b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"Ns."
    refused(deep, tmp_path, "key of type tuple", broken)  # to hash it would end in the C stack


def test_bytes_of_tensors(tmp_path, marker):
    class Evil:
        def __reduce__(self):
            return (subprocess.call, (["touch", str(marker)],))

    legacy = io.BytesIO()
    torch.save({"x": Evil()}, legacy, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save({"x": Evil()}, zipped)
    call = Call("torch.storage._load_from_bytes", legacy.getvalue())
    refused(pickled(call), tmp_path, "the bytes of a tensor: refused, asks for '(subprocess|commands).call'")
    _, (data,) = torch.zeros(4)._typed_storage().__reduce__()
    assert data.count(b"K\x04N") == 1
    large = data.replace(b"K\x04N", b"\x8a\x08" + (1 << 61).to_bytes(8, "little") + b"N")
    view = data.replace(b"K\x04N", b"K\x04)")
    for broken in (zipped.getvalue(), pickle.dumps(Evil(), 2), large, view, data[:-4], data + bytes(4)):
        call = Call("torch.storage._load_from_bytes", broken)
        refused(pickled(call), tmp_path, "the bytes of a tensor cannot be read", CheckpointError)
    plain = io.BytesIO()
    torch.save({"x": 1}, plain, _use_new_zipfile_serialization=False)
    call = Call("torch.storage._load_from_bytes", plain.getvalue())
    refused(pickled(call), tmp_path, "hold a dict, not a storage", CheckpointError)
    for garbage in (b"\x80\x02K\x01", b"", legacy.getvalue()[:20]):
        call = Call("torch.storage._load_from_bytes", garbage)
        refused(pickled(call), tmp_path, "the bytes of a tensor cannot be read", CheckpointError)


OUTSIDE = [(0, (1 << 40,), (0,)), (0, (5,), (1,)), (3, (2,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (3, 1))]
OUTSIDE += [(0, (2,), (1 << 62,)), (0, (-1,), (1,)), (0, (True,), (1,)), (0, (1.0,), (1,)), (0, (1,) * 9, (1,) * 9)]
OUTSIDE += [(0, (2, 2), (2,))]


@pytest.mark.parametrize(("offset", "size", "stride"), OUTSIDE)
def test_tensors_stay_inside_their_storage(offset, size, stride, tmp_path):
    _, (data,) = torch.zeros(4)._typed_storage().__reduce__()
    call = Call("torch.storage._load_from_bytes", data)
    tensor = Call("torch._utils._rebuild_tensor_v2", call, offset, size, stride, False, {})
    refused(pickled(tensor), tmp_path, "a tensor (that is larger|whose size)", CheckpointError)
    whole = Call("torch._utils._rebuild_tensor_v2", call, 0, (2, 2), (1, 2), False, {})
    assert read_pickle(io.BytesIO(pickled(whole))).shape == (2, 2)


def test_damaged_files(tmp_path):
    whole = network_pickle()
    for size in [*range(2, 200, 7), *range(200, len(whole) - 1, 9973), len(whole) - 1]:
        refused(whole[:size], tmp_path, ".", CheckpointError)
    for data in (b"hello, world", b"\x00" * 64, b"\x89PNG\r\n"):
        refused(data, tmp_path, "neither a file of torch nor a pickle", CheckpointError)
    refused(b"\x80\x02}.", tmp_path, "protocol: expected 3 to 5, got 2", CheckpointError)
    huge = {"BINBYTES8": b"\x8e", "BINUNICODE8": b"\x8d", "BYTEARRAY8": b"\x96"}
    for opcode in huge.values():
        refused(b"\x80\x05" + opcode + struct.pack("<Q", 1 << 60) + b"x.", tmp_path, "cut short", CheckpointError)
    refused(b"\x80\x04B\xff\xff\xff\xff.", tmp_path, "cut short: 4294967295 bytes announced, 1 left", CheckpointError)
    refused(b"\x80\x04j\xff\xff\xff\xff.", tmp_path, "broken pickle", CheckpointError)
    for body in (b".", b"N0.", b"}N}s.", b"]}e.", b"\x85.", b"u.", b"\x93.", b"R.", b"b.", b"\x94.", b"NN."):
        refused(b"\x80\x04" + body, tmp_path, ".", UnsafeFileError if body == b"N0." else CheckpointError)


def test_modules_inside_themselves(tmp_path):
    tree = persistent("G", {})
    for _ in range(30):  # 2 ** 30 modules to walk, 31 in the file
        tree = persistent("G", {"_modules": {"a": tree, "b": tree}})
    path = tmp_path / "network.pkl"
    path.write_bytes(pickled({"G_ema": tree}))
    with pytest.raises(CheckpointError, match="modules inside themselves"):
        load_generator(path)
    attributes: dict = {"_modules": {}}
    attributes["_modules"]["a"] = PickledModule("G", attributes)
    with pytest.raises(CheckpointError, match="modules inside themselves"):
        load_generator(attributes["_modules"]["a"])
    data: dict = {}
    data["models"] = data
    with pytest.raises(CheckpointError, match="no generator among models"):
        load_generator(data)


def test_modules_that_are_none(tmp_path):
    path = tmp_path / "network.pkl"
    for attributes, match in (
        ({"_parameters": [1]}, "expected a dictionary with names"),
        ({"_parameters": {1: None}}, "expected a dictionary with names"),
        ({"_modules": {"a": 1}}, "expected modules only"),
        ({"_buffers": {"a": 1}}, "a: expected a tensor, got int"),
        ({"_buffers": {"a": 1}, "_non_persistent_buffers_set": 3}, "a: expected a tensor, got int"),
    ):
        path.write_bytes(pickled({"G_ema": persistent("G", attributes)}))
        with pytest.raises(CheckpointError, match=match):
            load_generator(path)
    for path_, name, value in (
        ("synthesis.b4.conv1", "activation", "foo"),
        ("mapping.fc0", "activation", 3),
        ("mapping.fc0", "bias_gain", 0.0),
        ("mapping.fc0", "bias_gain", torch.ones(2)),
        ("synthesis.b4.conv1", "conv_clamp", "256"),
    ):
        path.write_bytes(pickled({"G_ema": module(generator(), "Generator", {path_: {name: value}})}))
        with pytest.raises(CheckpointError, match=f"{path_}.{name}: expected"):
            load_generator(path)
    for load, make, layer, name, values in (
        (load_generator, generator, "synthesis.b4.conv1", "conv_clamp", (math.nan, math.inf, -1.0, True, 1 << 2000)),
        (load_discriminator, discriminator, "b4.conv", "conv_clamp", (math.nan, -1)),
        (load_discriminator, discriminator, "b4.mbstd", "group_size", (0, 1.5, True, "4")),
    ):
        for value in values:
            facts = {layer: {name: value}}
            state = {**make(), "b4.mbstd.w_avg": None} if make is discriminator else make()
            path.write_bytes(pickled({"G": module(state, "G", facts), "D": module(state, "D", facts)}))
            with pytest.raises(CheckpointError, match=f"^{layer}.{name}: "):
                load(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_objects(protocol):
    import numpy as np

    data = {
        "list": [1, -(1 << 20), 1 << 40, 2.5, None, True, False, "ä" * 300, b"x" * 300],
        "set": {1, 2},
    }
    data |= {"tuple": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "ordered": collections.OrderedDict(a=1, b=2)}
    data |= {
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "numbers": [np.float64(3.5), np.int32(-4), np.bool_(1)],
    }
    read = read_pickle(io.BytesIO(pickle.dumps({**data, "empty": [[], {}, set()]}, protocol)))
    assert read == {**data, "empty": [[], {}, set()], "numbers": [3.5, -4, True]}
    array = read_pickle(io.BytesIO(pickle.dumps(np.arange(6.0).reshape(2, 3), protocol)))
    assert isinstance(array, Array)
    tensors = {"p": torch.nn.Parameter(torch.randn(2, 3)), "v": torch.randn(4, 4)[1:, ::2], "h": torch.ones(2).half()}
    for name, value in read_pickle(io.BytesIO(pickle.dumps(tensors, protocol))).items():
        assert torch.equal(value, tensors[name].detach()) and value.dtype == tensors[name].dtype


def test_files_of_torch(tmp_path, marker):
    class Evil:
        def __reduce__(self):
            return (subprocess.call, (["touch", str(marker)],))

    path = tmp_path / "weights.pt"
    for zipped in (True, False):
        torch.save({"g_ema": {}, "args": Evil()}, path, _use_new_zipfile_serialization=zipped)
        refused(path.read_bytes(), tmp_path, "refused, asks for '(subprocess|commands).call'")
    torch.save({"g_ema": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for size in (5, 100, len(whole) // 2, len(whole) - 30):
        refused(whole[:size], tmp_path, "damaged|no file of weights", CheckpointError)
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", pickle.dumps({}) + b"\0" * 10_000_000)
    refused(archive.read_bytes(), tmp_path, "announces more bytes than the file has", CheckpointError)
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("archive/data.pkl", pickle.dumps(Evil(), 2))
        target.writestr("archive/version", "3\n")
        target.writestr("archive/byteorder", "little")
    refused(archive.read_bytes(), tmp_path, "refused, asks for '(subprocess|commands).call'")
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(path.read_bytes(), tmp_path, r"TorchScript.* save module.state_dict\(\)", CheckpointError)


def test_reading_imports_nothing(tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(network_pickle("raise SystemExit(3)"))
    code = (
        "import sys\nfrom posgan_fast.models import read_checkpoint\nbefore = set(sys.modules)\n"
        f"read_checkpoint({str(path)!r})\n"
        "new = {name for name in set(sys.modules) - before if name.split('.')[0] not in ('torch', 'numpy')}\n"
        "assert not [n for n in new if n.split('.')[0] in ('torch_utils', 'dnnlib', 'training')], new\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_buffers_that_torch_does_not_save_are_not_read():
    tensors = {"kept": torch.zeros(1), "unsaved": torch.ones(1)}
    module = PickledModule("A", {"_buffers": tensors, "_non_persistent_buffers_set": {"unsaved"}})
    assert module.state_dict() == {"kept": tensors["kept"]}
