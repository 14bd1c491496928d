from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datakit.errors import BadManifest, NotComparable, UsageError
from evalkit import __main__ as command
from evalkit import protocols, scores
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

CHECKOUT = Path(command.__file__).resolve().parents[1]


def make(folder: Path, seed: int, chance: float, **changes: Any) -> ScoreSet:
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 8
    values = rng.dirichlet(np.ones(8), size=120) / 2
    values[np.arange(120), (labels + (rng.random(120) >= chance)) % 8] += 0.5
    score_set = ScoreSet(
        **{
            "ids": [f"clip {index}" for index in range(120)],
            "labels": labels,
            "scores": values,
            "classes": tuple("abcdefgh"),
            "kind": "prob",
            "signature": Signature(set="s", model="net", input=folder.name, agg="prob-mean", media="m"),
            "missing": [{"id": "lost", "label": "c", "reason": "empty file"}],
        }
        | changes
    )
    score_set.save(folder / "scores.npz")
    return score_set


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make(tmp_path / "rgb", 0, 0.6)
    make(tmp_path / "flow", 1, 0.5)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert command.main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_show(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores.load(runs / "rgb")
    text = run(capsys, "show", runs / "rgb")
    assert text.splitlines()[-3:] == [
        "scored      120 of 121 clips; 1 missing count as wrong",
        f"signature   {found.signature}",
        "missing     lost: empty file",
    ]
    assert run(capsys, "show", runs / "rgb" / "scores.npz") == text
    document = json.loads(run(capsys, "show", runs / "rgb", "--json"))
    assert document["schema"] == "evalkit-show/1"
    assert document["signature"] == str(found.signature)
    assert text.startswith(f"top-1       {100 * document['top1']:.2f} ± {100 * document['top1_se']:.2f}\n")


def test_show_keeps_the_rules_of_the_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs / "other", 2, 0.5, signature=Signature(missing="drop", metric="top1,mean_class-mmaction2"))
    document = json.loads(run(capsys, "show", runs / "other", "--json"))
    assert (document["missing"], document["mean_class_rule"], document["counted"]) == ("drop", "mmaction2", 120)


