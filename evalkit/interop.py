"""Result files of other programs, in and out: mmaction2's ``.pkl`` and ``.json``, PySlowFast's pickles.

They hold scores and at most labels, one row a line of the list that was tested: who reads them must bring that list.

    mmaction2 0.x   tools/test.py --out       a list of arrays [C]                      (labels: the annotation file's)
    mmaction2 1.x   tools/test.py --dump      a list of dicts with pred_score, gt_label (mmengine's DumpResults)
    PySlowFast      TEST.SAVE_RESULTS_PATH    [scores [V, C] summed over views, labels [V]], some with names behind

A pickle may run any program while it is read. Here it may name arrays, tensors and plain containers, for each of which
stands a class of ours that keeps what it is given; anything else is refused by name, and nothing of torch is needed.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datakit import files
from datakit.errors import BadManifest, DataError

from .scores import Kind, ScoreSet
from .signature import Signature

Program = Literal["mmaction2", "pyslowfast"]

NUMBERS = re.compile(r"[fiu][1248]|b1")
SUMS_ALIKE = 1e-3  # of probabilities, in single precision, of thousands of classes
MOST_APART = 0.05  # of many views: logits that happen to be from 0 on add up to anything
# What reading a file that is cut, or was never a pickle, may raise.
UNREADABLE = (EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a result file says. ``labels`` and ``names`` (paths or names of videos) where it says them.

    ``divided_by``: scores were sums of probabilities over so many views; they are divided by that.
    """

    path: Path
    program: Program
    scores: NDArray[np.floating[Any]]
    kind: Kind
    labels: NDArray[np.int64] | None
    names: tuple[str, ...] | None
    divided_by: int = 1

    def score_set(
        self,
        ids: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        *,
        set_name: str = "",
    ) -> ScoreSet:
        """With the ids, labels and class names of the list that was tested, in the order of its lines.

        Raises ``DataError`` where the list is not the file's: another length, or other labels.
        """
        num_rows, num_classes = self.scores.shape
        if len(ids) != num_rows:
            raise DataError(f"{self.path} has {num_rows} rows, the list {len(ids)}: it is of another list")
        wanted = None if labels is None else np.asarray(labels, dtype=np.int64)
        if wanted is not None and not -1 <= wanted.min() <= wanted.max() < num_classes:
            from_one = wanted.min() == 1 and wanted.max() == num_classes
            raise DataError(
                f"{self.path} has scores of {num_classes} classes, 0 to {num_classes - 1}, the list labels from "
                f"{wanted.min()} to {wanted.max()}: "
                + ("it counts from 1; write labels that count from 0" if from_one else "it is of another set")
            )
        if wanted is not None and self.labels is not None and (wanted != self.labels).any():
            row = int(np.flatnonzero(wanted != self.labels)[0])
            raise DataError(
                f"{self.path} says label {self.labels[row]} in row {row}, the list {wanted[row]} ({ids[row]}): it is "
                f"of another list, or of this one in another order ({(wanted != self.labels).sum()} rows differ)"
            )
        known = wanted if wanted is not None else self.labels
        if classes is not None and len(classes) != num_classes:
            raise DataError(f"{self.path} has scores of {num_classes} classes, {len(classes)} names are given")
        return ScoreSet(
            ids=list(ids),
            labels=np.full(num_rows, -1) if known is None else known,
            scores=self.scores,
            classes=tuple(classes) if classes is not None else tuple(map(str, range(num_classes))),
            kind=self.kind,
            signature=Signature(
                set=set_name, labels=set_name, model=self.path.stem, agg=f"{self.program}-result", missing="wrong"
            ),
            meta={"file": self.path.name, "divided_by": self.divided_by},
        )


