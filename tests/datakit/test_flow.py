from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datakit import encode, flow, flowset, folders, manifest, reader
from datakit.__main__ import main
from datakit.errors import CheckpointError, Retryable, UsageError

Make = Callable[..., Path]
CHECKOUT = Path(__file__).resolve().parents[2]


# A test picture that moves by 2 px to the left and 1 px up each frame.
MOVING = ("-vf", "scroll=horizontal=0.03125:vertical=0.02083", "-c:v", "libx264", "-qp", "8")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in this process: a worker of its own would load torch for each test."""

    def run(work: Callable[[Any], Any], jobs: Sequence[Any], **_: Any) -> Iterator[Any]:
        yield from map(work, jobs)

    monkeypatch.setattr(flowset.runner, "run", run)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, make_video: Make) -> Path:
    """A data root with the set "mine": three clips of 32x48, one of a single frame, one file that is no video."""
    root = tmp_path_factory.mktemp("flow")
    raw = root / "raw"
    for number, name in enumerate(["train/wave/a.mp4", "train/jump high/b.c.mp4", "val/wave/d.mp4"]):
        make_video(raw / name, frames=5 + number, seed=number, after=MOVING)
    make_video(raw / "val/jump high/one.mp4", frames=1)
    (raw / "val/wave/empty.mp4").touch()
    words = ["prepare", "mine", "--raw", str(raw), "--data-root", str(root / "data"), "--variant", "native"]
    assert main([*words, "--jobs", "2"]) == 5
    return root / "data"


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    import shutil

    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def make_flow(root: Path, *more: str) -> int:
    options = ["--variant", "native", "--data-root", str(root), "--jobs", "2"]
    method = [] if "--method" in more or "--params" in more else ["--params", "fast"]
    return main(["flow", "mine", *options, *method, *more])


def lock(root: Path) -> Any:
    return json.loads((root / "mine/native-flow/manifest.lock").read_text())


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*.jpg")}


def test_flow_of_a_set_is_stored_counted_and_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_flow(root) == 5
    assert "mine/native-flow: 3 ok, 1 refused, 1 unreadable" in capsys.readouterr().out
    rgb, there = manifest.read(root / "mine/native"), manifest.read(root / "mine/native-flow")
    assert there.classes == rgb.classes == ("jump high", "wave")
    assert [clip.id for clip in there.clips] == [clip.id for clip in rgb.clips]
    for clip, of in zip(there.clips, rgb.clips, strict=True):
        if clip.status != "ok":
            continue
        assert clip.path is not None
        assert of.frames is not None
        assert clip.frames == of.frames - 1
        assert (clip.height, clip.width, clip.fps) == (of.height, of.width, of.fps)
        names = sorted(path.name for path in clip.path.iterdir())
        assert names == sorted(f"flow_{axis}_{i:05}.jpg" for axis in "xy" for i in range(1, clip.frames + 1))
        with reader.open(clip.path, num_frames=clip.frames) as video:
            assert video.kind == "flow"
            assert video.frames([0]).shape == (1, of.height, of.width, 2)
    lists = root / "mine/native-flow/lists"
    assert (lists / "train_flow.txt").read_text() == "train/wave/a 4 1\ntrain/jump_high/b.c 5 0\n"
    assert (lists / "val_flow.txt").read_text() == "val/wave/d 6 1\n"
    assert "one.mp4" not in (lists / "val_flow.txt").read_text()
    assert not (root / "mine/native-flow/.work").exists()
    assert manifest.is_flow(root / "mine/native-flow")
    assert not manifest.is_flow(root / "mine/native")


@pytest.mark.usefixtures("here")
def test_stored_bytes_are_the_methods_flow_quantised(root: Path) -> None:
    make_flow(root)
    with reader.open(root / "mine/native/train/wave/a.mp4") as video:
        frames = video.frames(range(5))
    wanted = flow.quantised(flow.estimator("tvl1", "fast", "cpu")(frames), 20.0)
    with reader.open(root / "mine/native-flow/train/wave/a") as video:
        found = video.frames(range(4))
    assert wanted[..., 0].mean() < 120  # the test picture moves to the left
    for flows, stored in zip(wanted, found, strict=True):
        for plane in (0, 1):
            jpeg = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(flows[..., plane])).save(jpeg, "JPEG", quality=95)
            with Image.open(jpeg) as image:
                assert np.array_equal(stored[..., plane], image)


@pytest.mark.parametrize(
    ("pixels", "byte"),
    [(0.0, 128), (-20.0, 0), (20.0, 255), (-25.0, 0), (25.0, 255), (0.0784, 128), (-0.001, 127), (10.0, 191)],
)
def test_quantisation_is_denseflows(pixels: float, byte: int) -> None:
    assert flow.quantised(np.array([pixels], np.float32), 20.0).tolist() == [byte]
    assert abs(flow.pixels(np.array([byte], np.uint8), 20.0)[0] - np.clip(pixels, -20, 20)) <= 20 / 255 + 1e-5


def test_halves_go_to_the_even_number() -> None:
    steps = np.arange(256)
    middle = (steps[:-1] + 0.5) / 255 * 40 - 20  # exactly between two bytes, where the arithmetic allows
    found = flow.quantised(middle, 20.0)
    exact = 255 * (middle + 20) / 40 == steps[:-1] + 0.5
    assert exact.sum() > 20
    assert np.all(found[exact] % 2 == 0)


def test_grey_is_that_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    assert np.array_equal(flow.grey(frames), [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


@pytest.mark.usefixtures("here")
def test_nothing_is_made_twice_and_what_is_lost_is_made_again(root: Path) -> None:
    make_flow(root)
    folder = root / "mine/native-flow"
    before = stamps(folder)
    make_flow(root)
    assert stamps(folder) == before
    (folder / "val/wave/d/flow_y_00003.jpg").unlink()
    make_flow(root)
    after = stamps(folder)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed
    assert all(name.startswith("val/wave/d/") for name in changed)


@pytest.mark.usefixtures("here")
def test_a_lost_journal_costs_reading_not_computing(root: Path) -> None:
    make_flow(root)
    folder = root / "mine/native-flow"
    before, manifest_before = stamps(folder), (folder / "manifest.parquet").read_bytes()
    (root / "mine/journal.sqlite").unlink()
    make_flow(root)
    assert stamps(folder) == before
    assert (folder / "manifest.parquet").read_bytes() == manifest_before


@pytest.mark.usefixtures("here")
def test_a_clip_that_changed_its_frames_is_made_again(root: Path, tmp_path: Path, make_video: Make) -> None:
    make_flow(root)
    before = stamps(root / "mine/native-flow")
    make_video(root.parent / "new/train/wave/a.mp4", frames=9, seed=9, after=MOVING)
    words = ["prepare", "mine", "--raw", str(root.parent / "new"), "--data-root", str(root), "--variant", "native"]
    main([*words, "--split", "train"])
    make_flow(root)
    table = {clip.id: clip for clip in manifest.read(root / "mine/native-flow").clips}
    assert table["a"].frames == 8
    assert "b.c" not in table
    after = stamps(root / "mine/native-flow")
    assert after["val/wave/d/flow_x_00001.jpg"] == before["val/wave/d/flow_x_00001.jpg"]


@pytest.mark.usefixtures("here")
def test_what_a_killed_run_left_of_a_list_goes(root: Path) -> None:
    left = root / "mine/native-flow/lists/val_flow.txt.0123.part"
    left.parent.mkdir(parents=True)
    left.write_text("val/wave/d 6")
    make_flow(root, "--method", "dis", "--params", "ultrafast")
    assert not list((root / "mine/native-flow").rglob("*.part"))


@pytest.mark.usefixtures("here")
def test_a_clip_that_cannot_be_written_says_which_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "mine/native-flow").mkdir()
    (root / "mine/native-flow/val").write_text("a file where a folder must be")
    assert make_flow(root, "--method", "dis", "--params", "ultrafast") == 5
    main(["failed", "mine", "--data-root", str(root)])
    assert "native-flow/val/wave/d cannot be written: " in capsys.readouterr().out
    (root / "mine/native-flow/val").unlink()
    make_flow(root, "--method", "dis", "--params", "ultrafast")
    assert (root / "mine/native-flow/val/wave/d").is_dir()


@pytest.mark.slow
def test_killed_at_any_instant_leaves_whole_clips_and_goes_on(root: Path) -> None:
    command = [sys.executable, "-m", "datakit", "flow", "mine", "--variant", "native", "--data-root", str(root)]
    process = subprocess.Popen([*command, "--jobs", "2"], cwd=CHECKOUT, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    process.stderr.readline()  # "... pairs of frames ...": it is at work
    time.sleep(2.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    rgb = {clip.id: clip for clip in manifest.read(root / "mine/native").clips}
    for split in ("train", "val"):
        for clip in (root / "mine/native-flow" / split).glob("*/*"):
            assert folders.check(clip).frames == (rgb[clip.name].frames or 0) - 1
    make_flow(root, "--params", "opencv")
    assert [clip.status for clip in manifest.read(root / "mine/native-flow").clips].count("ok") == 3
    assert not (root / "mine/native-flow/.work").exists()


@pytest.mark.usefixtures("here")
def test_variant_hash_holds_what_changes_a_byte(root: Path) -> None:
    hashes = []
    for options in (["--params", "fast"], ["--params", "opencv"], ["--names", "mmaction2"], ["--container", "mp4"]):
        make_flow(root, *options)
        hashes.append(lock(root)["variant_hash"])
        definition = lock(root)["definition"]
        assert definition["bound_px"] == 20
        assert (
            definition["flow_of_hash"] == json.loads((root / "mine/native/manifest.lock").read_text())["variant_hash"]
        )
        names = {path.name for path in (root / "mine/native-flow/train/wave").rglob("*") if path.suffix}
        if "mp4" in options:
            assert names == {"a.mp4"}
        else:
            assert ("x_00001.jpg" if "mmaction2" in options else "flow_x_00001.jpg") in names
            assert len(names) == 8
    assert len(set(hashes)) == 4


@pytest.mark.usefixtures("here")
def test_flow_video_has_the_same_motion_and_reads_at_random(root: Path) -> None:
    make_flow(root)
    with reader.open(root / "mine/native-flow/val/wave/d") as video:
        wanted = video.frames(range(6)).astype(int)
    make_flow(root, "--container", "mp4")
    clips = {clip.id: clip for clip in manifest.read(root / "mine/native-flow").clips}
    clip = clips["d"]
    assert clip.path is not None
    assert (clip.frames, clip.height, clip.width) == (6, *wanted.shape[1:3])
    assert (root / "mine/native-flow/lists/val_flow.txt").read_text() == "val/wave/d.mp4 6 1\n"
    with reader.open(clip.path, num_frames=clip.frames) as video:
        assert (video.kind, video.num_frames, video.height, video.width) == ("flow", 6, *wanted.shape[1:3])
        whole = video.frames(range(6))
        assert np.array_equal(video.frames([5, 2]), whole[[5, 2]])
    assert whole.shape == wanted.shape
    assert np.abs(whole.astype(int) - wanted).mean() < 4
    assert np.corrcoef(whole.ravel(), wanted.ravel())[0, 1] > 0.9


@pytest.mark.usefixtures("here")
def test_flow_video_is_the_same_bytes_every_time(root: Path) -> None:
    make_flow(root, "--container", "mp4")
    first = {clip.id: clip.sha256 for clip in manifest.read(root / "mine/native-flow").clips}
    for path in (root / "mine/native-flow").rglob("*.mp4"):
        path.unlink()
    make_flow(root, "--container", "mp4")
    assert {clip.id: clip.sha256 for clip in manifest.read(root / "mine/native-flow").clips} == first


@pytest.mark.usefixtures("here")
def test_dis_is_what_opencv_says(root: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    assert make_flow(root, "--method", "dis") == 5
    with reader.open(root / "mine/native/train/wave/a.mp4") as video:
        one, other = flow.grey(video.frames([1, 2]))
    wanted = flow.quantised(cv2.DISOpticalFlow_create(2).calc(one, other, None), 20.0)
    with Image.open(root / "mine/native-flow/train/wave/a/flow_x_00002.jpg") as image:
        assert np.abs(np.asarray(image).astype(int) - wanted[..., 0]).mean() < 1
    assert {clip.status for clip in manifest.read(root / "mine/native-flow").clips} == {"ok", "refused", "unreadable"}


def test_a_gpu_without_memory_takes_fewer_pairs_at_once() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 24, 3), np.uint8)
    taken = []

    def some(few: np.ndarray, most: int = 2) -> torch.Tensor:
        taken.append(len(few) - 1)
        if taken[-1] > most:
            raise torch.OutOfMemoryError
        return torch.from_numpy(few[1:, :, :, :2].astype(np.float32) - few[:-1, :, :, :2]).permute(0, 3, 1, 2)

    found = flow._in_parts(frames, 5, some)
    assert taken == [5, 2, 2, 2, 1]
    assert np.array_equal(found, np.diff(frames[..., :2].astype(np.float32), axis=0))
    with pytest.raises(Retryable, match="24x16"):
        flow._in_parts(frames, 5, lambda few: some(few, most=0))


def test_raft_is_torchvisions_with_the_weights_of_a_file(tmp_path: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    network = raft_small(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    frames = np.random.default_rng(0).integers(0, 256, (3, 136, 130, 3), dtype=np.uint8)
    found = flow.estimator("raft", "small", "cpu", tmp_path / "raft.pth")(frames)
    assert found.shape == (2, 136, 130, 2)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, 6), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        wanted = network(x[1:2], x[2:3], num_flow_updates=12)[-1]
    assert np.allclose(found[1], wanted[0].permute(1, 2, 0)[:, :130].numpy(), atol=1e-3)
    with pytest.raises(CheckpointError, match="raft_large"):
        flow.estimator("raft", "large", "cpu", tmp_path / "raft.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        flow.estimator("raft", "small", "cpu", tmp_path / "text.pth")


@pytest.mark.usefixtures("here")
def test_what_cannot_be_done_is_said_before_anything_is_done(root: Path) -> None:
    for words, match in (
        (["--method", "raft"], "--weights"),
        (["--method", "raft", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["--params", "swift"], "--params"),
        (["--split", "trian"], "train"),
        (["--limit", "0"], "--limit"),
    ):
        with pytest.raises(UsageError, match=match):
            make_flow(root, *words)
    with pytest.raises(UsageError, match="prepare NAME"):
        main(["flow", "mine", "--variant", "512p", "--data-root", str(root)])
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cpu"):
            make_flow(root, "--device", "cuda")
    assert not (root / "mine/native-flow").exists()


@pytest.mark.usefixtures("here")
def test_limit_and_split_leave_the_rest_pending(root: Path) -> None:
    make_flow(root, "--limit", "1")
    statuses = [clip.status for clip in manifest.read(root / "mine/native-flow").clips]
    assert (statuses.count("ok"), statuses.count("pending")) == (1, 3)
    make_flow(root, "--split", "val")
    by_id = {clip.id: clip.status for clip in manifest.read(root / "mine/native-flow").clips}
    assert by_id == {"a": "ok", "b.c": "pending", "d": "ok", "one": "refused", "empty": "unreadable"}


@pytest.mark.usefixtures("here")
def test_a_file_that_lost_frames_since_is_reported(root: Path) -> None:
    """The manifest vouches for more frames than now decode: no shorter flow is passed off as whole."""
    path = root / "mine/native/val/wave/d.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    make_flow(root)
    clip = next(clip for clip in manifest.read(root / "mine/native-flow").clips if clip.id == "d")
    assert clip.path is None
    assert clip.status == "unreadable"
    assert not (root / "mine/native-flow/val/wave/d").exists()


@pytest.mark.usefixtures("here")
def test_flow_says_itself_what_it_was_made_from(root: Path) -> None:
    rgb = {clip.id: clip for clip in manifest.read(root / "mine/native").clips}
    make_flow(root)
    tag = folders.read_tag(root / "mine/native-flow/train/wave/a")
    assert tag == f"actionkit source={rgb['a'].sha256} flow={lock(root)['variant_hash']}"
    make_flow(root, "--container", "mp4")
    tag = encode.read_tag(root / "mine/native-flow/train/wave/a.mp4")
    assert f"source={rgb['a'].sha256} flow={lock(root)['variant_hash']}" in tag


@pytest.mark.usefixtures("here")
def test_json_of_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    make_flow(root, "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "datakit-flow/1"
    assert said["variants"]["native-flow"] == {"ok": 3, "refused": 1, "unreadable": 1}


def test_the_estimator_is_made_once_a_process() -> None:
    assert flowset._estimator("tvl1", "fast", "cpu", None) is flowset._estimator("tvl1", "fast", "cpu", None)


@pytest.mark.usefixtures("here")
def test_status_failed_lists_and_verify_know_flow(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_flow(root)

    def said(command: str, *more: str) -> Any:
        capsys.readouterr()
        code = main([command, "mine", "--data-root", str(root), "--json", *more])
        return code, json.loads(capsys.readouterr().out)

    assert said("status")[1]["variants"]["native-flow"]["splits"] == {
        "train": {"ok": 2}, "val": {"ok": 1, "refused": 1, "unreadable": 1},
    }  # fmt: skip
    failed = {(row["variant"], row["id"]): row["reason"] for row in said("failed")[1]["failed"]}
    assert "one frame" in failed["native-flow", "one"]
    before = (root / "mine/native-flow/manifest.parquet").read_bytes()
    (root / "mine/native-flow/lists/val_flow.txt").unlink()
    assert said("lists")[1]["variants"]["native-flow"] == {"ok": 3, "refused": 1, "unreadable": 1}
    assert (root / "mine/native-flow/lists/val_flow.txt").is_file()
    assert (root / "mine/native-flow/manifest.parquet").read_bytes() == before
    for container in ("frames", "mp4"):
        make_flow(root, "--container", container)
        code, report = said("verify", "--variant", "native-flow")
        assert (code, report["variants"]["native-flow"]["ok"]) == (0, 3)
    path = root / "mine/native-flow/val/wave/d.mp4"
    path.write_bytes(path.read_bytes()[:-200])
    code, report = said("verify", "--variant", "native-flow")
    assert (code, [bad["id"] for bad in report["variants"]["native-flow"]["bad"]]) == (5, ["d"])
