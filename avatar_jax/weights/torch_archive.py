"""Archives that torch.save writes, read without torch and without running their code.

Such a file is a zip archive: `data.pkl` says by pickle which tensors there are, an
entry `data/<key>` for each storage holds its values, uncompressed. A pickle may call
anything; this reader knows the few names that a state dict needs and stops at any
other. A tensor is a view of a storage: offset, sizes and strides.
"""

import collections
import dataclasses
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from avatar_jax.types import InputError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LOCAL_HEADER = 30  # bytes before the name of a zip entry's local header


class StoredTensor(NamedTuple):
    """A tensor of a file; nothing of it is read before `read`.

    It is a tuple, as are all that a pickle gets hold of, so that none can change it.

    Attributes:
      path: of the file.
      offset: of its first element, bytes.
      strides: in elements.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values, each counted once."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Map it into memory, for reading."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        flat = np.memmap(
            self.path, self.dtype, "r", self.offset, (_span(self.shape, self.strides),)
        )
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(
            flat.view(np.ndarray), self.shape, strides, writeable=False
        )


def read_archive(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a state dict.

    Raises:
      InputError: it is no such archive, of the old format, truncated, or its pickle
        asks for anything but tensors by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            folder = _find_folder(path, archive)
            order = archive.NameToInfo.get(f"{folder}byteorder")
            if order is not None and archive.read(order) != b"little":
                _refuse(path, "its byte order is not little-endian")
            text = archive.read(f"{folder}data.pkl")
            entries = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError):
            raise
        _refuse(path, _diagnose(path))
    unpickler = _Unpickler(path, text, _Storages(path, entries, folder))
    try:
        tensors = unpickler.load()
    except InputError:
        raise
    except Exception as error:  # a pickle can fail in any way
        _refuse(path, f"its pickle is damaged ({type(error).__name__})")
    if not isinstance(tensors, dict):
        _refuse(path, f"it holds a {type(tensors).__name__}, not tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            _refuse(path, f"{name!r} is a {type(tensor).__name__}, not a tensor")
    return dict(tensors)


class _StorageKind(NamedTuple):
    """Stands for a class of torch's storages."""

    name: str


class _Rebuild:
    """Stands for the functions of torch that make a tensor of a storage."""

    __slots__ = ()

    def __call__(
        self,
        storage: StoredTensor,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *unused: Any,
    ) -> StoredTensor:
        if not isinstance(storage, StoredTensor):
            raise TypeError("expected a storage")
        numbers = (offset, *shape, *strides)
        whole = all(type(n) is int and n >= 0 for n in numbers)
        if not whole or len(shape) != len(strides):
            _refuse(storage.path, "a tensor in it has an impossible shape")
        if math.prod(shape) and offset + _span(shape, strides) > storage.shape[0]:
            _refuse(storage.path, "a tensor in it is larger than its storage")
        start = storage.offset + offset * storage.dtype.itemsize
        return StoredTensor(
            storage.path, start, tuple(shape), tuple(strides), storage.dtype
        )


class _Parameter:
    """Stands for the function of torch that makes a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, tensor: StoredTensor, *unused: Any) -> StoredTensor:
        return tensor


@dataclasses.dataclass(frozen=True)
class _Storages:
    """The storages of an archive, found by their keys."""

    path: Path
    entries: dict[str, zipfile.ZipInfo]
    folder: str

    def find(self, key: str, dtype: np.dtype, count: int) -> StoredTensor:
        """Return a storage as a tensor of one axis."""
        info = self.entries.get(f"{self.folder}data/{key}")
        if info is None:
            _refuse(self.path, f"its storage {key!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED:
            _refuse(self.path, "its storages are compressed")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            head = file.read(_LOCAL_HEADER)
        lengths = [int.from_bytes(head[i : i + 2], "little") for i in (26, 28)]
        start = info.header_offset + _LOCAL_HEADER + sum(lengths)
        end = start + count * dtype.itemsize
        if count * dtype.itemsize > info.file_size or end > self.path.stat().st_size:
            _refuse(self.path, f"its storage {key!r} is truncated")
        return StoredTensor(self.path, start, (count,), (1,), dtype)


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries of tensors, and refuses every other name."""

    def __init__(self, path: Path, text: bytes, storages: _Storages) -> None:
        super().__init__(io.BytesIO(text))
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in, which has nothing that a pickle could set."""
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor":
                return _Rebuild()
            case "torch._utils", "_rebuild_parameter":
                return _Parameter()
            case "torch" | "torch.storage", _ if name in _STORAGES:
                return _StorageKind(name)
        _refuse(
            self._path,
            f"its pickle asks for {module}.{name}, which tensors do not need and which "
            "could run code",
        )

    def persistent_load(self, pid: Any) -> StoredTensor:
        """Find a storage: ("storage", type, key, location, count)."""
        word, kind, key, _, count = pid
        if word != "storage" or not isinstance(kind, _StorageKind) or count < 0:
            _refuse(self._path, "its pickle names a storage of an unknown kind")
        return self._storages.find(str(key), _STORAGES[kind.name], int(count))


def _find_folder(path: Path, archive: zipfile.ZipFile) -> str:
    """Return the folder of the archive that all its entries lie in."""
    found = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
    if len(found) != 1:
        _refuse(path, "it is a zip archive without a data.pkl")
    return found[0].removesuffix("data.pkl")


def _diagnose(path: Path) -> str:
    """Say what a file is that cannot be read as a zip archive."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK"):
        return "it is truncated or damaged"
    if start[:1] == b"\x80":
        return "it has the format of before torch 1.6, a bare pickle"
    return "it is no archive of torch.save"


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Count the elements of a storage from a view's first to its last."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _refuse(path: Path, why: str) -> NoReturn:
    raise InputError(
        f"{path} is not read: {why}; give an archive of torch.save(state_dict), or "
        "better a .safetensors file."
    )
