from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit import fingerprint
from datakit.errors import DataError
from evalkit import scores, signature
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

LINE = (
    "set:k400-val|n:19796|list:06e3163c80|labels:k400|metric:top1|model:slowonly_r50_4x16|clip:4x16|views:10x3@256"
    "|sampling:mmaction2-0.x|resize:256-cv2|input:rgb|agg:prob-mean|missing:wrong|weights:a69556c6|media:320p-9f3c"
    "|dec:pyav-18.1|dtype:bf16|kit:0.1.0"
)


def test_the_line_is_the_one_of_the_design() -> None:
    found = Signature.parse(LINE)
    assert found.n == 19796
    assert found.views == "10x3@256"
    assert str(found) == LINE


def test_groups_name_every_field_once() -> None:
    groups = signature.WHAT + signature.HOW + signature.COPY + signature.WITH
    assert tuple(Signature.__dataclass_fields__) == groups


@given(values=st.lists(st.text(), min_size=17, max_size=17), n=st.integers(0, 10**9))
def test_any_value_survives(values: list[str], n: int) -> None:
    names = [name for name in Signature.__dataclass_fields__ if name != "n"]
    original = Signature(n=n, **dict(zip(names, values, strict=True)))
    assert Signature.parse(str(original)) == original


def test_unknown_parts_are_left_out_and_stay_unknown() -> None:
    line = str(Signature(set="s", missing="", metric=""))
    assert line == "set:s|n:0"
    assert Signature.parse(line).missing == ""


@pytest.mark.parametrize("text", ["", "75.1 %", "set:a|n:1|colour:red", "set:a|set:b|n:1", "set:a", "set:a|n:many"])
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a signature"):
        Signature.parse(text)


# --- of what was really scored ---------------------------------------------------------------------------------------

FILES = [(f"clip {number}", f"{number:064x}") for number in range(12)]


def scored(files: list[tuple[str, str]] = FILES) -> ScoreSet:
    labels = np.array([int(clip_id.split()[1]) % 3 for clip_id, _ in files])
    return ScoreSet(
        ids=[clip_id for clip_id, _ in files], labels=labels, scores=np.eye(3, dtype=np.float32)[labels],
        classes=("a", "b", "c"), kind="prob", signature=Signature(set="s", media=f"320p-{fingerprint.media_id(files)}"),
    )  # fmt: skip


def test_another_row_order_changes_nothing(tmp_path: Path) -> None:
    shuffled = [FILES[place] for place in np.random.default_rng(0).permutation(12)]
    assert scored(shuffled).signature == scored().signature
    assert scored().in_class_order(("c", "a", "b")).signature == scored().signature
    scored(shuffled).save(tmp_path / "scores.npz")
    assert str(scores.load(tmp_path).signature) == str(scored().signature)
    assert Signature.parse(str(scored().signature)) == scored().signature


def test_one_clip_less_changes_list_n_and_media() -> None:
    changed = parts_changed(scored(), scored(FILES[1:]))
    assert changed == {"n", "list", "media"}


def test_one_changed_label_changes_the_list() -> None:
    before = scored()
    after = replace(before, labels=np.where(np.arange(12) == 7, 2, before.labels))
    assert parts_changed(before, after) == {"list"}


def test_one_file_encoded_anew_changes_the_media() -> None:
    after = scored([*FILES[:-1], (FILES[-1][0], "f" * 64)])
    assert parts_changed(scored(), after) == {"media"}


def parts_changed(a: ScoreSet, b: ScoreSet) -> set[str]:
    return {name for name in Signature.__dataclass_fields__ if getattr(a.signature, name) != getattr(b.signature, name)}