def test_fuse(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb, flow = scores.load(runs / "rgb"), scores.load(runs / "flow")
    flow.select(np.random.default_rng(0).permutation(120)).save(runs / "flow" / "scores.npz")
    text = run(capsys, "fuse", runs / "rgb", runs / "flow", "--weights", "1:1.5", "--out", runs / "both")
    fused = scores.load(runs / "both")
    np.testing.assert_allclose(fused.scores, rgb.scores + 1.5 * flow.scores.astype(np.float64))
    written = json.loads((runs / "both" / "metrics.json").read_text(encoding="utf-8"))
    assert written["signature"] == str(fused.signature)
    assert "input:rgb+flow|agg:prob-mean,fuse-prob(1:1.5)" in text
    assert f"part        1.5 x {flow.signature}" in text
    assert text.endswith(f"written     {runs / 'both' / 'scores.npz'}, {runs / 'both' / 'metrics.json'}\n")
    assert run(capsys, "show", runs / "both") == text[: text.index("written")]
    document = json.loads(run(capsys, "fuse", runs / "rgb", runs / "flow", "--weights", "1:1.5", "--json"))
    assert document["top1"] == written["top1"]
    assert document["fused"][0] == {"weight": 1.0, "signature": str(rgb.signature)}
    assert sorted(path.name for path in runs.iterdir()) == ["both", "flow", "rgb"]


def test_fuse_search(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb, flow = runs / "rgb", runs / "flow"
    text = run(capsys, "fuse", rgb, flow, "--search", "--out", runs / "both.npz")
    fused = scores.load(runs / "both.npz")
    found = fused.meta["search"]
    assert f"{100 * found['cross_validated']:.2f} top-1 cross-validated: 10 folds of clips" in text
    assert f"optimistic  {100 * found['optimistic']:.2f} top-1 with the weights chosen on the same clips" in text
    assert "the numbers above are optimistic" in text
    assert run(capsys, "show", runs / "both.npz") == text[: text.index("written")]  # and not only when it was made
    document = json.loads(run(capsys, "fuse", rgb, flow, "--search", "--json"))
    assert document["search"]["cross_validated"] == found["cross_validated"]
    assert document["top1"] == found["optimistic"]
    for name in ("rgb", "flow"):
        part = scores.load(runs / name)
        other = replace(part, ids=[f"train {clip_id}" for clip_id in part.ids], missing=[])
        other.save(runs / f"train-{name}" / "scores.npz")
    text = run(capsys, "fuse", rgb, flow, "--search", runs / "train-rgb", runs / "train-flow")
    assert "mixtures, chosen on s (there " in text
    assert "optimistic" not in text
    with pytest.raises(UsageError, match="type one of them"):
        command.main(["fuse", str(rgb), str(flow), "--search", "--weights", "1:1"])


def test_fuse_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = (runs / "rgb", runs / "flow")
    run(capsys, "fuse", *both, "--out", runs / "fused.npz")
    assert scores.load(runs / "fused.npz").ids == scores.load(runs / "rgb").ids
    for name in both:
        part = scores.load(name)
        part.missing = []
        part.save(name / "scores.npz")
    run(capsys, "fuse", *both, "--out", runs / "result.json")
    rows = json.loads((runs / "result.json").read_text())
    np.testing.assert_array_equal(rows, scores.load(runs / "fused.npz").scores)
    with pytest.raises(UsageError, match=r"ending in \.npz or \.json, or a folder"):
        command.main(["fuse", *map(str, both), "--out", str(runs / "fused.pkl")])
    with pytest.raises(UsageError, match="would overwrite"):
        command.main(["fuse", *map(str, both), "--out", str(runs / "rgb" / "scores.npz")])


def test_groups_on_the_command_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = json.loads(run(capsys, "show", runs / "rgb", "--json"))
    tens = json.loads(run(capsys, "show", runs / "rgb", "--groups", "((clip .|lost).*)", "--json"))
    assert (plain["unit"], tens["unit"]) == ("clip", "video")
    found = json.loads(run(capsys, "show", runs / "rgb", "--groups", "(clip .|lost)", "--json"))
    assert found["num_units"] == found["intervals"]["num_units"] == 11
    assert found["top1"] == plain["top1"]
    text = run(capsys, "compare", runs / "rgb", runs / "flow", "--groups", "(clip .|lost)")
    assert "of 121 clips of 11 source videos" in text


def test_fuse_refuses_in_words(runs: Path) -> None:
    both = [str(runs / "rgb"), str(runs / "flow")]
    with pytest.raises(UsageError, match=r"type --weights 1:1\.5"):
        command.main(["fuse", *both, "--weights", "1,1"])
    with pytest.raises(UsageError, match="2 score files and 3 weights; type --weights 1:1"):
        command.main(["fuse", *both, "--weights", "1:1:1"])
    with pytest.raises(UsageError, match="would overwrite"):
        command.main(["fuse", *both, "--out", str(runs / "rgb")])
    with pytest.raises(NotComparable, match="logits cannot be made"):
        command.main(["fuse", *both, "--on", "logit"])
    with pytest.raises(BadManifest, match="no such file"):
        command.main(["fuse", *both, str(runs / "pose")])


def test_compare(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs / "best", 2, 0.95)
    text = run(capsys, "compare", runs / "rgb", runs / "flow", runs / "best")
    assert text.count("verdict") == 3
    assert f"{runs / 'best'} is better than {runs / 'rgb'} by " in text
    assert "how         input: rgb -> flow" in text
    document = json.loads(run(capsys, "compare", runs / "rgb", runs / "best", "--metric", "mean_class", "--json"))
    (found,) = document["comparisons"]
    assert found["metric"] == "mean_class"
    assert found["differs"] is True
    assert found["n"] == 121


def test_compare_says_what_to_type(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = scores.load(runs / "rgb").select(list(range(100)))
    fewer.save(runs / "fewer" / "scores.npz")
    with pytest.raises(NotComparable, match="on the 100 clips that both scored, type --common"):
        command.main(["compare", str(runs / "fewer"), str(runs / "flow")])
    assert "of 100 clips" in run(capsys, "compare", runs / "fewer", runs / "flow", "--common")
    make(runs / "copy", 3, 0.6, signature=Signature(set="s", media="another"))
    with pytest.raises(NotComparable, match="type --across-copies"):
        command.main(["compare", str(runs / "copy"), str(runs / "flow")])
    assert "copy        media: another -> m" in run(capsys, "compare", runs / "copy", runs / "flow", "--across-copies")
    with pytest.raises(UsageError, match="two score files"):
        command.main(["compare", str(runs / "flow")])


def test_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(run(capsys, "report", runs / "rgb", runs / "flow", "--out", runs / "page.html").strip())
    assert page == runs / "page.html"
    text = page.read_text(encoding="utf-8")
    assert str(scores.load(runs / "rgb").signature.list) in text


def test_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "protocols").splitlines()
    assert lines[0].split() == ["protocol", "mode", "version", "views", "resize", "frames", "scores"]
    accurate = ["slowonly", "accurate", "1", "10x3@256", "256", "mmaction2-0.x", "prob-mean"]
    assert accurate in [line.split() for line in lines]
    rows = json.loads(run(capsys, "protocols", "--json"))["protocols"]
    assert {row["name"] for row in rows} == set(protocols.names())
    assert len(rows) == len(lines) - 1


def test_exit_codes_and_streams(runs: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "evalkit", *arguments], capture_output=True, text=True, cwd=CHECKOUT, check=False
        )

    done = call("show", str(runs / "rgb"))
    assert (done.returncode, done.stderr) == (0, "")
    usage = call("fuse", str(runs / "rgb"), str(runs / "flow"), "--weights", "x")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr.startswith("UsageError: --weights x")
    refused = call("show", str(runs / "nothing"))
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.startswith("BadManifest: ")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["fuse", "--help"], ["compare", "--help"], ["report", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, runpy, atexit\n"
        "heavy = ('numpy', 'pandas', 'torch', 'scipy', 'sklearn', 'matplotlib', 'jinja2', 'av')\n"
        "atexit.register(lambda: print('HEAVY', [name for name in heavy if name in sys.modules]))\n"
        f"sys.argv = ['evalkit', *{arguments!r}]\n"
        "runpy.run_module('evalkit', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m evalkit" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"
