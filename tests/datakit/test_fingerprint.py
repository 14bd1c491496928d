from __future__ import annotations

import random

from datakit import fingerprint

PAIRS = [("b_000001_000011", "abseiling"), ("a_000001_000011", "zumba"), ("c", "")]


def test_row_order_does_not_matter() -> None:
    shuffled = PAIRS.copy()
    random.Random(0).shuffle(shuffled)
    assert fingerprint.list_id(shuffled) == fingerprint.list_id(iter(PAIRS))


def test_ten_hex_digits_that_stay() -> None:
    # Published signatures hold this value: a change of the recipe must be noticed.
    assert fingerprint.list_id(PAIRS) == "2dd46415ed"
    assert fingerprint.media_id(PAIRS) == "dd7b910f1d"


def test_every_field_counts() -> None:
    original = fingerprint.list_id(PAIRS)
    changed = [
        [("b_000001_000011", "Abseiling"), *PAIRS[1:]],
        [("b_000001_000012", "abseiling"), *PAIRS[1:]],
        PAIRS[1:],
        [*PAIRS, PAIRS[0]],
        [(PAIRS[0][0], PAIRS[1][1]), (PAIRS[1][0], PAIRS[0][1]), PAIRS[2]],
    ]
    ids = [fingerprint.list_id(pairs) for pairs in changed]
    assert original not in ids
    assert len(set(ids)) == len(ids)


def test_fields_do_not_run_into_each_other() -> None:
    lists = [[("ab", "c")], [("a", "bc")], [("a", "b"), ("c", "")], [('a", "b', "c")], [("a\0b", "c")], [("a", "b\0c")]]
    assert len({fingerprint.list_id(pairs) for pairs in lists}) == len(lists)


def test_list_and_media_are_different_kinds() -> None:
    assert fingerprint.list_id(PAIRS) != fingerprint.media_id(PAIRS)
