"""Which published copy of a validation list a run was made on, or what it lacks of the nearest one."""

from __future__ import annotations

import functools

from datakit import fingerprint
from datakit.fingerprint import CopyMatch

from .scores import ScoreSet

LARGEST_SHIFT = 10.0  # points of top-1 that two lists may differ by and still be called copies of one another
FEWEST_UNNAMED = 500  # clips of a list whose set is not named, to look for them in all the sets there are


def nearest(score_set: ScoreSet) -> CopyMatch | None:
    """The published copy nearest to the clips that were scored; ``None`` where none is near or nothing is published."""
    return _nearest(score_set.signature.set, tuple(score_set.ids))


@functools.lru_cache(maxsize=8)  # a table asks for each published row
def _nearest(set_and_split: str, ids: tuple[str, ...]) -> CopyMatch | None:
    known = {(official.set_name, official.split) for official in fingerprint.official_lists()}
    set_name, _, split = set_and_split.rpartition("-")
    if (set_name, split) in known:
        matches = fingerprint.copies_matching(ids, set_name=set_name, split=split)
    elif len(ids) >= FEWEST_UNNAMED:
        matches = fingerprint.copies_matching(ids)
    else:
        return None
    near = [match for match in matches if match.num_both is not None and match.largest_top1_shift <= LARGEST_SHIFT]
    return near[0] if near else None


def sentence(score_set: ScoreSet) -> str:
    """``19 759 of PySlowFast's 19 761, 35 others``; "" where no published copy is near."""
    match = nearest(score_set)
    return "" if match is None else str(match)