def is_result(path: Path) -> bool:
    """Whether this looks like another program's result file: JSON by its name, a pickle by its first byte."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".json" or file.read(1) == b"\x80"


def read(path: Path) -> Result:
    """Raises ``BadManifest`` that says what the file holds instead, or which object it names that is not allowed."""
    if path.suffix.lower() == ".json":
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadManifest(f"{path}: no JSON ({error})") from error
    else:
        loaded = _unpickled(path)
    if isinstance(loaded, np.ndarray) and loaded.ndim == 2:
        loaded = list(loaded)
    if not isinstance(loaded, list | tuple) or not len(loaded):
        raise BadManifest(f"{path}: holds {_what(loaded)}; a result is a list with a row a video")
    try:
        if isinstance(loaded[0], np.ndarray) and loaded[0].ndim == 2:
            return _pyslowfast(path, loaded)
        return _mmaction2(path, loaded)
    except UNREADABLE as error:
        raise BadManifest(f"{path}: no result of mmaction2 or PySlowFast ({error})") from error


def write_json(score_set: ScoreSet, path: Path, ids: Sequence[str] | None = None) -> None:
    """mmaction2 0.x's ``--out result.json``: a list of rows, in the order of ``ids`` (default: the set's own).

    Raises ``DataError`` where the form cannot say it: rows that are missing or hold no number.
    """
    place = {clip_id: row for row, clip_id in enumerate(score_set.ids)}
    order = list(place) if ids is None else list(ids)
    lacking = [clip_id for clip_id in order if clip_id not in place] or [str(one["id"]) for one in score_set.missing]
    if lacking:
        raise DataError(f"{path}: mmaction2's form has a row for every clip, there is none for {lacking[0]!r} and "
                        f"{len(lacking) - 1} more; write --out DIR, which can say so")  # fmt: skip
    rows = score_set.scores[[place[clip_id] for clip_id in order]]
    if not np.isfinite(rows).all():
        raise DataError(f"{path}: mmaction2's form has no place for scores that are no numbers; write --out DIR")
    files.write_text(path, json.dumps(rows.tolist()) + "\n")


# --- the programs ----------------------------------------------------------------------------------------------------


def _mmaction2(path: Path, loaded: Sequence[Any]) -> Result:
    if isinstance(loaded[0], Mapping):
        scores = _rows(path, [_first(sample, "pred_score", "pred_scores") for sample in loaded])
        given = [_first(sample, "gt_label", "gt_labels", needed=False) for sample in loaded]
        missing = any(value is None for value in given)
        labels = None if missing else np.array([_label(path, value) for value in given], dtype=np.int64)
    else:
        scores, labels = _rows(path, loaded), None
    scores, kind, divided_by = _kind(scores)
    return Result(
        path=path, program="mmaction2", scores=scores, kind=kind, labels=labels, names=None, divided_by=divided_by
    )


def _pyslowfast(path: Path, loaded: Sequence[Any]) -> Result:
    rows = np.asarray(loaded[0])
    if len(loaded) not in (2, 3) or np.shape(loaded[1]) != rows.shape[:1]:
        raise BadManifest(f"{path}: {_what(loaded)} of shapes {[np.shape(part) for part in loaded]}; PySlowFast writes "
                          "scores [videos, classes], labels [videos] and perhaps names")  # fmt: skip
    names = tuple(map(str, loaded[2])) if len(loaded) == 3 else None
    if names is not None and len(names) != len(rows):
        raise BadManifest(f"{path}: {len(rows)} rows of scores and {len(names)} names")
    scores, kind, divided_by = _kind(_rows(path, rows))
    labels = np.asarray(loaded[1]).astype(np.int64)
    return Result(
        path=path, program="pyslowfast", scores=scores, kind=kind, labels=labels, names=names, divided_by=divided_by
    )


def _first(sample: Any, *keys: str, needed: bool = True) -> Any:
    """The value under the first of these keys; before mmaction2 1.1 it was in a dict as "item"."""
    for key in keys:
        if isinstance(sample, Mapping) and key in sample:
            value = sample[key]
            return value["item"] if isinstance(value, Mapping) else value
    if needed:
        what = f"keys {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else _what(sample)
        raise ValueError(f"a sample without {keys[0]}: {what}")
    return None


def _label(path: Path, value: Any) -> int:
    found = np.asarray(value).reshape(-1)
    if len(found) != 1:
        raise BadManifest(f"{path}: a sample with {len(found)} labels; only one label a clip is known here")
    return int(found[0])


def _rows(path: Path, rows: Sequence[Any] | NDArray[Any]) -> NDArray[np.floating[Any]]:
    """float [N, C]. Raises ``BadManifest``."""
    shapes = {np.shape(row) for row in rows}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        raise BadManifest(f"{path}: its rows are not all scores of the same classes")
    table = np.array([np.asarray(row) for row in rows])
    if table.dtype.kind not in "fiu":
        raise BadManifest(f"{path}: its rows are {table.dtype}, no numbers")
    return table if table.dtype == np.float64 else table.astype(np.float32)


def _kind(scores: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]], Kind, int]:
    """(scores, whether they are probabilities, what most rows were divided by).

    Rows of numbers from 0 on that add up to the same whole number are sums of so many softmaxes: PySlowFast adds up its
    30 views, and a few of them twice where several processes share them (its sampler fills up with copies). A maximum
    over views adds up to 1 or more and has nothing above 1. Everything else is a logit. A row with a NaN tells nothing.
    """
    there = scores[np.isfinite(scores).all(axis=1)]
    if not len(there) or there.min() < 0:
        return scores, "logit", 1
    sums = there.astype(np.float64).sum(axis=1)
    num_views = np.round(sums)
    usual = int(np.median(num_views))
    alike = (abs(sums - num_views) <= min(SUMS_ALIKE * usual, MOST_APART)).all()
    if alike and usual and usual == num_views.min() and num_views.max() <= 2 * usual:
        if usual == num_views.max() == 1:
            return scores, "prob", 1
        own = np.round(scores.sum(axis=1, keepdims=True, dtype=np.float64))
        return scores / np.where(np.isfinite(own), own, usual).astype(scores.dtype), "prob", usual
    if there.max() <= 1 + SUMS_ALIKE and sums.min() >= 1 - SUMS_ALIKE:
        return scores, "prob", 1
    return scores, "logit", 1


def _what(loaded: Any) -> str:
    length = f" of {len(loaded)}" if isinstance(loaded, list | tuple | dict) else ""
    return f"a {type(loaded).__name__.lstrip('_')}{length}"


# --- pickles ---------------------------------------------------------------------------------------------------------


class _Kind:
    """For ``numpy.dtype``: its code, "f4", and its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any]:
        if not NUMBERS.fullmatch(self.code) or self.order not in tuple("<>|="):
            raise pickle.UnpicklingError(f"holds an array of {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class _Array:
    """For ``numpy.ndarray``: what ``array`` makes of shape, kind, order and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = (1, (0,), _Kind("u1"), False, b"")

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        _, shape, kind, columns_first, raw = self.state
        if not isinstance(kind, _Kind) or not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("holds an array that is none")
        dtype = kind.numpy()
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"holds an array of {len(raw)} bytes for shape {shape}")
        values = np.frombuffer(raw, dtype).reshape(shape, order="F" if columns_first else "C")
        return values.astype(dtype.newbyteorder("="))


class _Buffer(_Array):
    """For ``numpy._core.numeric._frombuffer``, how arrays are written since protocol 5."""

    def __init__(self, raw: Any, kind: Any, shape: Any, order: Any) -> None:
        self.state = (1, shape, kind, order == "F", bytes(raw))


class _Scalar(_Array):
    """For ``numpy.float32(...)``."""

    def __init__(self, kind: Any, raw: Any = b"") -> None:
        self.state = (1, (), kind, False, raw)


class _Bytes(bytes):
    """For ``_codecs.encode``, how bytes are written for Python 2."""

    def __new__(cls, text: str, _: str = "latin1") -> _Bytes:
        return super().__new__(cls, text.encode("latin-1"))


class _Storage:
    """For ``torch.storage._load_from_bytes``: the numbers of a tensor, as torch wrote files before 2020.

    Five pickles (a number that marks them, a version, facts of the machine, the storage, the list of storages), then of
    each storage its length and its bytes.
    """

    def __init__(self, raw: bytes) -> None:
        stream = io.BytesIO(raw)
        head = [_Unpickler(stream).load() for _ in range(3)]
        if not isinstance(head[2], dict) or not head[2].get("little_endian", True):
            raise pickle.UnpicklingError("holds a tensor of a machine of another byte order")
        reader = _Unpickler(stream)
        reader.load()
        keys = _Unpickler(stream).load()
        code, length = reader.storage
        if len(keys) != 1 or code not in _STORAGES.values():
            raise pickle.UnpicklingError("holds a tensor that is none")
        dtype = np.dtype("<" + code)
        if int.from_bytes(stream.read(8), "little") != length:
            raise pickle.UnpicklingError("holds a tensor whose length is not its own")
        self.values = np.frombuffer(stream.read(length * dtype.itemsize), dtype)


class _Tensor:
    """For ``torch._utils._rebuild_tensor_v2``: a storage and which of its numbers."""

    def __init__(self, storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> None:
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise pickle.UnpicklingError("holds a tensor that is none")
        self.storage, self.offset, self.size, self.stride = storage, int(offset), tuple(size), tuple(stride)

    def array(self) -> NDArray[Any]:
        if math.prod(self.size) > len(self.storage.values):
            raise pickle.UnpicklingError("holds a tensor that reaches beyond its numbers")
        places = np.full(self.size, self.offset, dtype=np.int64)
        for axis, (size, stride) in enumerate(zip(self.size, self.stride, strict=True)):
            shape = [1] * len(self.size)
            shape[axis] = size
            places += (np.arange(size) * stride).reshape(shape)
        if places.size and not 0 <= places.min() <= places.max() < len(self.storage.values):
            raise pickle.UnpicklingError("holds a tensor that reaches beyond its numbers")
        found: NDArray[Any] = self.storage.values[places]
        return found


_STORAGES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
}
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": dict,
    "_codecs.encode": _Bytes,
    "numpy.dtype": _Kind,
    "numpy.ndarray": _Array,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch.storage._load_from_bytes": _Storage,
    "torch.Size": tuple,
    **{f"torch.{name}Storage": code for name, code in _STORAGES.items()},
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", _Array),
            ("multiarray.scalar", _Scalar),
            ("numeric._frombuffer", _Buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    storage: tuple[str, int] = ("", 0)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise pickle.UnpicklingError(f"holds the object {full}, which is no array, tensor or plain value")
        return _ALLOWED[full]

    def persistent_load(self, facts: Any) -> None:
        """Only inside of a tensor: ("storage", its kind, key, device, length, ...)."""
        if not isinstance(facts, tuple) or len(facts) < 5 or facts[0] != "storage" or facts[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("holds a reference to something outside of the file")
        self.storage = (str(facts[1]), int(facts[4]))


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _plain(_Unpickler(file).load())
    except pickle.UnpicklingError as error:
        raise BadManifest(f"{path}: not read: {error}") from error
    except UNREADABLE as error:
        raise BadManifest(f"{path}: no pickle that can be read ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, _Array | _Tensor):
        return value.array()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
