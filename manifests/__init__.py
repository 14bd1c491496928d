"""Facts as TOML, found in the checkout and in the wheel alike. The only code here reads them."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent


def names(folder: str = "") -> list[str]:
    """Names of the TOML files below ``folder``, sorted, without their suffix."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.toml"))


def exists(name: str) -> bool:
    return (ROOT / f"{name}.toml").is_file()


def read(name: str) -> dict[str, Any]:
    """One manifest as plain dicts: ``read("variants")``, ``read("datasets/k400")``.

    Raises ``KeyError`` with the names there are when there is none of that name.
    """
    path = ROOT / f"{name}.toml"
    if not path.is_file():
        folder = name.rpartition("/")[0]
        raise KeyError(f"no manifest {name!r}; there are: {', '.join(names(folder))}")
    with path.open("rb") as file:
        return tomllib.load(file)


def lines(name: str) -> list[str]:
    """The lines of a text file that lies beside a manifest: ``lines("datasets/k400.classes.txt")``."""
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def check_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    """Raise ``KeyError`` naming the first key of ``table`` that is not known, with the nearest known one."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise KeyError(f"{where}: unknown key {key!r}{hint}")
