"""In which order the classes of a set are numbered, and what that order is called.

Published networks disagree: the same names under other numbers give chance accuracy. The order in force is written into
``lists/label_map.csv`` beside every list. Rules that the manifests' ``label_orders`` may name:

    official       as the data set's own label file has them
    sorted         plain sort
    folders        sorted by the names of our class folders, as torchvision's DatasetFolder numbers them
    bare-folders   the same without quotes, apostrophes and parentheses (torchvision.datasets.Kinetics)
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .annotations import ClipSpec, Spelling, bare_name, safe_name
from .catalog import Dataset
from .errors import BadManifest, UsageError
from .journal import Journal

OFFICIAL = "official"


_RULES: dict[str, Callable[[Sequence[str]], list[str]]] = {
    OFFICIAL: list,
    "sorted": sorted,
    "folders": lambda names: sorted(names, key=safe_name),
    "bare-folders": lambda names: sorted(names, key=bare_name),
}
_OWN_ORDERS = {"mmaction2": "sorted", "torchvision": "folders"}  # what these make of a tree of class folders


def ordered(classes: Sequence[str], order: str, dataset: Dataset | None = None) -> tuple[str, ...]:
    """``classes`` (in official order) as ``order`` numbers them: the name of an order, or a file.

    Raises ``UsageError`` with the orders there are, ``BadManifest`` for a file that is no order of these classes.
    """
    orders = dataset.label_orders if dataset else _OWN_ORDERS
    rule = orders.get(order, order if order in (OFFICIAL, "sorted") else None)
    if isinstance(rule, str):
        if rule not in _RULES:
            raise BadManifest(f"label_orders.{order} = {rule!r} is no rule; there are: {', '.join(_RULES)}")
        return tuple(_RULES[rule](classes))
    if rule is not None:
        return tuple(classes[place] for place in rule)
    if Path(order).is_file():
        return _like(read_file(Path(order)), classes, order)
    known = [OFFICIAL, "sorted", *sorted(set(orders) - {OFFICIAL, "sorted"})]
    raise UsageError(
        f"no label order and no file {order!r}; type --label-order with one of: {', '.join(known)}, or FILE"
    )


def choose(journal: Journal, dataset: Dataset | None, order: str, specs: Iterable[ClipSpec]) -> None:
    """Have all lists of the set written in ``order`` from now on. A file is read now and remembered.

    Raises as ``ordered``.
    """
    classes = ordered(official(journal, dataset, specs), order, dataset)
    from_file = Path(order).is_file() and order not in (dataset.label_orders if dataset else _OWN_ORDERS)
    journal.set_setting("label_order", Path(order).name if from_file else order)
    journal.set_setting("label_order_classes", "\n".join(classes) if from_file else "")


def in_force(journal: Journal, dataset: Dataset | None, specs: Iterable[ClipSpec]) -> tuple[str, tuple[str, ...]]:
    """(name of the order, class names in it) of a set as its journal has it. Raises ``BadManifest``."""
    order = journal.setting("label_order") or OFFICIAL
    classes = official(journal, dataset, specs)
    if not (chosen := journal.setting("label_order_classes")):
        return order, ordered(classes, order, dataset)
    return order, _like(chosen.split("\n"), classes, order)


def official(journal: Journal, dataset: Dataset | None, specs: Iterable[ClipSpec]) -> tuple[str, ...]:
    """Class names in official order: the manifest's, else those the annotation had, else those of the clips, sorted."""
    if dataset and dataset.classes:
        return dataset.classes
    if dataset and (known := journal.setting("classes")):
        return tuple(known.split("\n"))
    return tuple(sorted({spec.label for spec in specs if spec.label}))


def class_folder(dataset: Dataset | None) -> Callable[[str], str]:
    """How torchvision names the folder of a class, so that a tree of such folders is numbered as ``torchvision`` says:
    its own reader of Kinetics drops brackets and apostrophes."""
    bare = dataset is not None and dataset.label_orders.get("torchvision") == "bare-folders"
    return bare_name if bare else safe_name


def distinct(names: Iterable[str]) -> list[str]:
    """Names on one line each, and no two alike: the second "round-off" becomes "round-off [2]"."""
    seen = Counter[str]()
    made = []
    for name in (" ".join(name.split()) for name in names):
        seen[name] += 1
        made.append(name if seen[name] == 1 else f"{name} [{seen[name]}]")
    return made


def read_file(path: Path) -> list[str]:
    """Class names in the order of a published label file, whatever its form.

    A name a line; ``number name`` or ``name number``, by spaces, tabs or commas; ``Clabel: number; ...; name``; a CSV
    whose first line names ``name`` and ``id`` or ``index``; JSON: a list, {name: number} or {number: name}. Numbers
    count from 0 or from 1.
    Raises ``BadManifest``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return _from_json(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"{path} cannot be read as a label file: {error}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    header = [word.strip().lower() for word in lines[0].split(",")] if lines else []
    number = next((key for key in ("index", "id") if key in header), None)
    if "name" in header and number:
        rows = list(csv.DictReader(io.StringIO("\n".join([",".join(header), *lines[1:]]))))
        return _by_number([(row[number], row["name"]) for row in rows], path)
    patterns = ((r"(\d+)[\s,]+(.*\S)", 2, 1), (r"\w+:\s*(\d+);.*;\s*(.*\S)", 2, 1), (r"(.*\S)[\s,]+(\d+)", 1, 2))
    for pattern, name, place in patterns:
        matches = [re.fullmatch(pattern, line.strip()) for line in lines]
        if lines and all(matches):
            return _by_number([(match[place], match[name]) for match in matches if match], path)
    return distinct(lines)


def _from_json(value: object, path: Path) -> list[str]:
    if isinstance(value, list):
        return distinct(map(str, value))
    if not isinstance(value, dict):
        raise ValueError("neither a list nor a table of names and numbers")
    if all(str(key).isdigit() for key in value):
        return _by_number([(str(key), str(name)) for key, name in value.items()], path)
    return _by_number([(str(number), str(name)) for name, number in value.items()], path)


def _by_number(pairs: Iterable[tuple[str, str]], path: Path) -> list[str]:
    by_number = sorted((int(number), name) for number, name in pairs)
    numbers = [number for number, _ in by_number]
    if numbers not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        raise BadManifest(f"{path}: the class numbers are not 0 to {len(numbers) - 1}, each once")
    return distinct(name for _, name in by_number)


def _like(names: Sequence[str], classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Our spelling of ``names``, which must be all ``classes``: quotes, underscores and brackets do not matter."""
    spelled = Spelling(classes)
    found = [spelled.find(name) for name in names]
    unknown = [name for name, ours in zip(names, found, strict=True) if ours is None]
    lacking = sorted(set(classes) - set(found))
    if unknown or lacking or len(found) != len(classes):
        what = (
            f"{unknown[0]!r} is no class of this set" if unknown else f"{lacking[0]!r} is not there" if lacking else ""
        )
        raise BadManifest(
            f"{where}: {what or 'a class stands there twice'} ({len(names)} names, {len(classes)} classes)"
        )
    return tuple(name for name in found if name is not None)
