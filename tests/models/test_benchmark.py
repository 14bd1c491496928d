"""The benchmark of trained networks: what it runs, what it skips, what it says."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datakit.errors import DataError, UsageError
from evalkit.scores import ScoreSet
from evalkit.signature import Signature
from models import benchmark

CLASSES = ("up", "down", "left", "right", "turn", "still")
NUM_CLIPS = 120
Prepared = Callable[..., Path]


def planned(out: Path, data_root: Path, *options: str) -> benchmark.Plan:
    arguments = ["data", "mine", "slowonly_tiny", "--data-root", str(data_root), "--out", str(out), "--recipe", "tiny"]
    return benchmark.planned(benchmark.parser().parse_args([*arguments, *options]))


@pytest.fixture
def plan(make_prepared: Prepared, tmp_path: Path) -> benchmark.Plan:
    for variant in ("256p", "320p", "harm-16p"):
        make_prepared("mine", variant, num_clips=4)
    return planned(tmp_path / "out", tmp_path / "data", "--variants", "256p,320p", "--seeds", "3")


def pretend(plan: benchmark.Plan, chance: dict[str, float]) -> None:
    """Write what training and testing would: networks that are right with the chance of their variant."""
    random = np.random.default_rng(0)
    labels = random.integers(0, len(CLASSES), NUM_CLIPS)
    hard = random.normal(0, 0.15, NUM_CLIPS)
    for step in (step for chain in benchmark.chains(plan) for step in chain):
        if "evalkit.run" in step.arguments:
            name = step.folder.parent.name.rpartition("-s")[0]
            right = random.random(NUM_CLIPS) < chance[name] + hard
            guesses = np.where(right, labels, (labels + random.integers(1, len(CLASSES), NUM_CLIPS)) % len(CLASSES))
            scores = np.full((NUM_CLIPS, len(CLASSES)), 0.1, np.float32)
            scores[np.arange(NUM_CLIPS), guesses] = 0.5
            ScoreSet(
                ids=[f"clip_{number:03}" for number in range(NUM_CLIPS)], labels=labels, scores=scores,
                classes=CLASSES, kind="prob", signature=Signature(set="mine-val"),
            ).save(step.folder / "scores.npz")  # fmt: skip
        step.folder.mkdir(parents=True, exist_ok=True)
        (step.folder / benchmark.FINISHED).write_text(json.dumps({"key": step.key, "seconds": 2.0}))


def test_every_network_is_trained_and_tested_once(plan: benchmark.Plan) -> None:
    chains = benchmark.chains(plan)
    names = [chain[0].name for chain in chains]
    assert names == [
        *(f"train {name}-s{seed}" for seed in (0, 1, 2) for name in ("256p", "320p", "harm-16p")),
        *(f"train 256p-s{seed}" for seed in (3, 4, 5)),  # A/A
    ]
    assert [step.folder.name for step in chains[0]] == [
        "256p-s0", "efficient", "accurate", "on-320p", "on-harm-16p",
    ]  # fmt: skip
    assert [step.folder.name for step in chains[-1]] == ["256p-s5", "efficient", "accurate"]
    same = [[word for word in chain[0].arguments if word not in ("--data", "--out")] for chain in chains[:2]]
    assert same[0][same[0].index("--recipe") :] == same[1][same[1].index("--recipe") :]
    assert not {step.key for step in chains[0]} & {step.key for step in chains[3]}  # another seed


def test_other_files_or_another_recipe_are_another_step(plan: benchmark.Plan, make_prepared: Prepared) -> None:
    before = [step.key for step in benchmark.chains(plan)[0]]
    assert [step.key for step in benchmark.chains(plan)[0]] == before
    other = dataclasses.replace(plan, recipe="slowonly")
    assert not {step.key for step in benchmark.chains(other)[0]} & set(before)


def test_what_is_finished_is_skipped_and_a_failure_says_how_to_go_on(tmp_path: Path) -> None:
    def step(name: str, code: str) -> benchmark.Step:
        folder = tmp_path / name
        (tmp_path / "tool.py").write_text("import sys\nexec(sys.argv[1])\n")
        return benchmark.Step(name=name, folder=folder, arguments=("tool", code), key=name)

    work = "open('ran.txt', 'a').write('x')"
    steps = [step("first", work), step("second", "sys.exit('no such thing')"), step("third", work)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        with pytest.raises(DataError, match=r"second ended with exit code 1: no such thing; all of it: .*log.txt"):
            benchmark.run_all([steps], jobs=2)
        assert (tmp_path / "ran.txt").read_text() == "x"
        benchmark.run_all([[steps[0], dataclasses.replace(steps[1], arguments=("tool", work)), steps[2]]], jobs=1)
        assert (tmp_path / "ran.txt").read_text() == "xxx"
        assert all(one.finished() for one in steps)
        assert not dataclasses.replace(steps[0], key="other").finished()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_told_to_end_it_ends_what_it_began(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "tool.py").write_text(
        "import os, pathlib, time\npathlib.Path('made').write_text(str(os.getpid()))\n"
        "os.replace('made', 'began')\ntime.sleep(60)\n"
    )
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from models import benchmark as b\n"
        "b.run_all([[b.Step(name='slow', folder=pathlib.Path('slow'), arguments=('tool',), key='1')]], jobs=1)"
    )
    (tmp_path / "slow").mkdir()
    checkout = str(Path(benchmark.__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", code, checkout], cwd=tmp_path) as process:
        while not (tmp_path / "began").exists():
            assert process.poll() is None
            time.sleep(0.05)
        child = int((tmp_path / "began").read_text())
        began = time.monotonic()
        process.send_signal(how)
        assert process.wait(timeout=30) == (143 if how == signal.SIGTERM else -9)
    while is_there(child):
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    assert not (tmp_path / "slow" / benchmark.FINISHED).exists()


def is_there(pid: int) -> bool:
    """Running; not what only waits for its parent to ask how it ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_table_finds_the_harm_and_no_more(plan: benchmark.Plan, tmp_path: Path) -> None:
    pretend(plan, {"256p": 0.7, "320p": 0.7, "harm-16p": 0.4})
    found = benchmark.results(plan, benchmark.read_tables(plan))
    assert found["controls"]["harm"]["found"]
    assert not found["controls"]["a/a"]["differs"]
    assert found["controls"]["a/a"]["halves"] == 10
    assert [one["differs"] for one in found["comparisons"]] == [False]
    assert [one["name"] for one in found["rows"]] == ["256p", "320p", "harm-16p"]
    row = found["rows"][0]
    for mode in benchmark.MODES:
        assert row[f"{mode}_top1"]["low"] < 0.7 < row[f"{mode}_top1"]["high"]
        assert row[f"{mode}_top5"]["value"] >= row[f"{mode}_top1"]["value"]
    assert row["bytes"] == sum(file.stat().st_size for file in (tmp_path / "data/mine/256p").rglob("*.mp4"))
    assert len(found["cross"]) == 9
    text = " ".join(found["verdict"])
    assert "The difference is not larger than chance: 320p against 256p" in text
    assert "would have been found in 8 of 10 such benchmarks (120 clips, 3 seeds, 1 comparison, Holm)" in text
    assert "no difference, as it must be" in text
    assert text.endswith(": found.")

    benchmark.write(plan, found)
    assert json.loads((plan.out / "results.json").read_text()) == json.loads(json.dumps(found))
    table = list(csv.DictReader(io.StringIO((plan.out / "table.csv").read_text())))
    assert [line["name"] for line in table] == ["256p", "320p", "harm-16p"]
    assert float(table[0]["accurate_top1_value"]) == row["accurate_top1"]["value"]
    report = (plan.out / "report.md").read_text()
    assert report.count("\n| 256p |") == 2
    assert (plan.out / "report.html").is_file()


