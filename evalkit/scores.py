"""ScoreSet: the scores of a test run, one row a clip, and everything needed to compute numbers from them later."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datakit import files, fingerprint
from datakit.errors import BadManifest, DataError, HashMismatch, NotComparable

from .signature import Signature

FILE_NAME = "scores.npz"
FORMAT = "scores/1"

Kind = Literal["prob", "logit"]


@dataclass(slots=True, kw_only=True)
class ScoreSet:
    """Scores of N clips over C classes, in any row order.

    ids      clip ids, each once
    labels   int64 [N], indices into ``classes``; -1 where no label is known
    scores   float32 [N, C] (float64 from a fusion); a row with a NaN counts as wrong
    classes  the C class names, in the order of the columns
    kind     "prob" (what softmax made) or "logit"
    views    float16 [N, V, C], the scores of the single views, or None
    files    the sha256 of the file that each clip was read from, or None where nobody took them
    missing  what was asked for and not scored: dicts with ``id``, ``label`` (a class name or None) and ``reason``
    meta     anything JSON can hold; ``partial: true`` says that scores stop where the decision was certain

    ``n``, ``list`` and with ``files`` the fingerprint in ``media`` of the signature are set here from the rows, so they
    always say what was really scored, of a part of the rows too.
    Raises ``DataError`` when the parts do not fit together.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    scores: NDArray[np.floating[Any]]
    classes: tuple[str, ...]
    kind: Kind
    signature: Signature
    views: NDArray[np.float16] | None = None
    files: list[str] | None = None
    missing: list[dict[str, str | None]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = [str(clip_id) for clip_id in self.ids]
        self.classes = tuple(str(name) for name in self.classes)
        self.labels = np.asarray(self.labels, dtype=np.int64)
        scores = np.asarray(self.scores)
        self.scores = scores if scores.dtype == np.float64 else scores.astype(np.float32, copy=False)
        if self.views is not None:
            self.views = np.asarray(self.views).astype(np.float16, copy=False)
        self._check()
        self.signature = replace(
            self.signature, n=len(self.ids), list=fingerprint.list_id(self.pairs()), media=self._media()
        )

    def label_names(self) -> list[str]:
        """The class name of each row, "" where it has no label."""
        return [self.classes[label] if label >= 0 else "" for label in self.labels.tolist()]

    def pairs(self) -> list[tuple[str, str]]:
        """(id, class name) of each row: what ``list`` of the signature hashes."""
        return list(zip(self.ids, self.label_names(), strict=True))

    def _media(self) -> str:
        """``320p-9f3c0a11de``: variant and fingerprint of the rows' files; as it was where those are not known."""
        if self.files is None:
            return self.signature.media
        variant = self.signature.media.rpartition("-")[0] or self.signature.media
        return "-".join(filter(None, (variant, fingerprint.media_id(zip(self.ids, self.files, strict=True)))))

    def select(self, rows: NDArray[np.int64] | list[int]) -> ScoreSet:
        """A new set of these rows, in this order, with a signature of its own; what is missing stays missing."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            labels=self.labels[rows],
            scores=self.scores[rows],
            views=None if self.views is None else self.views[rows],
            files=None if self.files is None else [self.files[row] for row in rows],
        )

    def in_class_order(self, classes: tuple[str, ...]) -> ScoreSet:
        """A new set whose columns are in the order of ``classes``. Raises ``NotComparable`` when the names differ."""
        if classes == self.classes:
            return self
        here, there = set(self.classes) - set(classes), set(classes) - set(self.classes)
        if here or there:
            raise NotComparable(
                f"the class names differ: {len(self.classes)} classes against {len(classes)}"
                + "".join(
                    f"; only {side}: {some(names)}" for side, names in (("here", here), ("there", there)) if names
                )
            )
        place = {name: index for index, name in enumerate(self.classes)}
        columns = np.array([place[name] for name in classes])
        new_index = np.append(np.argsort(columns), -1)  # the last entry keeps -1 = no label
        return replace(
            self,
            classes=classes,
            labels=new_index[self.labels],
            scores=self.scores[:, columns],
            views=None if self.views is None else self.views[:, :, columns],
        )

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` without pickles. The same scores give the same bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "format": np.array(FORMAT),
            "ids": np.array(self.ids, dtype=np.str_),
            "labels": self.labels,
            "scores": self.scores,
            "classes": np.array(self.classes, dtype=np.str_),
            "kind": np.array(self.kind),
            "signature": np.array(str(self.signature)),
            "missing": np.array(json.dumps(self.missing, allow_nan=False)),
            "meta": np.array(json.dumps(self.meta, allow_nan=False)),
        }
        if self.views is not None:
            arrays["views"] = self.views
        if self.files is not None:
            arrays["files"] = np.array([sha.encode() for sha in self.files], dtype=np.bytes_)
        with files.replacing(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _check(self) -> None:
        num_clips, num_classes = len(self.ids), len(self.classes)
        if self.kind not in ("prob", "logit"):
            raise DataError(f"score kind {self.kind!r}: it is 'prob' or 'logit'")
        if num_classes == 0 or len(set(self.classes)) != num_classes:
            raise DataError(
                f"{num_classes} class names, {len(set(self.classes))} different ones; each class needs its own"
            )
        if self.scores.shape != (num_clips, num_classes):
            raise DataError(f"scores {self.scores.shape} do not fit {num_clips} clips x {num_classes} classes")
        if self.labels.shape != (num_clips,):
            raise DataError(f"labels {self.labels.shape} do not fit {num_clips} clips")
        if num_clips and not -1 <= self.labels.min() <= self.labels.max() < num_classes:
            raise DataError(
                f"labels go from {self.labels.min()} to {self.labels.max()}, classes from 0 to {num_classes - 1}"
            )
        if self.views is not None and (self.views.ndim != 3 or self.views.shape[::2] != self.scores.shape):
            raise DataError(f"view scores {self.views.shape} do not fit scores {self.scores.shape}")
        if self.files is not None and len(self.files) != num_clips:
            raise DataError(f"{len(self.files)} hashes of files do not fit {num_clips} clips")
        for entry in self.missing:
            if not {"id", "label", "reason"} <= entry.keys():
                raise DataError(f"a missing clip is written as id, label, reason; this one is not: {entry}")
            if entry["label"] is not None and entry["label"] not in self.classes:
                raise DataError(
                    f"missing clip {entry['id']}: {entry['label']!r} is none of the {num_classes} class names"
                )
        seen: set[str | None] = set()
        for clip_id in [*self.ids, *(entry["id"] for entry in self.missing)]:
            if clip_id in seen:
                raise DataError(f"clip {clip_id!r} occurs twice; scores are joined by id, so each id may occur once")
            seen.add(clip_id)


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names of a set, for a message: ``'a', 'b', 'c' and 5 more``."""
    ordered = sorted(names)
    text = ", ".join(map(repr, ordered[:most]))
    return text + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def load(path: str | Path, *, views: bool = True) -> ScoreSet:
    """Read a score file, or ``scores.npz`` of the folder ``path``. ``views=False`` leaves views out: they are large.

    Raises ``BadManifest`` when there is none or it is no score file, ``HashMismatch`` when the rows are not those that
    its signature was made of.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise BadManifest(f"{file}: no such file; python -m evalkit.run --out DIR writes DIR/{FILE_NAME}")
    if not zipfile.is_zipfile(file):  # numpy would read a bare array, too
        raise BadManifest(f"{file}: not a score file; python -m evalkit.run writes them")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["format"]) != FORMAT:
                raise BadManifest(f"{file}: format {arrays['format']}, this version reads {FORMAT}")
            signature = Signature.parse(str(arrays["signature"]))
            found = ScoreSet(
                ids=arrays["ids"].tolist(),
                labels=arrays["labels"],
                scores=arrays["scores"],
                classes=tuple(arrays["classes"].tolist()),
                kind=str(arrays["kind"]),  # type: ignore[arg-type]  # checked by ScoreSet
                views=arrays["views"] if views and "views" in arrays else None,
                files=[sha.decode() for sha in arrays["files"].tolist()] if "files" in arrays else None,
                signature=signature,
                missing=json.loads(str(arrays["missing"])),
                meta=json.loads(str(arrays["meta"])),
            )
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadManifest(f"{file}: not a score file ({error}); python -m evalkit.run writes them") from error
    for key in ("n", "list", "media"):
        said, there = getattr(signature, key), getattr(found.signature, key)
        if said != there:
            raise HashMismatch(
                f"{file}: {key} is {said} in its signature and {there} in its rows; the file was changed after the run"
            )
    return found
