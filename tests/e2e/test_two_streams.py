"""A data set in the shape of GYM99, made of a few real clips, from long videos to the fusion of two streams."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from datakit import manifest
from evalkit import scores

pytestmark = [pytest.mark.needs_shared, pytest.mark.slow]  # a minute or more: prepares, trains and tests whole
CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = CHECKOUT / "benchmarks" / "two_streams.py"
CLASSES = ("01_Horizontal_swiping", "02_Swiping_Up", "16_CCW_Rotation", "17_CW_Rotation")


@pytest.fixture(scope="module")
def clips(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training clips and two validation clips of each of four classes."""
    source = videos / "gestures17"
    with (source / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [
        label for label in dict.fromkeys(row["label"] for row in rows) if label[:2] in {one[:2] for one in CLASSES}
    ]
    folder = tmp_path_factory.mktemp("gestures")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for split in ("train", "val"):
            for label in labels:
                chosen = [row for row in rows if (row["split"], row["label"]) == (split, label)][:2]
                writer.writerows((source / row["path"], label, split) for row in chosen)
    return folder


def run(clips: Path, out: Path) -> str:
    command = [sys.executable, str(PROGRAM), str(clips), "--out", str(out), "--epochs", "2", "--params", "ultrafast"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--quick"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    out = tmp_path_factory.mktemp("two-streams")
    return out, run(clips, out)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_streams", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["two_streams"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_elements_are_cut_out_of_the_videos_at_their_frames(finished: tuple[Path, str], benchmark: ModuleType) -> None:
    out, _ = finished
    of_element = json.loads((out / "raw" / "made.json").read_text())
    prepared = manifest.read(out / "data" / benchmark.NAME / "256p")
    assert {clip.id for clip in prepared.clips} == set(of_element)
    assert [clip.status for clip in prepared.clips] == ["ok"] * 16
    assert [clip.frames for clip in prepared.clips] == [60] * 16
    for clip in prepared.clips:
        assert clip.path is not None
        assert clip.label is not None
        assert clip.label in of_element[clip.id]  # the source lies in the folder of its class
    shifts = benchmark.cut_shifts(out, 16)
    assert len(shifts) > 8
    assert not any(shifts)


def test_a_cut_that_is_off_by_a_frame_would_be_seen(finished: tuple[Path, str], benchmark: ModuleType, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    small = benchmark.small
    late = lambda path: np.roll(small(path), 1, axis=0) if "256p" in str(path) else small(path)  # noqa: E731
    monkeypatch.setattr(benchmark, "small", late)
    assert set(benchmark.cut_shifts(finished[0], 16)) == {1}


def test_flow_has_one_picture_less_than_the_clip_and_its_own_list(
    finished: tuple[Path, str], benchmark: ModuleType
) -> None:
    folder = finished[0] / "data" / benchmark.NAME / "256p-flow"
    assert {clip.frames for clip in manifest.read(folder).clips} == {59}
    lines = (folder / "lists" / "val_flow.txt").read_text().splitlines()
    assert len(lines) == 8
    assert all(line.split()[1] == "59" for line in lines)


def test_the_fusion_is_the_sum_of_both_and_draws_videos(finished: tuple[Path, str]) -> None:
    out, _ = finished
    rgb, flow, fused = (scores.load(out / "seed0" / name) for name in ("rgb", "flow", "fused"))
    assert (rgb.signature.views, flow.signature.views) == ("10x3@72", "10x1@72")
    assert (rgb.signature.input, flow.signature.input) == ("rgb", "flow")
    assert rgb.ids == flow.ids == fused.ids
    np.testing.assert_allclose(fused.scores, rgb.scores.astype(float) + flow.scores, atol=1e-6)
    numbers: dict[str, Any] = json.loads((out / "seed0" / "fused" / "metrics.json").read_text())
    assert (numbers["unit"], numbers["num_units"], numbers["n"]) == ("video", 2, 8)
    accuracies = [row["top1"] for row in numbers["per_class"]]
    assert numbers["mean_class"] == pytest.approx(np.mean(accuracies))


def test_published_rows_are_printed_with_the_reason(finished: tuple[Path, str]) -> None:
    text = finished[1]
    for numbers in ("top-1 79.30, mean class 70.20", "top-1 80.30, mean class 71.00", "top-1 83.70, mean class 74.80"):
        assert numbers in text
    assert "not comparable: the clips are of another data set" in text


def test_run_again_nothing_is_made_anew(finished: tuple[Path, str], clips: Path) -> None:
    out, _ = finished
    kept = [*out.glob("seed0/*/scores.npz"), *out.glob("seed0/*/*/ckpt.pth"), *out.glob("data/*/*/*/*.mp4")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 3 + 2 + 16
    text = run(clips, out)
    assert before == {path: path.stat().st_mtime_ns for path in kept}
    assert "models.train" not in text
