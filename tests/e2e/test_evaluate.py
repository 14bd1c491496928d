"""The whole command on real videos, against a reference that does the simplest thing: every frame decoded and
converted, cv2, numpy, one view at a time through the network."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import models
from datakit import __main__ as datakit_command
from datakit import manifest
from evalkit import protocols, run, scores, views

pytestmark = pytest.mark.needs_shared
CHECKOUT = Path(__file__).resolve().parents[2]
CLASSES = ("01_Horizontal_swiping", "02_Swiping_Up", "03_Swiping_Down", "16_CCW_Rotation")


@pytest.fixture(scope="module")
def gestures(videos: Path) -> list[tuple[Path, str]]:
    """Three validation clips of each of four classes."""
    folder = videos / "gestures17"
    with (folder / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    chosen = [[row for row in rows if row["label"] == label][:3] for label in CLASSES]
    return [(folder / row["path"], row["label"]) for rows in chosen for row in rows]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that tell clips apart: random, scaled up, with batch norms that have seen noise."""
    torch.manual_seed(1)
    net = models.create("slowonly_tiny", num_classes=4, classes=CLASSES)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 8, 64, 64))
        net.body.head.weight.mul_(30)
    path = tmp_path_factory.mktemp("ckpt") / "random.pth"
    models.save(path, net)
    return path


def reference(path: Path, checkpoint: Path, mode: str) -> np.ndarray:
    """float32 [V, C]: the views of one video, crops outermost."""
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    net = models.load(checkpoint)
    protocol = protocols.get(net.spec.protocol, mode)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    rows = views.frame_indices(
        protocol.sampling, len(frames), net.spec.clip_len, net.spec.frame_interval, protocol.num_clips
    )
    height, width = views.resized(protocol.sampling, *frames[0].shape[:2], protocol.scale)
    boxes = views.crop_boxes(protocol.sampling, height, width, protocol.crop_px, protocol.num_crops)
    mean, std = np.array(net.spec.mean, np.float32), np.array(net.spec.std, np.float32)
    out = []
    for top, left, box_height, box_width in boxes:
        for row in rows:
            pictures = [cv2.resize(frames[index], (width, height)) for index in row]
            clip = np.stack(pictures)[:, top : top + box_height, left : left + box_width]
            x_NCTHW = torch.from_numpy(((clip.astype(np.float32) - mean) / std).transpose(3, 0, 1, 2)[None])
            with torch.no_grad():
                out.append(net(x_NCTHW).softmax(dim=1)[0].numpy())
    return np.stack(out)


def write_list(path: Path, clips: list[tuple[Path, str]]) -> Path:
    path.write_text(
        "".join(f"{clip.relative_to(clips[0][0].parents[1])} {CLASSES.index(label)}\n" for clip, label in clips)
    )
    return path


