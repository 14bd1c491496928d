"""A plain pickle of numpy arrays, as Caffe2's zoo has them, read without numpy's or anybody's code.

What a pickle may name is in ``STAND_INS``; each is a class of ours that keeps what it is given. Everything else is
refused by name. Arrays are made afterwards, here, from their bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

ARRAY_KINDS = re.compile(r"[fiu][1248]|b1")
# torch's own files of before 2020 are plain pickles, too; they begin with this number.
TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class Kind:
    """For ``numpy.dtype``: its code, "f4", and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any]:
        if not ARRAY_KINDS.fullmatch(self.code) or self.order not in "<>|=":
            raise pickle.UnpicklingError(f"an array of {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class Array:
    """For ``numpy.ndarray``: shape, kind, order and bytes."""

    __slots__ = ("columns_first", "kind", "raw", "shape")

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (0,), Kind("u1"), False, b""))

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.columns_first, self.raw = state

    def tensor(self) -> torch.Tensor:
        if not isinstance(self.kind, Kind) or not isinstance(self.raw, str | bytes | bytearray):
            raise pickle.UnpicklingError("an array that is none")
        raw = self.raw.encode("latin-1") if isinstance(self.raw, str) else self.raw  # text: written by Python 2
        kind = self.kind.numpy()
        if len(raw) != math.prod(self.shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"an array of {len(raw)} bytes for shape {self.shape}")
        values = np.frombuffer(raw, kind).reshape(self.shape, order="F" if self.columns_first else "C")
        return torch.from_numpy(np.array(values, kind.newbyteorder("="), order="C"))


class Buffer(Array):
    """For ``numpy._core.numeric._frombuffer``, how arrays are written since protocol 5."""

    __slots__ = ()

    def __init__(self, raw: Any, kind: Any, shape: Any, order: Any) -> None:
        self.__setstate__((1, shape, kind, order == "F", raw))


class Scalar(Array):
    """For ``numpy.float32(...)``."""

    __slots__ = ()

    def __init__(self, kind: Any, raw: Any = b"") -> None:
        self.__setstate__((1, (), kind, False, raw))


class Encoded(bytes):
    """For ``_codecs.encode``, how Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, _: str = "latin1") -> Encoded:
        return super().__new__(cls, text.encode("latin-1"))


STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": dict,
    "_codecs.encode": Encoded,
    "numpy.dtype": Kind,
    "numpy.ndarray": Array,
} | {
    f"numpy.{core}.{name}": stand_in
    for core in ("core", "_core")
    for name, stand_in in (
        ("multiarray._reconstruct", Array),
        ("multiarray.scalar", Scalar),
        ("numeric._frombuffer", Buffer),
    )
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in STAND_INS:
            raise pickle.UnpicklingError(f"GLOBAL {full}")
        return STAND_INS[full]


def is_plain(path: Path) -> bool:
    """Whether a file is a pickle and not one of torch's. The oldest protocols are known by the file's ending only."""
    with path.open("rb") as file:
        head = file.read(11 + len(TORCH_LEGACY))  # from protocol 4 on a frame of 9 bytes comes first
    if head[:1] == b"\x80":
        return not head[2:].startswith(TORCH_LEGACY) and not head[11:].startswith(TORCH_LEGACY)
    return path.suffix == ".pkl" and head[:1] in (b"(", b"}")


def read(path: Path) -> Any:
    """Dicts and lists with tensors in them. Raises ``pickle.UnpicklingError`` that names what is not allowed."""
    with path.open("rb") as file:
        return plain(Unpickler(file, encoding="latin1").load())


# Whose names are not looked at here, where nothing is made of them: torch's tensors and their parts.
TORCHS_OWN = ("torch", "torch._utils")


class Nothing:
    """For every object that a pickle may name: takes whatever is done to it, and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = __init__


class Naming(pickle.Unpickler):
    """Goes through a pickle of torch's without making anything of it, up to the first object that is not allowed."""

    def __init__(self, file: IO[bytes], allowed: Container[str]) -> None:
        super().__init__(file, encoding="latin1")
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed and module not in TORCHS_OWN:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return Nothing

    def persistent_load(self, _: Any) -> Any:
        return Nothing()


def name_refused(path: Path, allowed: Container[str]) -> None:
    """Raise ``pickle.UnpicklingError`` with the first object of one of torch's files that is not in ``allowed``.

    For files that torch itself gives up on before it can say which: those of protocols above 2.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith("/data.pkl"):
                    Naming(io.BytesIO(archive.read(member)), allowed).load()
        return
    with path.open("rb") as file:
        for _ in range(4):  # a number, the version, the machine, the objects
            Naming(file, allowed).load()


def plain(value: Any) -> Any:
    if isinstance(value, Array):
        return value.tensor()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
