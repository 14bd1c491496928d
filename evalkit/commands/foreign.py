"""Score files of ours and result files of other programs, as one kind of thing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datakit.errors import DataError, UsageError

if TYPE_CHECKING:
    from ..interop import Result
    from ..scores import ScoreSet


class Foreign:
    """Reads score files of ours and of other programs; the latter say no clip ids, their list does."""

    def __init__(self, lists: list[Path], classes: Path | None) -> None:
        self._lists = lists
        if classes and not classes.is_file():
            raise UsageError(
                f"--classes {classes} is not there; type a file with one class name a line, in label order"
            )
        self._classes = tuple(classes.read_text(encoding="utf-8-sig").splitlines()) if classes else None
        self.order: list[str] | None = None  # the ids of the first list, in the order of its lines
        if lists:
            self.order, _ = self._listed(lists[0])

    def load_all(self, paths: Sequence[Path]) -> list[ScoreSet]:
        """Raises ``UsageError`` where it is not said which clips the rows are."""
        from .. import interop, scores

        foreign = [path for path in paths if interop.is_result(path)]
        if len(self._lists) > 1 and len(self._lists) != len(foreign):
            raise UsageError(
                f"{len(self._lists)} lists for {len(foreign)} result files; type --list once for all of them, or once "
                "for each"
            )
        lists: list[Path | None] = [*self._lists] * len(foreign) if len(self._lists) == 1 else [*self._lists]
        lists = lists or [None] * len(foreign)
        of_file = dict(zip(foreign, lists, strict=True))
        found = [
            self._result(interop.read(path), of_file[path]) if path in of_file else scores.load(path) for path in paths
        ]
        if not self._lists and foreign:
            self._check_positions(found)
        return [self._named(part, found) for part in found]

    def _result(self, result: Result, listed: Path | None) -> ScoreSet:
        from datakit import manifest

        if listed is not None:
            ids, labels = self._listed(listed)
            return result.score_set(ids, labels, self._classes, set_name=listed.stem)
        if result.names is not None:
            return result.score_set(manifest.ids_of(result.names), None, self._classes)
        if result.labels is None:
            raise UsageError(f"{result.path} says neither which clips its rows are nor their labels; type --list FILE, "
                             "the list that was tested")  # fmt: skip
        return result.score_set([f"row {row}" for row in range(len(result.scores))], None, self._classes)

    def _listed(self, path: Path) -> tuple[list[str], list[int]]:
        from datakit import manifest

        if not path.is_file():
            raise UsageError(f"--list {path} is not there; type the list that was tested, lines of 'path label'")
        entries = manifest.list_entries(path, path.parent)
        paths = [entry.path for entry in entries]
        if len(set(paths)) < len(paths):
            twice = next(name for name in paths if paths.count(name) > 1)
            raise DataError(f"{path} lists {twice} twice; rows are joined by it, so each may stand there once")
        return manifest.ids_of(paths), [entry.label for entry in entries]

    def _check_positions(self, parts: list[ScoreSet]) -> None:
        """Rows that only their place names can be joined when all have the same labels at the same places."""
        placed = [part for part in parts if part.ids[:1] == ["row 0"]]
        if any(part.labels.tolist() != placed[0].labels.tolist() for part in placed[1:]):
            raise UsageError(
                "the result files have other labels in their rows: they are of other lists, or of one in another "
                "order; type --list FILE for each, in order"
            )
        if placed:
            print("note: the rows are joined by their place, with equal labels at every place; --list FILE names them",
                  file=sys.stderr)  # fmt: skip

    def _named(self, part: ScoreSet, parts: list[ScoreSet]) -> ScoreSet:
        """With the class names of a part that has some, where this one only numbers them: labels are compared later."""
        numbers = tuple(map(str, range(len(part.classes))))
        if part.classes != numbers:
            return part
        named = [other.classes for other in parts if len(other.classes) == len(numbers) and other.classes != numbers]
        return replace(part, classes=named[0]) if named else part
