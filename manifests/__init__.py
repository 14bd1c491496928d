"""Facts as TOML, found in the checkout and in the wheel alike. The only code here reads them.

Data sets of one's own: with ``MANIFESTS=/folder`` in the environment ``/folder/datasets/NAME.toml`` is one more, and
stands in for ours of the same name.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent


def names(folder: str = "") -> list[str]:
    """Names of the TOML files below ``folder``, sorted, without their suffix."""
    return sorted({path.stem for root in _roots(f"{folder}/") for path in (root / folder).glob("*.toml")})


def exists(name: str) -> bool:
    return _path(f"{name}.toml").is_file()


def read(name: str) -> dict[str, Any]:
    """One manifest as plain dicts: ``read("variants")``, ``read("datasets/k400")``.

    Raises ``KeyError`` with the names there are when there is none of that name.
    """
    path = _path(f"{name}.toml")
    if not path.is_file():
        folder = name.rpartition("/")[0]
        raise KeyError(f"no manifest {name!r}; there are: {', '.join(names(folder))}")
    with path.open("rb") as file:
        return tomllib.load(file)


def lines(name: str) -> list[str]:
    """The lines of a text file that lies beside a manifest: ``lines("datasets/k400.classes.txt")``."""
    return _path(name).read_text(encoding="utf-8").splitlines()


def _path(name: str) -> Path:
    """The first file of that name; where there is none, where ours would be."""
    return next((path for root in _roots(name) if (path := root / name).is_file()), ROOT / name)


def _roots(name: str) -> list[Path]:
    own = os.environ.get("MANIFESTS")
    return [Path(own).expanduser(), ROOT] if own and name.startswith("datasets/") else [ROOT]


def check_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    """Raise ``KeyError`` naming the first key of ``table`` that is not known, with the nearest known one."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise KeyError(f"{where}: unknown key {key!r}{hint}")
