from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datakit import fingerprint
from datakit.errors import BadManifest, DataError, HashMismatch, NotComparable
from evalkit import scores
from evalkit.scores import ScoreSet
from evalkit.signature import Signature


def make(**changes: Any) -> ScoreSet:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "ids": ["clip b", "clip é", "clip a"],
        "labels": np.array([1, 0, -1]),
        "scores": rng.random((3, 2), dtype=np.float32),
        "classes": ("jump", "run"),
        "kind": "prob",
        "views": rng.random((3, 4, 2)).astype(np.float16),
        "signature": Signature(set="a|b", model="tiny"),
        "missing": [{"id": "clip x", "label": "run", "reason": "damaged: 3 of 10 frames"}],
        "meta": {"seconds": 1.5, "partial": False},
    }
    return ScoreSet(**(values | changes))


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    original = make()
    original.save(tmp_path / "scores.npz")
    for path in (tmp_path / "scores.npz", tmp_path, str(tmp_path)):
        found = scores.load(path)
        assert found.ids == original.ids
        assert found.classes == original.classes
        assert found.signature == original.signature
        assert found.missing == original.missing
        assert found.meta == original.meta
        assert found.kind == "prob"
        np.testing.assert_array_equal(found.labels, original.labels)
        np.testing.assert_array_equal(found.scores, original.scores)
        np.testing.assert_array_equal(found.views, original.views)
        assert (found.scores.dtype, found.labels.dtype, found.views.dtype) == (np.float32, np.int64, np.float16)


def test_same_scores_give_same_bytes(tmp_path: Path) -> None:
    make().save(tmp_path / "a.npz")
    make().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_file_holds_no_pickle(tmp_path: Path) -> None:
    make().save(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)
        assert arrays["ids"].tolist() == make().ids


def test_signature_says_what_was_scored() -> None:
    found = make(signature=Signature(n=99, list="nonsense"))
    assert found.signature.n == 3
    assert found.signature.list == fingerprint.list_id([("clip b", "run"), ("clip é", "jump"), ("clip a", "")])


def test_list_ignores_row_order_and_label_order() -> None:
    original = make()
    assert original.select([2, 0, 1]).signature == original.signature
    other_order = make(classes=("run", "jump"), labels=np.array([0, 1, -1]))
    assert other_order.signature.list == original.signature.list
    one_label_changed = make(labels=np.array([0, 0, -1]))
    assert one_label_changed.signature.list != original.signature.list
    one_clip_less = original.select([0, 1])
    assert one_clip_less.signature.list != original.signature.list
    assert one_clip_less.signature.n == 2


def test_select_keeps_rows_together() -> None:
    original = make()
    found = original.select([2, 0])
    assert found.ids == ["clip a", "clip b"]
    np.testing.assert_array_equal(found.labels, [-1, 1])
    np.testing.assert_array_equal(found.scores, original.scores[[2, 0]])
    np.testing.assert_array_equal(found.views, original.views[[2, 0]])


def test_class_order_moves_labels_scores_and_views_together() -> None:
    rng = np.random.default_rng(0)
    original = make(
        classes=("a", "b", "c"),
        labels=np.array([2, 0, -1]),
        scores=rng.random((3, 3)),
        views=rng.random((3, 2, 3)),
        missing=[],
    )
    found = original.in_class_order(("c", "a", "b"))
    assert found.labels.tolist() == [0, 1, -1]
    assert found.label_names() == original.label_names()
    assert found.signature == original.signature
    np.testing.assert_array_equal(found.scores, original.scores[:, [2, 0, 1]])
    np.testing.assert_array_equal(found.views, original.views[:, :, [2, 0, 1]])
    assert found.in_class_order(original.classes).labels.tolist() == original.labels.tolist()
    with pytest.raises(NotComparable, match="3 classes against 5; only here: 'c'; only there: 'd', 'e', 'f'"):
        original.in_class_order(("a", "b", "d", "e", "f"))


def test_nothing_scored_is_possible(tmp_path: Path) -> None:
    empty = make(ids=[], labels=np.zeros(0), scores=np.zeros((0, 2)), views=None)
    empty.save(tmp_path / "scores.npz")
    assert scores.load(tmp_path).signature.n == 0


def test_fused_scores_keep_double_precision(tmp_path: Path) -> None:
    make(scores=np.full((3, 2), 1 / 3, dtype=np.float64)).save(tmp_path / "scores.npz")
    assert scores.load(tmp_path).scores.dtype == np.float64
    assert make(scores=np.zeros((3, 2), dtype=np.float16)).scores.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a", "b", "a"]}, "'a' occurs twice"),
        ({"missing": [{"id": "clip a", "label": None, "reason": "?"}]}, "'clip a' occurs twice"),
        ({"missing": [{"id": "clip x", "label": "swim", "reason": "?"}]}, "'swim' is none of"),
        ({"missing": [{"id": "clip x"}]}, "id, label, reason"),
        ({"labels": np.array([0, 1])}, "labels"),
        ({"labels": np.array([0, 1, 2])}, "0 to 2"),
        ({"labels": np.array([0, 1, -2])}, "-2 to 1"),
        ({"scores": np.zeros((3, 3))}, "3 clips x 2 classes"),
        ({"classes": ("run", "run")}, "different"),
        ({"kind": "softmax"}, "'prob' or 'logit'"),
        ({"views": np.zeros((3, 4, 3))}, "view scores"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_changed_file_is_noticed(tmp_path: Path) -> None:
    make().save(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as arrays:
        parts = dict(arrays)
    parts["labels"] = np.array([0, 0, -1])
    np.savez(tmp_path / "scores.npz", **parts)
    with pytest.raises(HashMismatch, match="changed after the run"):
        scores.load(tmp_path)


def test_what_is_no_score_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"nothing\.npz: no such file"):
        scores.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("top1 75.1")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "pickle.npz", format=np.array([{}], dtype=object))
    for name in ("text.npz", "other.npz", "array.npy", "empty.npz", "pickle.npz"):
        with pytest.raises(BadManifest, match=name):
            scores.load(tmp_path / name)


def test_signature_can_be_replaced() -> None:
    found = make()
    found.signature = replace(found.signature, dtype="bf16")
    assert found.signature.dtype == "bf16"


def test_media_is_that_of_the_rows_files(tmp_path: Path) -> None:
    files = ["11" * 32, "22" * 32, "33" * 32]
    whole = make(files=files, signature=Signature(set="s", media="320p-told"))
    assert whole.signature.media == f"320p-{fingerprint.media_id(zip(whole.ids, files, strict=True))}"
    assert whole.select([2, 0, 1]).signature == whole.signature
    whole.save(tmp_path / "scores.npz")
    assert scores.load(tmp_path).files == files
    assert scores.load(tmp_path).signature == whole.signature
    other = make(files=[*files[:2], "44" * 32], signature=Signature(set="s", media="320p-told"))
    assert other.signature.media != whole.signature.media
    assert other.signature.list == whole.signature.list
    assert other.select([0, 1]).signature == whole.select([0, 1]).signature
    assert make(files=files, signature=Signature()).signature.media == fingerprint.media_id(
        zip(whole.ids, files, strict=True)
    )
    with pytest.raises(DataError, match="2 hashes of files do not fit 3 clips"):
        make(files=files[:2])
