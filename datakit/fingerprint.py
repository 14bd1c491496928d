"""Short hashes of what a list names and of what its files hold. Row order never matters, every field does.

Imports the standard library alone: ``evalkit`` may import this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

NUM_DIGITS = 10


def list_id(pairs: Iterable[tuple[str, str]]) -> str:
    """Ten hex digits for the (clip id, class name) pairs of a list; an unlabelled clip has the class name "".

    Class *names* are hashed, so two label orders of the same classes agree and one changed label does not.
    A pair that occurs twice counts twice.
    """
    return _digest("list/1", pairs)


def media_id(pairs: Iterable[tuple[str, str]]) -> str:
    """Ten hex digits for the (clip id, sha256 of its file or of its decoded content) pairs of a copy."""
    return _digest("media/1", pairs)


def _digest(kind: str, pairs: Iterable[tuple[str, str]]) -> str:
    # JSON quotes every string, so ("a", "bc") and ("ab", "c") stay apart whatever the characters are.
    digest = hashlib.sha256(kind.encode())
    for first, second in sorted(pairs):
        digest.update(json.dumps([first, second]).encode())
    return digest.hexdigest()[:NUM_DIGITS]