@pytest.mark.parametrize("mode", ["efficient", "accurate"])
def test_a_list_in_place_agrees_with_the_plain_way(
    gestures: list[tuple[Path, str]], checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    root = gestures[0][0].parents[1]
    listing = write_list(tmp_path / "val.txt", gestures)
    arguments = [str(checkpoint), "--mode", mode, "--list", str(listing), "--root", str(root), "--save-views"]
    assert run.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    found = scores.load(tmp_path / "out")
    assert len(found.ids) == 12
    assert np.ptp(found.scores, axis=0).max() > 0.01, "the network must tell clips apart for this to mean anything"
    by_id = {path.stem: (path, label) for path, label in gestures}
    for number in range(0, 12, 4):
        path, label = by_id[found.ids[number]]
        wanted = reference(path, checkpoint, mode)
        assert found.label_names()[number] == label
        assert np.abs(found.scores[number] - wanted.mean(axis=0)).max() < 1e-5
        assert found.views is not None
        assert np.abs(found.views[number] - wanted).max() < 1e-3  # stored as float16


def test_prepared_then_tested_without_saying_where(
    gestures: list[tuple[Path, str]],
    checkpoint: Path,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw"
    raw.mkdir()
    chosen = [*gestures[::2], (videos / "fixtures" / "derived_text_not_video.mp4", CLASSES[0])]
    lines = ["path,label,split"]
    for path, label in chosen:
        shutil.copyfile(path, raw / path.name)
        lines.append(f"{path.name},{label},val")
    (raw / "labels.csv").write_text("\n".join([*lines, f"not_there.mp4,{CLASSES[1]},val", ""]))
    prepare = ["prepare", "gestures", "--raw", "raw", "--labels", "raw/labels.csv", "--variant", "256p", "--jobs", "2"]
    assert datakit_command.main(prepare) == 5
    capsys.readouterr()
    assert run.main(["--mode", "efficient", str(checkpoint)]) == 5
    said = capsys.readouterr()
    assert "taking data/gestures/256p" in said.err
    assert "scored      6 of 8 clips; 2 missing count as wrong" in said.out
    assert "missing     derived_text_not_video: " in said.out
    assert "missing     not_there: " in said.out
    found = scores.load("runs/random-gestures-256p-efficient")
    table = manifest.read("data/gestures/256p")
    clips = {clip.id: clip for clip in table.clips}
    assert found.signature.set == "gestures-val"
    assert found.signature.media == f"256p-{table.media_id(table.clips)}"
    assert found.label_names() == [clips[clip_id].label for clip_id in found.ids]
    path = clips[found.ids[0]].path
    assert path is not None
    assert np.abs(found.scores[0] - reference(path, checkpoint, "efficient")[0]).max() < 1e-5


def test_awkward_files_are_scored_or_named(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    """Every fixture ends as a row or with a reason; where PyAV alone reads a file, both agree."""
    files = sorted(path for path in (videos / "fixtures").iterdir() if path.stat().st_size < 1_000_000)
    listing = tmp_path / "val.txt"
    listing.write_text("".join(f"{path.name} 0\n" for path in files))
    arguments = [str(checkpoint), "--mode", "efficient", "--list", str(listing), "--root", str(videos / "fixtures")]
    assert run.main([*arguments, "--out", str(tmp_path / "out"), "--workers", "2"]) == 5
    found = scores.load(tmp_path / "out")
    assert len(found.ids) + len(found.missing) == len(files)
    missing = {str(entry["id"]): str(entry["reason"]) for entry in found.missing}
    for name in ("derived_zero_byte", "derived_text_not_video", "derived_truncated_no_moov", "sample_audio_only"):
        assert len(missing.pop(f"{name}.mp4")) > 10
    assert len(missing) <= 1  # sample_malformed_free_box.mp4, which FFmpeg may learn to read
    for name in ("vid1.mp4", "again.mkv", "h265_video.mp4", "sample.avi", "bear-vp9-odd-dimensions.webm"):
        wanted = reference(videos / "fixtures" / name, checkpoint, "efficient")[0]
        assert np.abs(found.scores[found.ids.index(name)] - wanted).max() < 1e-5, name


def test_killed_at_random_and_run_again(gestures: list[tuple[Path, str]], checkpoint: Path, tmp_path: Path) -> None:
    root = gestures[0][0].parents[1]
    listing = write_list(tmp_path / "val.txt", gestures)
    arguments = [str(checkpoint), "--mode", "accurate", "--list", str(listing), "--root", str(root)]
    arguments += ["--deterministic", "--workers", "0"]
    out = tmp_path / "killed"
    slow = "import time; from evalkit import decode, partial, run; real = decode.plan; partial.COMMIT_EVERY_S = 0.0\n"
    slow += "decode.plan = lambda *args: (time.sleep(0.15), real(*args))[1]\n"
    slow += "import sys; sys.exit(run.main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments, "--out", str(out)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (out / "partial.sqlite").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random().uniform(0.3, 1.2))  # 12 clips take 2 s
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "scores.npz").exists()
    assert run.main([*arguments, "--out", str(out)]) == 0
    assert run.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert (out / "scores.npz").read_bytes() == (tmp_path / "whole" / "scores.npz").read_bytes()
    assert not (out / "partial.sqlite").exists()
