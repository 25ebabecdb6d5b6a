"""Recognising the kind of a file by its first bytes, and advice for files that hold no weights."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

from .opcodes import DOWNLOAD_AGAIN
from .pickles import LEGACY, Array, first_line, read_pickle
from .report import CheckpointError, UnsafeFileError
from .torchfiles import read_legacy, read_zip


def read_checkpoint(path: str | os.PathLike) -> Any:
    """Read the objects in a file, tensors on the CPU; nothing in it runs.

    The content, not the name, tells whether torch, safetensors or NVlabs wrote the file. Settings beside the weights
    become inert objects, unless they are text, numbers or containers of these.

    Raises:
        UnsafeFileError, CheckpointError: as in :func:`load_generator`.
        ImportError: the file needs the package safetensors, which is missing.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "weights.pt")
        ...     torch.save({"g_ema": {"bias": torch.zeros(2)}}, path)
        ...     read_checkpoint(path)
        {'g_ema': {'bias': tensor([0., 0.])}}
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(_START)
        try:
            if start.startswith(b"PK\x03\x04"):
                return read_zip(file)
            if _LEGACY.match(start):
                return read_legacy(file)
            if start.startswith(pickle.PROTO):
                return _read_pickle(file, start)
            if _is_safetensors(start):
                return _read_safetensors(path)
            raise CheckpointError(_other_kind(start))
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}") from None


_START = 1 << 20
_LEGACY = re.compile(rb"\x80.(\x95.{8})?" + re.escape(LEGACY[2:]), re.DOTALL)  # any protocol


def _read_pickle(file: BinaryIO, start: bytes) -> Any:
    file.seek(0)
    try:
        data = read_pickle(file)
    except CheckpointError as error:
        if re.search(rb"dnnlib.{1,3}tflib", start, re.DOTALL):
            raise type(error)(
                f"{error}: a TensorFlow network of NVlabs, whose pickle holds code; convert it with legacy.py of "
                "stylegan2-ada-pytorch or stylegan3, python legacy.py --source=OLD.pkl --dest=NEW.pkl"
            ) from None
        if re.match(rb"\x80.(\x95.{8})?.{1,3}numpy[.]", start, re.DOTALL) and not isinstance(error, UnsafeFileError):
            raise CheckpointError(_NUMPY) from None
        stores = all(store in start for store in (b"_parameters", b"_buffers", b"_modules"))
        if isinstance(error, UnsafeFileError) and stores:
            raise UnsafeFileError(f"{error}; the file holds a whole module: save module.state_dict() instead") from None
        raise
    if isinstance(data, Array):
        raise CheckpointError(_NUMPY)
    return data


_NUMPY = "a pickle of NumPy's arrays, expected weights: torch.save a dictionary of tensors instead"


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 8 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= 100 << 20


def _read_safetensors(path: Path) -> Any:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if 8 + header > path.stat().st_size:
        raise CheckpointError(f"a file of safetensors, cut short inside its header of {header} bytes; {DOWNLOAD_AGAIN}")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(f"{path}: a file of safetensors, which needs that package: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"damaged file of safetensors: {first_line(error)}; {DOWNLOAD_AGAIN}") from None


_PAGE = "an HTML page, not the file of weights that its link is for: download the file itself"
_KINDS: tuple[tuple[str, str], ...] = (  # pattern of the first bytes, advice
    (r"\Z", f"empty, 0 bytes: {DOWNLOAD_AGAIN}"),
    (r"version https://git-lfs", "a pointer of Git LFS in place of the file: run git lfs pull in its repository"),
    (r"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", _PAGE),
    (r"\x93NUMPY", "a NumPy array (.npy), expected weights as torch saves them"),
    (r"PK\x05\x06", "an empty zip archive"),
    (r"\x1f\x8b", "compressed with gzip: unpack it (gunzip, or tar -xzf), and give the file inside"),
    (r"BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed archive: unpack it, and give the file inside"),
    (r".{257}ustar", "a tar archive: unpack it (tar -xf), and give the file inside"),
    (r"\x89HDF\r\n", "HDF5 (Keras), expected weights of a PyTorch network"),
    (r"\x08[\x01-\x14][\x12\x3a\x42]", "ONNX, a graph: give the weights that it was exported from"),
    (r"\s*[\[{]\s*[\"{\[\]}\d]", "JSON text, expected weights: a server's message in place of the file?"),
)


def _other_kind(start: bytes) -> str:
    for pattern, why in _KINDS:
        if re.match(pattern.encode("latin1"), start, re.DOTALL | re.IGNORECASE):
            return why
    return f"neither a file of torch nor a pickle nor safetensors, starts with {start[:8]!r}"
