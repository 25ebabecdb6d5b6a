"""Files that are no weights are told by their content, with the way out; safetensors load under any name."""

from __future__ import annotations

import gzip
import io
import pickle
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stylegan2_states import discriminator, generator, in_family
from test_pickles import Call, pickled

from posgan_fast.models import CheckpointError, UnsafeFileError, load_discriminator, load_generator, read_checkpoint


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.pt"))
    return file.getvalue()


def written(save, *arguments: object, **more: object) -> bytes:
    file = io.BytesIO()
    save(file, *arguments, **more)
    return file.getvalue()


ARRAY = np.random.default_rng(0).standard_normal((300, 200))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 381624121\n"
KINDS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty, 0 bytes"),
    "page": (
        b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning",
        "HTML page.* download the file itself",
    ),
    "page in lower case": (b"\n\n  <html lang=en>", "HTML page"),
    "page with a mark": (b"\xef\xbb\xbf<!doctype html>", "HTML page"),
    "error in XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "HTML page"),
    "error in JSON": (b'{"message": "Not Found"}', "JSON text"),
    "Git LFS": (LFS, "pointer of Git LFS.*git lfs pull"),
    "npy": (written(np.save, ARRAY), r"NumPy array \(.npy\)"),
    "npz": (written(np.savez, a=ARRAY), r"NumPy's arrays \(.npz\)"),
    "pickled array": (pickle.dumps(ARRAY), "pickle of NumPy's arrays"),
    "dumped array": (ARRAY.dumps(), "pickle of NumPy's arrays"),
    "array of objects": (pickle.dumps(np.array([None, "a"], dtype=object), 4), "pickle of NumPy's arrays"),
    "gzip": (gzip.compress(b"abc"), "compressed with gzip: unpack it"),
    "tar": (tarred(), "tar archive: unpack it"),
    "zip": (zipped(**{"weights/net.pt": b"abc"}), r"zip archive that torch.save did not write.*weights/net.pt.*unpack"),
    "empty zip": (zipped(), "empty zip archive"),
    "cut zip": (written(lambda f, d: torch.save(d, f), {"a": torch.zeros(99)})[:300], "no complete zip archive"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "text": (b"hello, world", "neither a file of torch nor a pickle nor safetensors, starts with b'hello, w'"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(KINDS[kind][0])
    for read in (read_checkpoint, load_generator, load_discriminator):
        with pytest.raises(CheckpointError, match=f"(?s){KINDS[kind][1]}") as caught:
            read(path)
        assert str(path) in str(caught.value) and "more than" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_networks_of_tensorflow(protocol, tmp_path):
    path = tmp_path / "stylegan2-ffhq-config-f.pkl"
    names = b"cdnnlib.tflib.network\nNetwork\n"
    path.write_bytes(bytes([0x80, protocol]) + b"(" + names + b")\x81}b" + names + b")\x81}bt.")
    for data in (path.read_bytes(), pickled([Call("dnnlib.tflib.network.Network", state={"a": 1})])):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"TensorFlow.*legacy.py .*--source=OLD.pkl --dest=NEW.pkl"):
            load_generator(path)


@pytest.mark.parametrize("name", ["g.safetensors", "g.pt", "g.pkl", "g"])
@pytest.mark.parametrize("family", ["nvlabs", "rosinality"])
def test_safetensors(family, name, tmp_path):
    path = tmp_path / name
    state = {key: value.contiguous() for key, value in in_family(generator(), family).items()}
    save_file(
        {
            **{f"g_ema.{key}": value for key, value in state.items()},
            **{f"d.{k}": v for k, v in discriminator().items()},
        },
        path,
    )
    assert all(torch.equal(value, generator()[key]) for key, value in load_generator(path).state_dict().items())
    assert torch.equal(load_discriminator(path).b4.fc.weight, discriminator()["b4.fc.weight"])
    whole = path.read_bytes()
    for size in (200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"safetensors"):
            load_generator(path)


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    path = tmp_path / "g.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load_generator(path)


def test_a_module_of_torchscript(tmp_path):
    path = tmp_path / "module.pt"
    path.write_bytes(zipped(**{"m/data.pkl": b"\x80\x02N.", "m/constants.pkl": b"\x80\x02)."}))
    with pytest.raises(CheckpointError, match=r"TorchScript.*save module.state_dict\(\) instead"):
        load_generator(path)
    path.write_bytes(pickled(Call("os.system", "true")))
    with pytest.raises(UnsafeFileError, match="asks for 'os.system'"):
        load_generator(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_to_be_fetched_again(zipped, tmp_path):
    path = tmp_path / "g.pt"
    torch.save({"a": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-40], whole.replace(b"\x00\x00\x80?", b"\x00\x00\x80A")[:-3]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="; download or copy it again"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x80\x04B\xff\xff\xff\xff.", "cut short: .*; download or copy it again"),
        (b"\x80\x04j\xff\xff\xff\xff.", "broken pickle, .*; download or copy it again, or save it with torch.save"),
        (
            pickle.dumps({"a": [1.0]}, 2),
            "expected 3 to 5, got 2: save it with torch.save, or pickle it with protocol=4",
        ),
    ],
)
def test_pickles_name_the_way_out(data, match, tmp_path):
    path = tmp_path / "g.pkl"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(path)


def test_safetensors_cut_short(tmp_path):
    path = tmp_path / "g.safetensors"
    save_file({f"a{i}": torch.zeros(3) for i in range(20)}, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (9, 10, 100, header - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            CheckpointError, match="safetensors, cut short inside its header of .*; download or copy it"
        ):
            read_checkpoint(path)
    for size in (header, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged file of safetensors: .*; download or copy it again"):
            read_checkpoint(path)