def test_a_real_difference_is_said_and_a_harm_that_is_missed_too(plan: benchmark.Plan) -> None:
    pretend(plan, {"256p": 0.5, "320p": 0.95, "harm-16p": 0.5})
    found = benchmark.results(plan, benchmark.read_tables(plan))
    assert found["verdict"][0].startswith("320p is better than 256p by +")
    first, second = plan.arms
    turned = benchmark.results(dataclasses.replace(plan, arms=(second, first), again=()), benchmark.read_tables(plan))
    assert turned["verdict"][0] == found["verdict"][0]
    assert "NOT found: this benchmark is too small" in found["verdict"][-1]


def test_results_of_other_clips_are_refused(plan: benchmark.Plan) -> None:
    from evalkit import scores

    pretend(plan, dict.fromkeys(("256p", "320p", "harm-16p"), 0.5))
    folder = plan.tested(plan.arms[1], 1, "accurate")
    scores.load(folder).select(list(range(NUM_CLIPS - 1))).save(folder / "scores.npz")
    with pytest.raises(DataError, match=r"320p-s1.accurate was tested on other clips"):
        benchmark.results(plan, benchmark.read_tables(plan))


def test_augmentations_are_compared_on_one_copy(tmp_path: Path, make_prepared: Prepared) -> None:
    make_prepared("mine", "256p", num_clips=4)
    arguments = ["augment", "mine", "slowonly_tiny", "--data-root", str(tmp_path / "data"), "--no-controls"]
    plan = benchmark.planned(benchmark.parser().parse_args([*arguments, "--augments", "mixup,cutmix"]))
    assert [(arm.name, arm.augment) for arm in plan.arms] == [("default", ""), ("mixup", "mixup"), ("cutmix", "cutmix")]
    first = [chain[0].arguments for chain in benchmark.chains(plan)[:3]]
    assert [words[words.index("--augment") + 1] if "--augment" in words else "" for words in first] == [
        "", "mixup", "cutmix",
    ]  # fmt: skip
    assert not any("on-" in step.folder.name for chain in benchmark.chains(plan) for step in chain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--variants", "256p,256p"], "different names"),
        (["--augments", "mixup"], "models.benchmark augment"),
    ],
)
def test_what_cannot_be_planned(tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        planned(tmp_path, tmp_path, *options)


def test_what_is_missing_is_prepared_one_variant_at_a_time(plan: benchmark.Plan) -> None:
    args: Any = benchmark.parser().parse_args(["data", "mine", "slowonly_tiny", "--raw", "/videos"])
    assert benchmark.to_prepare(plan, args) == []
    (plan.data("320p") / "manifest.parquet").unlink()
    (command,) = benchmark.to_prepare(plan, args)
    assert command[:5] == ("datakit", "prepare", "mine", "--variant", "320p")
    assert "/videos" in command


@pytest.mark.slow
def test_from_videos_to_the_verdict_and_again(make_prepared: Prepared, tmp_path: Path) -> None:
    for variant in ("256p", "320p"):
        make_prepared("mine", variant, num_clips=8)
    command = [sys.executable, "-m", "models.benchmark", "data", "mine", "slowonly_tiny", "--recipe", "tiny"]
    command += ["--seeds", "1", "--variants", "256p,320p", "--no-controls", "--data-root", str(tmp_path / "data")]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    first, second = (subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(2))
    found = json.loads(first.stdout)
    assert found == json.loads(second.stdout)
    assert "train 256p-s0" in first.stderr
    assert "train" not in second.stderr
    assert len(found["rows"]) == 2


def test_help_is_fast_and_imports_no_torch() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['benchmark', '--help']\n"
        "try: runpy.run_module('models.benchmark', run_name='__main__')\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'av', 'pandas', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
