from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datakit.errors import BadManifest, DataError, UsageError
from evalkit import __main__ as command
from evalkit import interop, metrics, scores
from evalkit.fuse import fuse
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

CHECKOUT = Path(interop.__file__).resolve().parents[1]


def probabilities(num_rows: int = 6, num_classes: int = 4, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).dirichlet(np.ones(num_classes), size=num_rows)
    return values.astype(np.float32)


def dump(path: Path, what: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(what, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_mmaction2(tmp_path: Path, protocol: int) -> None:
    want = probabilities()
    found = interop.read(dump(tmp_path / "r.pkl", list(want), protocol))
    np.testing.assert_array_equal(found.scores, want)
    assert (found.program, found.kind, found.labels, found.names, found.divided_by) == (
        "mmaction2", "prob", None, None, 1)  # fmt: skip
    assert found.scores.dtype == np.float32
    columns_first = [np.asfortranarray(want)[row] for row in range(len(want))]
    np.testing.assert_array_equal(interop.read(dump(tmp_path / "f.pkl", columns_first, protocol)).scores, want)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_samples_of_mmaction2(tmp_path: Path, protocol: int) -> None:
    batch = torch.from_numpy(probabilities())  # rows of a batch share its storage
    samples = [
        {
            "pred_score": row,
            "pred_label": row.argmax().reshape(1),
            "gt_label": torch.tensor([number % 4]),
            "num_classes": 4,
        }
        for number, row in enumerate(batch)
    ]
    found = interop.read(dump(tmp_path / "r.pkl", samples, protocol))
    np.testing.assert_array_equal(found.scores, batch.numpy())
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1]
    older = [{"pred_scores": {"item": s["pred_score"]}, "gt_labels": {"item": s["gt_label"]}} for s in samples]
    again = interop.read(dump(tmp_path / "older.pkl", older, protocol))
    np.testing.assert_array_equal(again.scores, found.scores)
    assert again.labels is not None
    assert again.labels.tolist() == found.labels.tolist()


def test_one_array_of_all_rows(tmp_path: Path) -> None:
    want = probabilities()
    np.testing.assert_array_equal(interop.read(dump(tmp_path / "r.pkl", want)).scores, want)


def test_lists_in_json(tmp_path: Path) -> None:
    want = probabilities().astype(np.float64)
    (tmp_path / "r.json").write_text(json.dumps(want.tolist()))
    np.testing.assert_array_equal(interop.read(tmp_path / "r.json").scores, want)


@pytest.mark.parametrize("names", [None, ["a/x.mp4", "b/y.mp4", "a/z.mp4", "c/1.mp4", "c/2.mp4", "c/3.mp4"]])
def test_pyslowfast(tmp_path: Path, names: list[str] | None) -> None:
    want = probabilities()
    parts: list[Any] = [torch.from_numpy(want) * 30, torch.arange(6) % 4, *([names] if names else [])]
    found = interop.read(dump(tmp_path / "r.pkl", parts))
    assert (found.program, found.kind, found.divided_by) == ("pyslowfast", "prob", 30)
    np.testing.assert_allclose(found.scores, want, rtol=1e-6)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.names == (None if names is None else tuple(names))


def test_what_the_scores_are(tmp_path: Path) -> None:
    softmax = probabilities()
    views = np.stack([probabilities(seed=seed) for seed in range(10)])
    assert interop._kind(softmax)[1:] == ("prob", 1)
    assert interop._kind(views.sum(axis=0))[1:] == ("prob", 10)
    assert interop._kind(views.max(axis=0))[1:] == ("prob", 1)  # PySlowFast's ENSEMBLE_METHOD max
    assert interop._kind(np.log(softmax))[1:] == ("logit", 1)
    assert interop._kind(softmax * 7.3)[1:] == ("logit", 1)
    assert interop._kind(softmax * np.arange(1, 7, dtype=np.float32)[:, None])[1:] == ("logit", 1)
    assert interop._kind(softmax * 700.4)[1:] == ("logit", 1)


def test_views_that_were_added_twice_and_rows_of_nan() -> None:
    """PySlowFast on several GPUs pads with copies, and adds their scores again."""
    softmax = probabilities()
    times = np.float32([30, 30, 30, 30, 31, 33])[:, None]
    shares, kind, divided_by = interop._kind(softmax * times)
    assert (kind, divided_by) == ("prob", 30)
    np.testing.assert_allclose(shares, softmax, rtol=1e-6)
    softmax[2, 1] = np.nan
    shares, kind, _ = interop._kind(softmax * 30)
    assert kind == "prob"
    np.testing.assert_allclose(shares, softmax, rtol=1e-6)


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    for tensor in (
        whole, whole.transpose(0, 2), whole[1, 1:], whole.double(), whole.half(), whole.long(), whole.int(),
        whole.short(), whole.to(torch.uint8), torch.tensor(3), torch.empty(0, 2), torch.nn.Parameter(whole).detach(),
    ):  # fmt: skip
        found = interop._unpickled(dump(tmp_path / "t.pkl", {"x": tensor, "size": tensor.shape, "y": OrderedDict(a=1)}))
        assert found["x"].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(found["x"], tensor.numpy())
        assert found["size"] == list(tensor.shape)
        assert found["y"] == {"a": 1}


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def nested(payload: bytes) -> bytes:
    """A pickle that hands these bytes to torch's reader of storages."""
    inner = pickle.dumps(payload, protocol=4)[11:-1]  # without the head and the stop
    return b"\x80\x04ctorch.storage\n_load_from_bytes\n(" + inner.replace(b"\x94", b"") + b"tR."


def test_nothing_in_a_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.pkl"
    dump(path, [Evil()])
    with pytest.raises(BadManifest, match=r"holds the object builtins\.print, which is no array"):
        interop.read(path)
    dump(path, [Path("x")])
    with pytest.raises(BadManifest, match="holds the object pathlib"):
        interop.read(path)
    path.write_bytes(nested(pickle.dumps(Evil(), protocol=2)))  # hidden in the bytes of a tensor
    with pytest.raises(BadManifest, match=r"holds the object (builtins|__builtin__)\.print"):
        interop.read(path)
    dump(path, np.array([Evil()], dtype=object))
    with pytest.raises(BadManifest, match=r"builtins\.print"):
        interop.read(path)
    path.write_bytes(b"\x80\x02(cposix\nsystem\nX\x04\x00\x00\x00trueR.")
    with pytest.raises(BadManifest, match=r"posix\.system"):
        interop.read(path)
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(BadManifest, match="outside of the file"):
        interop.read(path)
    assert "run" not in capsys.readouterr().out


def test_tensors_cannot_reach_outside_their_numbers(tmp_path: Path) -> None:
    raw = pickle.dumps(torch.arange(4.0), protocol=4)
    size = b"K\x04\x85\x94K\x01\x85"  # (4,) and stride (1,)
    assert raw.count(size) == 1
    for forged in (b"K\x05\x85\x94K\x01\x85", b"K\x04\x85\x94K\x09\x85", b"K\x02\x85\x94J\xff\xff\xff\xff\x85"):
        path = tmp_path / "r.pkl"
        path.write_bytes(raw.replace(size, forged).replace(raw[2:11], b""))  # the frame's length would be wrong
        with pytest.raises(BadManifest, match="beyond its numbers"):
            interop.read(path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ([], "a list of 0"),
        ({"a": 1}, "a dict of 1"),
        ([{"other": 1}], "a sample without pred_score: keys other"),
        ([{"pred_score": np.ones(3), "gt_label": np.array([1, 2])}], "2 labels"),
        ([np.ones(3), np.ones(4)], "not all scores of the same classes"),
        ([np.ones((2, 3)), np.ones(5)], "PySlowFast writes"),
        ([np.ones((2, 3)), np.ones(2), ["a"]], "2 rows of scores and 1 names"),
        (["a", "b"], "not all scores"),
        ([["a"], ["b"]], "no numbers"),
    ],
)
def test_what_is_no_result_is_said(tmp_path: Path, what: Any, message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        interop.read(dump(tmp_path / "r.pkl", what))


def test_broken_files(tmp_path: Path) -> None:
    raw = pickle.dumps(list(probabilities()), protocol=4)
    for end in (1, 5, 40, len(raw) // 2, len(raw) - 1):
        (tmp_path / "r.pkl").write_bytes(raw[:end])
        with pytest.raises(BadManifest, match=r"r\.pkl"):
            interop.read(tmp_path / "r.pkl")
    (tmp_path / "r.json").write_text("[[0.5, ")
    with pytest.raises(BadManifest, match="no JSON"):
        interop.read(tmp_path / "r.json")


def test_the_list_must_be_the_files(tmp_path: Path) -> None:
    found = interop.read(dump(tmp_path / "r.pkl", [torch.from_numpy(probabilities()), torch.arange(6) % 4]))
    ids = list("abcdef")
    made = found.score_set(ids, [0, 1, 2, 3, 0, 1], ("w", "x", "y", "z"), set_name="val")
    assert made.pairs()[:3] == [("a", "w"), ("b", "x"), ("c", "y")]
    assert (made.signature.set, made.signature.model, made.signature.agg) == ("val", "r", "pyslowfast-result")
    with pytest.raises(DataError, match="6 rows, the list 5"):
        found.score_set(ids[:5], [0] * 5)
    with pytest.raises(DataError, match=r"says label 1 in row 1, the list 2 \(b\).*2 rows differ"):
        found.score_set(ids, [0, 2, 1, 3, 0, 1])
    with pytest.raises(DataError, match="4 classes, 3 names"):
        found.score_set(ids, None, ("x", "y", "z"))


def test_json_out_and_in_again(tmp_path: Path) -> None:
    part = interop.read(dump(tmp_path / "r.pkl", list(probabilities()))).score_set(list("abcdef"), [0, 1, 2, 3, 0, 1])
    both = fuse([part, part], (1, 1.5))
    interop.write_json(both, tmp_path / "out.json", ids=list("fedcba"))
    again = interop.read(tmp_path / "out.json")
    np.testing.assert_array_equal(again.scores, both.scores[::-1])
    lines = json.loads((tmp_path / "out.json").read_text())
    assert isinstance(lines, list)
    assert [len(line) for line in lines] == [4] * 6
    with pytest.raises(DataError, match="none for 'g'"):
        interop.write_json(both, tmp_path / "out.json", ids=list("abcdefg"))
    both.missing.append({"id": "h", "label": None, "reason": "gone"})
    with pytest.raises(DataError, match="none for 'h'"):
        interop.write_json(both, tmp_path / "out.json")
    both.missing.clear()
    both.scores[0, 0] = np.nan
    with pytest.raises(DataError, match="no numbers"):
        interop.write_json(both, tmp_path / "out.json")


# --- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    assert command.main(["fuse", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.fixture
def golden_files(golden: Path, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    """The streams of the golden numbers as the programs would have written them, and their list."""
    with np.load(golden / "mmaction2" / "metrics.npz", allow_pickle=False) as file:
        arrays = dict(file)
    cases = json.loads((golden / "mmaction2" / "metrics.json").read_text())["fusion"]
    labels = arrays["labels"]
    dump(tmp_path / "rgb_prob.pkl", list(arrays["scores/rgb_prob"]), 2)
    samples = [
        {"pred_score": torch.from_numpy(row), "gt_label": torch.tensor([label])}
        for row, label in zip(arrays["scores/flow_prob"], labels, strict=True)
    ]
    dump(tmp_path / "flow_prob.pkl", samples, 2)
    order = np.random.default_rng(0).permutation(len(labels))
    dump(tmp_path / "pose_prob.pkl", [torch.from_numpy(arrays["scores/pose_prob"][order] * 30),
                                      torch.from_numpy(labels[order])])  # fmt: skip
    names = [f"some class/clip_{row:06}" for row in range(len(labels))]
    (tmp_path / "val.txt").write_text(
        "".join(f"{n.replace(' ', '_')}.mp4 {v}\n" for n, v in zip(names, labels, strict=True))
    )
    (tmp_path / "val.csv").write_text("".join(f"/data/{names[r].replace(' ', '_')}.mp4,{labels[r]}\n" for r in order))
    return tmp_path, arrays, cases


def test_golden_fusions_from_foreign_files(
    golden_files: tuple[Path, dict[str, np.ndarray], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arrays, cases = golden_files
    lists = ("--list", folder / "val.txt", "--list", folder / "val.txt", "--list", folder / "val.csv")
    files = [folder / f"{name}_prob.pkl" for name in ("rgb", "flow", "pose")]
    for name in ("rgb_prob+flow_prob+pose_prob@1:1:1", "rgb_prob+flow_prob+pose_prob@2:1.5:0.5"):
        out = folder / "fused.npz"
        text, _ = run(capsys, *files, "--weights", name.partition("@")[2], *lists, "--out", out)
        found = scores.load(out)
        np.testing.assert_allclose(found.scores, arrays[f"fused/{name}"], rtol=2e-6, atol=1e-8)
        assert metrics.top_k(found.scores, found.labels, 1) == cases[name]["top1"]
        assert metrics.mean_class(found.scores, found.labels, "mmaction2") == pytest.approx(cases[name]["mean1"])
        assert text.endswith(f"written     {out}\n")
    name = "rgb_prob+flow_prob@1:1.5"
    out = folder / "result.json"
    run(capsys, *files[:2], "--weights", "1:1.5", "--list", folder / "val.txt", "--out", out)
    np.testing.assert_allclose(json.loads(out.read_text()), arrays[f"fused/{name}"], rtol=2e-6, atol=1e-8)


def test_rows_in_the_order_of_the_list(
    golden_files: tuple[Path, dict[str, np.ndarray], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arrays, _ = golden_files
    ours = ScoreSet(
        ids=[f"clip_{row:06}" for row in range(200)][::-1],
        labels=arrays["labels"][::-1],
        scores=arrays["scores/flow_prob"][::-1],
        classes=tuple(f"class {number}" for number in range(99)),
        kind="prob",
        signature=Signature(set="s"),
    )
    ours.save(folder / "ours" / "scores.npz")
    out = folder / "result.json"
    run(capsys, folder / "ours", folder / "rgb_prob.pkl", "--list", folder / "val.txt", "--out", out)
    np.testing.assert_allclose(
        json.loads(out.read_text()), arrays["fused/rgb_prob+flow_prob@1:1"], rtol=2e-6, atol=1e-8
    )
    run(capsys, folder / "ours", folder / "rgb_prob.pkl", "--list", folder / "val.txt", "--out", folder / "both")
    assert scores.load(folder / "both").classes == ours.classes  # names win over numbers
    assert (folder / "both" / "metrics.json").is_file()


def test_rows_by_place_only_with_equal_labels(
    golden_files: tuple[Path, dict[str, np.ndarray], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arrays, _ = golden_files
    labels = torch.from_numpy(arrays["labels"])
    dump(folder / "same.pkl", [torch.from_numpy(arrays["scores/rgb_prob"]), labels])
    _, err = run(capsys, folder / "same.pkl", folder / "flow_prob.pkl", "--out", folder / "fused.npz")
    assert "joined by their place" in err
    np.testing.assert_allclose(
        scores.load(folder / "fused.npz").scores, arrays["fused/rgb_prob+flow_prob@1:1"], rtol=2e-6, atol=1e-8
    )
    with pytest.raises(UsageError, match="of other lists, or of one in another order"):
        command.main(["fuse", str(folder / "pose_prob.pkl"), str(folder / "flow_prob.pkl")])
    with pytest.raises(UsageError, match="type --list FILE"):
        command.main(["fuse", str(folder / "rgb_prob.pkl"), str(folder / "flow_prob.pkl")])
    with pytest.raises(DataError, match="in another order"):
        command.main(
            ["fuse", str(folder / "rgb_prob.pkl"), str(folder / "pose_prob.pkl"), "--list", str(folder / "val.txt")]
        )


def test_names_in_the_file_need_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    want = probabilities()
    labels, names = torch.arange(6) % 4, [f"dir/{letter}.mp4" for letter in "abcdef"]
    dump(tmp_path / "a.pkl", [torch.from_numpy(want), labels, names])
    dump(tmp_path / "b.pkl", [torch.from_numpy(want[::-1].copy()), labels.flip(0), names[::-1]])
    run(capsys, tmp_path / "a.pkl", tmp_path / "b.pkl", "--out", tmp_path / "both.npz")
    found = scores.load(tmp_path / "both.npz")
    assert found.ids == list("abcdef")
    np.testing.assert_allclose(found.scores, 2 * want, rtol=1e-6)


def test_lists_that_cannot_be_the_files_are_named(tmp_path: Path) -> None:
    dump(tmp_path / "r.pkl", list(probabilities()))

    def said(lines: str, *more: str) -> str:
        (tmp_path / "list.txt").write_text(lines)
        arguments = ["show", str(tmp_path / "r.pkl"), "--list", str(tmp_path / "list.txt"), *more]
        with pytest.raises((UsageError, DataError)) as raised:
            command.main(arguments)
        return str(raised.value)

    six = [f"v/{letter}.mp4" for letter in "abcdef"]
    from_one = "".join(f"{path} {min(number, 4)}\n" for number, path in enumerate(six, start=1))
    assert "it counts from 1; write labels that count from 0" in said(from_one)
    assert "labels from 3 to 8: it is of another set" in said("".join(f"{p} {n}\n" for n, p in enumerate(six, start=3)))
    assert "lists v/a.mp4 twice" in said("".join(f"{path} 0\n" for path in [*six[:5], "v/a.mp4"]))
    assert "--classes none.txt is not there" in said("".join(f"{path} 0\n" for path in six), "--classes", "none.txt")


def test_show_a_foreign_file(
    golden_files: tuple[Path, dict[str, np.ndarray], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arrays, _ = golden_files
    assert command.main(["show", str(folder / "rgb_prob.pkl"), "--list", str(folder / "val.txt"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["top1"] == metrics.top_k(arrays["scores/rgb_prob"], arrays["labels"], 1)
    assert command.main(["show", str(folder / "pose_prob.pkl"), "--csv", str(folder / "val.csv"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["top1"] == metrics.top_k(arrays["scores/pose_prob"], arrays["labels"], 1)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = dump(tmp_path / "r.pkl", [torch.from_numpy(probabilities()), torch.arange(6) % 4])
    code = (
        "import sys; from pathlib import Path; from evalkit import interop\n"
        f"print(interop.read(Path({str(path)!r})).scores.shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.stdout == "(6, 4) False\n", done.stderr


def test_files_of_torch_save_inside_are_as_torch_reads_them() -> None:
    tensor = torch.arange(5.0)
    stream = io.BytesIO()
    torch.save(tensor.untyped_storage(), stream, _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match="UntypedStorage"):
        interop._Storage(stream.getvalue())
