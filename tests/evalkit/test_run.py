"""python -m evalkit.run on small sets made here: what it says, what it writes, what it refuses, how it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL
import pytest
import torch
from PIL import Image

import models
from datakit import fingerprint, manifest
from datakit.errors import BadManifest, DataError, NotComparable, ToolMissing, UsageError
from evalkit import fuse, infer, protocols, run, scores
from evalkit import published as theirs
from evalkit.partial import Partial, Scored, run_key

CHECKOUT = Path(__file__).resolve().parents[2]
CLASSES = ("grow", "shrink", "swipe left", "turn")


def write_video(path: Path, num_frames: int, seed: int, width: int = 128, height: int = 96) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "8", "crf": "20", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_set(
    folder: Path, videos: Sequence[Path], classes: Sequence[str] = CLASSES, short_side_px: int = 96, split: str = "val"
) -> Path:
    """A prepared variant as datakit leaves it, of videos that are there already; one more clip is missing."""
    rows: list[dict[str, Any]] = []
    for number, video in enumerate(videos):
        path = folder / split / f"{video.stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, path)
        label = number % len(classes)
        rows.append({
            "id": video.stem, "label": classes[label], "label_index": label, "split": split, "status": "ok",
            "path": str(path.relative_to(folder)), "frames": 20 + number, "fps": 25.0, "width": 128, "height": 96,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        })  # fmt: skip
    rows.append({"id": "zz_gone", "label": classes[0], "label_index": 0, "split": split, "status": "missing",
                 "path": None, "reason": "no file of that name"})  # fmt: skip
    (folder / "lists").mkdir()
    (folder / "lists" / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    definition = {"short_side_px": short_side_px, "width_px": 0, "height_px": 0}
    manifest.write(folder, rows, {"splits": {split: {}}, "definition": definition})
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"clip{number:02}.mp4", 20 + number, number) for number in range(10)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, videos: list[Path]) -> Path:
    return write_set(tmp_path_factory.mktemp("root") / "data" / "toys" / "96p", videos)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ckpt") / "tiny.pth", classes=CLASSES)


def make_checkpoint(path: Path, num_classes: int = 4, classes: Sequence[str] | None = None) -> Path:
    torch.manual_seed(0)
    net = models.create("slowonly_tiny", num_classes=num_classes, classes=classes)
    with torch.no_grad():  # far from uniform, so that an order of classes shows
        for parameter in net.parameters():
            parameter.mul_(1.5)
    models.save(path, net)
    return path


def call(*arguments: str | Path) -> int:
    return run.main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what it writes and says -----------------------------------------------------------------------------------------


def test_numbers_signature_and_what_is_missing(
    prepared: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--mode", "accurate", checkpoint, "--data", prepared, "--save-views") == 5
    said = capsys.readouterr()
    out = Path("runs/tiny-toys-96p-accurate")
    found = scores.load(tmp_path / out)
    assert found.scores.shape == (10, 4)
    assert found.views is not None
    assert found.views.shape == (10, 30, 4)
    assert np.allclose(found.scores.sum(axis=1), 1, atol=1e-5)
    assert found.classes == CLASSES
    assert found.label_names() == [CLASSES[number % 4] for number in range(10)]
    assert found.missing == [{"id": "zz_gone", "label": "grow", "reason": "no file of that name"}]
    spec = models.load(checkpoint).spec
    protocol = protocols.get(spec.protocol, "accurate")
    sha8 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:8]
    parts = [
        "set:toys-val|n:10|",
        f"|model:slowonly_tiny|clip:{spec.clip_len}x{spec.frame_interval}|views:{protocol.views}|"
        f"sampling:{protocol.sampling}|resize:{protocol.short_side_px}-cv2|input:rgb|",
        f"|agg:{protocol.aggregation}|missing:wrong|weights:{sha8}|media:96p-",
        f"|dec:pyav-{av.__version__}|dtype:fp32|",
    ]
    for part in parts:
        assert part in str(found.signature)
        assert part in said.out
    for text in (
        "top-1 ",
        "top-5 ",
        "mean class ",
        " ± ",
        "scored      10 of 11 clips",
        "zz_gone: no file of that name",
    ):
        assert text in said.out
    document = json.loads((tmp_path / out / "metrics.json").read_text())
    assert (document["n"], document["requested"], document["missing"]) == (10, 11, "wrong")
    assert document["top1"] == pytest.approx((found.scores.argmax(1) == found.labels).sum() / 11)
    assert "11 clips" in said.err
    assert sorted(path.name for path in (tmp_path / out).iterdir()) == ["metrics.json", "run.json", "scores.npz"]
    assert json.loads((tmp_path / out / "run.json").read_text()).keys() == {
        "video_per_s", "memory_mb", "device", "checkpoint",
    }  # fmt: skip


def test_the_checkpoint_stands_anywhere_and_json_is_one_object(
    prepared: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--mode", "efficient", "--data", prepared, "--json", "--out"]
    assert call(checkpoint, *options, "a") == 5
    first = json.loads(capsys.readouterr().out)
    assert call(*options, "b", checkpoint) == 5
    second = json.loads(capsys.readouterr().out)
    assert first["schema"] == "evalkit-run/1"
    assert {**first, "out": ""} == {**second, "out": ""}
    assert first["missing_clips"][0]["id"] == "zz_gone"


def test_missing_clips_by_each_rule(prepared: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(checkpoint, "--mode", "efficient", "--data", prepared, "--out", "wrong", "--json")
    wrong = json.loads(capsys.readouterr().out)
    call(checkpoint, "--mode", "efficient", "--data", prepared, "--out", "drop", "--missing", "drop", "--json")
    drop = json.loads(capsys.readouterr().out)
    assert (wrong["counted"], drop["counted"]) == (11, 10)
    assert wrong["top1"] == pytest.approx(drop["top1"] * 10 / 11)
    assert "|missing:drop|" in drop["signature"]
    with pytest.raises(DataError, match="zz_gone: no file of that name; --missing wrong"):
        call(checkpoint, "--mode", "efficient", "--data", prepared, "--out", "fail", "--missing", "fail")


def test_a_complete_set_ends_with_0(videos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    listing = tmp_path / "val.txt"
    listing.write_text("".join(f"{video.name} {number % 4}\n" for number, video in enumerate(videos[:4])))
    assert call(checkpoint, "--mode", "efficient", "--list", listing, "--root", videos[0].parent) == 0
    found = scores.load(tmp_path / "runs/tiny-val-efficient")
    assert found.classes == CLASSES  # a list of numbers: the checkpoint knows what they are called
    files = {video.stem: hashlib.sha256(video.read_bytes()).hexdigest() for video in videos[:4]}
    assert dict(zip(found.ids, found.files or [], strict=True)) == files
    assert found.signature.media == f"foreign-{fingerprint.media_id(files.items())}"


def test_views_sampling_and_limit_are_in_signature_and_folder(prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    call(checkpoint, "--mode", "accurate", "--data", prepared, "--views", "2x1@64", "--sampling", "mmaction2-1.x",
         "--limit", "5", "--dtype", "bf16")  # fmt: skip
    found = scores.load(tmp_path / "runs/tiny-toys-96p-2x1@64-mmaction2-1.x-bf16-limit5")
    assert "|views:2x1@64|sampling:mmaction2-1.x|" in str(found.signature)
    assert found.signature.n == 5
    assert found.signature.dtype == "bf16"
    assert found.ids == ["clip00", "clip02", "clip04", "clip06", "clip08"]  # spread over the list
    assert found.missing == []


def test_another_row_by_name(prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    call(checkpoint, "--mode", "accurate", "--data", prepared, "--protocol", "pyslowfast-offset", "--views", "2x1@64",
         "--limit", "2")  # fmt: skip
    found = scores.load(tmp_path / "runs/tiny-toys-96p-2x1@64-pyslowfast-offset-limit2")
    assert "|sampling:pyslowfast," in str(found.signature)
    assert found.meta["protocol"]["options"] == {"target_fps": 30, "use_offset": True}
    with pytest.raises(UsageError, match="did you mean 'pyslowfast'"):
        call(checkpoint, "--mode", "accurate", "--data", prepared, "--protocol", "pyslowfst")


def test_a_limit_takes_what_is_there(videos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    listing = tmp_path / "val.txt"
    listing.write_text("".join(f"{name} 0\n" for name in [*(f"gone{n}.mp4" for n in range(20)), videos[3].name]))
    assert call(checkpoint, "--mode", "efficient", "--list", listing, "--root", videos[0].parent, "--limit", "5") == 0
    assert scores.load("runs/tiny-val-efficient-limit5").ids == ["clip03"]


def test_a_set_without_its_variant_lists_the_variants(prepared: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=f"is a set.*\n  --data {prepared}"):
        call(checkpoint, "--mode", "efficient", "--data", prepared.parent)


def test_flow_networks_read_flow_and_nothing_else(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "flow.pth"
    models.save(path, models.create("slowonly_tiny", num_classes=4, input="flow", mean=(128, 128), std=(128, 128)))
    with pytest.raises(DataError, match=r"none of the 11 clips.*holds rgb, flow was asked for.*python -m datakit flow"):
        call(path, "--mode", "efficient", "--data", prepared)
    for clip in ("a", "b"):
        (tmp_path / clip).mkdir()
        for number in range(1, 12):
            for plane in "xy":
                noise = np.random.default_rng(number).integers(100, 156, (80, 100), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / clip / f"flow_{plane}_{number:05}.jpg")
    listing = tmp_path / "flow.txt"
    listing.write_text("a 11 0\nb 11 1\n")
    assert call(path, "--mode", "efficient", "--list", listing, "--root", tmp_path) == 0
    found = scores.load("runs/flow-flow-efficient")
    assert found.ids == ["a", "b"]
    assert "|input:flow|" in str(found.signature)
    assert f"|dec:pillow-{PIL.__version__}|" in str(found.signature)


def test_a_network_takes_the_variant_of_its_kind(
    checkpoint: Path, videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(Path("data/toys/96p"), videos[:4])
    flow = write_set(Path("data/toys/96p-flow"), videos[:4])
    lock = json.loads((flow / "manifest.lock").read_text())
    lock["definition"] = {"flow_of": "96p"}
    (flow / "manifest.lock").write_text(json.dumps(lock))
    assert call(checkpoint, "--mode", "efficient") == 5
    assert "taking data/toys/96p\n" in capsys.readouterr().err
    shutil.rmtree("data/toys/96p")
    with pytest.raises(UsageError, match="96p-flow: flow, the network looks at frames"):
        call(checkpoint, "--mode", "efficient")


def test_a_list_that_cannot_be_meant(videos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    listing = tmp_path / "val.txt"
    listing.write_text("".join(f"{video.name} {number % 4 + 1}\n" for number, video in enumerate(videos)))
    arguments = (checkpoint, "--mode", "efficient", "--list", listing, "--root")
    with pytest.raises(DataError, match="labels up to 4, the checkpoint has 4 classes, 0 to 3: does it count from 1"):
        call(*arguments, videos[0].parent)
    with pytest.raises(UsageError, match=r"none of the 10 files of .*val.txt is there .*; type --root DIR"):
        call(*arguments, tmp_path)


def test_a_corrupt_clip_is_counted_by_name(
    videos: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "data" / "toys" / "96p", videos[:5])
    (data / "val" / "clip03.mp4").write_bytes(b"\0" * 1000)
    assert call(checkpoint, "--mode", "efficient", "--data", data) == 5
    said = capsys.readouterr().out
    assert "scored      4 of 6 clips; 2 missing count as wrong" in said
    assert "missing     clip03: " in said
    for path in (data / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 6 clips could be scored"):
        call(checkpoint, "--mode", "efficient", "--data", data, "--out", "none")
    assert not Path("none/scores.npz").exists()


def test_many_missing_clips_are_shown_in_part(
    videos: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = tmp_path / "val.txt"
    listing.write_text("".join(f"{name} 0\n" for name in [videos[0].name, *(f"gone{n}.mp4" for n in range(25))]))
    assert call(checkpoint, "--mode", "efficient", "--list", listing, "--root", videos[0].parent) == 5
    said = capsys.readouterr().out
    assert said.count("missing     gone") == 10
    assert "and 15 more" in said


def test_how_long_it_takes_is_said_early(
    prepared: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ESTIMATE_AFTER_S", 0.0)
    call(checkpoint, "--mode", "efficient", "--data", prepared)
    assert re.search(r"^1 clips in \d+ s: about \d+ s for the other 10$", capsys.readouterr().err, re.MULTILINE)
    clock = iter([0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    list(zip(range(3), run.estimated(iter([None] * 9999), 9999), strict=False))  # type: ignore[list-item]
    assert "about 83 h 19 min for the other 9998; --limit 20 gives a first number" in capsys.readouterr().err


def test_the_published_number_stands_beside() -> None:
    row = {"file": "x.pth", "dataset": "Kinetics-400", "copy": "short-side 320", "top1": 73.02, "top5": 90.77}
    assert theirs.said(row) == "top-1 73.02, top-5 90.77 on Kinetics-400 (short-side 320)"
    assert (
        theirs.said({"top1": 79.3, "mean_class": 70.2, "dataset": "GYM99"}) == "top-1 79.30, mean class 70.20 on GYM99"
    )


# --- which data ------------------------------------------------------------------------------------------------------


def test_the_set_that_fits_is_found(
    prepared: Path, checkpoint: Path, videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = prepared.parents[1]
    assert call(checkpoint, "--mode", "efficient", "--data-root", root) == 5
    assert f"taking {prepared}" in capsys.readouterr().err
    data = tmp_path / "data"
    write_set(data / "others" / "96p", videos[:3], classes=("a", "b", "c", "d"))
    write_set(data / "three" / "96p", videos[:3], classes=("a", "b", "c"))
    write_set(data / "trains" / "96p", videos[:4], split="train")
    (data / "broken" / "96p").mkdir(parents=True)
    (data / "broken" / "96p" / "manifest.lock").write_text("{")
    with pytest.raises(UsageError) as caught:
        call(checkpoint, "--mode", "efficient")
    text = str(caught.value)
    assert "has 4 classes (grow, shrink, swipe left and 1 more)" in text
    assert f"looked in {data}" in text
    assert "others/96p: a, b, c and 1 more in place of grow, shrink, swipe_left" in text.replace(
        "swipe left", "swipe_left"
    )
    assert "three/96p: 3 classes, not 4" in text
    assert "trains/96p: no split val, only train" in text
    assert "broken/96p: not whole" in text
    assert text.endswith("python -m datakit prepare NAME --raw DIR --variant 256p")
    write_set(data / "toys" / "96p", videos[:4])
    side = protocols.get(models.load(checkpoint).spec.protocol, "efficient").short_side_px
    write_set(data / "toys" / "fits", videos[:4], short_side_px=side)
    write_set(data / "toys" / "64p", videos[:4], short_side_px=side - 8)
    assert call(checkpoint, "--mode", "efficient") == 5
    assert "taking data/toys/fits" in capsys.readouterr().err
    shutil.rmtree(data / "toys" / "fits")
    with pytest.raises(UsageError, match=r"several fit.*\n  --data data/toys/64p\n  --data data/toys/96p"):
        call(checkpoint, "--mode", "efficient")
    with pytest.raises(UsageError, match="There is none at all"):
        call(checkpoint, "--mode", "efficient", "--data-root", tmp_path / "nowhere")


def test_without_class_names_the_number_of_classes_decides(
    videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = make_checkpoint(tmp_path / "nameless.pth")
    write_set(Path("data/toys/96p"), videos[:4])
    assert call(nameless, "--mode", "efficient") == 5
    write_set(Path("data/others/96p"), videos[:3], classes=("a", "b", "c", "d"))
    with pytest.raises(UsageError, match="several fit"):
        call(nameless, "--mode", "efficient")


def test_classes_in_another_order_are_joined_by_name(
    prepared: Path, videos: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(checkpoint, "--mode", "efficient", "--data", prepared, "--out", "a")
    capsys.readouterr()
    data = tmp_path / "data" / "toys" / "96p"
    write_set(data, videos, classes=("turn", "grow", "swipe_left", "shrink"))
    call(checkpoint, "--mode", "efficient", "--data", data, "--out", "b")
    assert "another order than the checkpoint; joined by name" in capsys.readouterr().err
    one, other = scores.load("a"), scores.load("b")
    assert other.classes == ("grow", "shrink", "swipe_left", "turn")
    assert other.label_names() == [("turn", "grow", "swipe_left", "shrink")[number % 4] for number in range(10)]
    assert np.abs(one.scores - other.scores).max() < 1e-5


def test_other_classes_are_refused(prepared: Path, videos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    five = make_checkpoint(tmp_path / "five.pth", num_classes=5, classes=(*CLASSES, "jump"))
    with pytest.raises(DataError, match="different classes: 4 classes, not 5"):
        call(five, "--mode", "efficient", "--data", prepared)
    listing = tmp_path / "val.txt"
    listing.write_text(f"{videos[0].name} 4\n")
    with pytest.raises(DataError, match="labels up to 4, the checkpoint has 4 classes"):
        call(checkpoint, "--mode", "efficient", "--list", listing, "--root", videos[0].parent)
    names = tmp_path / "classes.txt"
    names.write_text("grow\nshrink\nswipe left\njump\nturn\n")
    with pytest.raises(DataError, match="5 classes, not 4"):
        call(checkpoint, "--mode", "efficient", "--list", listing, "--root", videos[0].parent, "--classes", names)


def test_outputs_that_no_class_uses_stay_in_and_are_named(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A published network has 400 outputs for 99 classes; its number counts the highest of all 400."""
    net = models.load(make_checkpoint(tmp_path / "many.pth", num_classes=7))
    with torch.no_grad():
        net.body.head.weight.copy_(net.body.head.weight.roll(4, 0))  # so that an unused one is highest
    many = tmp_path / "many.pth"
    models.save(many, net)
    assert call(many, "--mode", "efficient", "--data", prepared, "--json") == 5
    said = capsys.readouterr()
    assert "has 4 classes, the checkpoint 7 outputs and no names" in said.err
    found = scores.load("runs/many-toys-96p-efficient")
    assert found.classes == (*CLASSES, "unused 4", "unused 5", "unused 6")
    assert found.scores.shape == (10, 7)
    assert np.allclose(found.scores.sum(axis=1), 1, atol=1e-5)
    best = found.scores.argmax(axis=1)
    assert (best >= 4).any()
    assert json.loads(said.out)["top1"] == pytest.approx((best == found.labels).sum() / 11)
    with pytest.raises(UsageError, match="4 classes, not 7"):  # but no set is taken for it unasked
        call(many, "--mode", "efficient", "--data-root", prepared.parents[1])


def test_a_list_with_class_names_is_joined_by_name(videos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    listing, names = tmp_path / "val.txt", tmp_path / "classes.txt"
    listing.write_text(f"{videos[0].name} 0\n{videos[1].name} 3\n")
    names.write_text("turn\nshrink\nswipe left\ngrow\n")
    call(checkpoint, "--mode", "efficient", "--list", listing, "--root", videos[0].parent, "--classes", names)
    found = scores.load(tmp_path / "runs/tiny-val-efficient")
    assert found.label_names() == ["turn", "grow"]
    assert found.labels.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--list", "x.txt"], "--list x.txt --root DIR"),
        (["--list", "x.txt", "--root", ".", "--data", "y"], "type one of them"),
        (["--root", "."], "--list FILE --root DIR"),
        (["--limit", "0"], "--limit 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--batch-views", "many"], "--batch-views auto"),
        (["--data", "nowhere"], "nowhere/manifest.parquet is not there"),
        (["--views", "3"], "--views 5x1@224"),
        (["--sampling", "gluoncv"], "--sampling gluoncv: not under protocol slowonly-tiny: rule gluoncv divides"),
        (["--sampling", "gluoncv", "--views", "2x1@64"], "--views 2x1@64 --sampling gluoncv: not under"),
        (["--device", "gpu"], "type auto, cpu, cuda or cuda:1"),
        (["--sampling", "mmaction"], "mmaction2-0.x, mmaction2-1.x"),
    ],
)
def test_what_makes_no_sense_says_what_to_type(checkpoint: Path, options: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(checkpoint, "--mode", "efficient", *options)
    assert text in str(caught.value)


# --- killed and run again --------------------------------------------------------------------------------------------

# One process imports everything once and forks a child for each point; the child kills itself there.
DRIVER = """
import os, signal, sys
import pyarrow.parquet
from datakit import files, manifest
import models
from evalkit import infer, metrics, partial, protocols, run, scores

partial.COMMIT_EVERY_S = 0.0
models.load

def arm(point):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    if point.startswith("clip"):
        real_score = infer.score
        def score(*args, **options):
            for number, outcome in enumerate(real_score(*args, **options)):
                if number == int(point[4:]):
                    die()
                yield outcome
        infer.score = score
    elif point in ("scores.npz", "metrics.json"):
        real_sync = files.sync
        def sync(path):
            real_sync(path)
            if path.name.startswith(point):
                die()
        files.sync = sync
    elif point == "finish":
        partial.Partial.finish = lambda self: die()

for point in sys.argv[1].split(","):
    child = os.fork()
    if child == 0:
        arm(point)
        code = run.main([*sys.argv[2:-1], "whole" if point == "whole" else sys.argv[-1]])
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("END", point, code, *sorted(name for name in os.listdir(sys.argv[-1])), file=sys.stderr, flush=True)
"""


def test_killed_anywhere_and_run_again_gives_the_same_files(prepared: Path, checkpoint: Path) -> None:
    arguments = [checkpoint, "--mode", "efficient", "--data", prepared, "--deterministic", "--save-views", "--out"]
    points = ["clip4", "clip3", "scores.npz", "metrics.json", "finish", "no"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    Path("killed").mkdir()
    command = [sys.executable, "-c", DRIVER, ",".join(["whole", *points]), *map(str, arguments), "killed"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    first, *lines = [line.split() for line in ended.stderr.splitlines() if line.startswith("END ")]
    assert first == ["END", "whole", "5"]
    assert [line[1] for line in lines] == points
    assert [int(line[2]) for line in lines] == [-signal.SIGKILL] * 5 + [5]
    for line in lines[:5]:
        assert "partial.sqlite" in line
        finals = {"scores.npz", "metrics.json"} & set(line[3:])
        assert finals == {"metrics.json": {"scores.npz"}, "finish": {"scores.npz", "metrics.json"}}.get(line[1], set())
    assert lines[5][3:] == ["metrics.json", "run.json", "scores.npz"]
    said = [line for line in ended.stderr.splitlines() if "scored before; going on" in line]
    assert [line.split(", ")[1].split()[0] for line in said] == ["4", "7", "10", "10", "10"]
    for name in ("scores.npz", "metrics.json"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()


def test_what_another_run_left_is_not_taken(
    prepared: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [checkpoint, "--mode", "efficient", "--data", prepared, "--out", "out"]
    monkeypatch.setattr(Partial, "finish", lambda self: None)
    call(*arguments)
    capsys.readouterr()
    call(*arguments)
    assert "10 of them scored before" in capsys.readouterr().err
    other = make_checkpoint(tmp_path / "tiny.pth", classes=CLASSES[::-1])
    for changed in (
        [other, *arguments[1:]],
        [*arguments, "--sampling", "mmaction2-1.x"],
        [*arguments, "--dtype", "bf16"],
    ):
        call(*changed)
        assert "scored before" not in capsys.readouterr().err
    call(*arguments)  # and the first one's clips are still there
    assert "10 of them scored before" in capsys.readouterr().err


def test_a_changed_file_is_scored_again(tmp_path: Path) -> None:
    row = np.array([0.25, 0.75], np.float32)
    first = Partial(tmp_path, run_key({"a": 1}))
    first.add("same", "1", Scored(scores=row, views=None, num_views=3, num_planned=5))
    first.add("changed", "1", Scored(scores=row, views=row[None].astype(np.float16), num_views=1, num_planned=1))
    first.close()
    second = Partial(tmp_path, run_key({"a": 1}))
    found = second.load({"same": "1", "changed": "2", "new": "1"}, 2)
    assert list(found) == ["same"]
    assert found["same"].scores.tolist() == [0.25, 0.75]
    assert (found["same"].num_views, found["same"].num_planned) == (3, 5)
    assert second.load({"changed": "1"}, 2)["changed"].views.shape == (1, 2)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="another run writes there"):
        Partial(tmp_path, run_key({"a": 2}))
    second.finish()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_partial_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "partial.sqlite").write_bytes(b"not a database, but long enough to look like a header of one")
    with pytest.raises(DataError, match="delete it and run again"):
        Partial(tmp_path, "run")


def test_a_full_disk_says_what_to_do_and_what_was_kept_stays(tmp_path: Path) -> None:
    with closing(Partial(tmp_path, "run")) as partial:
        small = Scored(scores=np.zeros(17, np.float32), views=None, num_views=1, num_planned=1)
        partial.add("clip0", "stamp", small)
        partial._db.commit()
        partial._db.execute("PRAGMA max_page_count = 8")  # sqlite's own way of being full
        large = dataclasses.replace(small, views=np.zeros((9000, 17), np.float16))
        with pytest.raises(DataError, match=r"partial\.sqlite cannot be written .*full.*what is finished stays"):
            partial.add("clip1", "stamp", large)
    with closing(Partial(tmp_path, "run")) as partial:
        assert "clip0" in partial.load({"clip0": "stamp"}, 17)


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/below"])
def test_a_folder_that_cannot_be_made_is_named(place: str) -> None:
    with pytest.raises(UsageError, match=f"{place}: .*type --out DIR"):
        Partial(Path(place), "run")


def test_a_list_that_is_no_text_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("vidéo.mp4 1\n".encode("latin-1"))
    with pytest.raises(BadManifest, match=r"list\.txt is no text in UTF-8"):
        call(checkpoint, "--mode", "efficient", "--list", tmp_path / "list.txt", "--root", tmp_path)


# --- several processes -----------------------------------------------------------------------------------------------


def torchrun(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    full = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    full += ["-m", "evalkit.run", *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, env=environment, timeout=120)


def test_two_processes_score_what_one_does(prepared: Path, checkpoint: Path) -> None:
    arguments = [checkpoint, "--mode", "efficient", "--data", prepared, "--deterministic", "--save-views", "--out"]
    assert call(*arguments, "one") == 5
    # What a run of three processes had finished when it was stopped, its first one nothing.
    wrong = np.array([1, 0, 0, 0], np.float32)
    Path("two").mkdir()
    for rank in (1, 2):
        left = Partial(Path("two"), "of another run", rank)
        left.add(f"clip{rank:02}", "x", Scored(scores=wrong, views=None, num_views=1, num_planned=1))
        left.close()
    ended = torchrun(2, *arguments, "two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("top-1") == 1
    assert ended.stderr.count("11 clips, shared by 2 processes") == 1
    for name in ("scores.npz", "metrics.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    kept = {"partial.sqlite"}  # of the other run, put together
    assert {path.name for path in Path("two").iterdir()} == {"metrics.json", "run.json", "scores.npz"} | kept


def test_what_several_processes_left_is_gone_on_with_by_one(
    prepared: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [checkpoint, "--mode", "efficient", "--data", prepared, "--deterministic", "--out", "out"]
    monkeypatch.setattr(Partial, "finish", lambda self: None)
    call(*arguments)
    whole = Path("out/scores.npz").read_bytes()
    Path("out/partial.sqlite").rename("out/partial-3.sqlite")
    capsys.readouterr()
    call(*arguments)
    assert "10 of them scored before" in capsys.readouterr().err
    assert Path("out/scores.npz").read_bytes() == whole
    assert not Path("out/partial-3.sqlite").exists()


# --- stopping early --------------------------------------------------------------------------------------------------


def test_stopping_when_decided_gives_the_same_numbers_from_fewer_views(
    prepared: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharp = models.load(checkpoint)
    with torch.no_grad():
        sharp.body.head.weight.mul_(100)
    models.save(tmp_path / "sharp.pth", sharp)
    arguments = [tmp_path / "sharp.pth", "--mode", "accurate", "--data", prepared, "--json"]
    call(*arguments, "--out", "whole")
    whole = json.loads(capsys.readouterr().out)
    for options in ([], ["--deterministic"], ["--batch-views", "7"]):
        call(*arguments, "--out", "part", "--stop-when-decided", *options)
        part = json.loads(capsys.readouterr().out)
        for number in ("n", "requested", "top1", "top5", "mean_class"):
            assert part[number] == whole[number]
        assert part["partial"] is True
        assert 0 < part["views_saved"] < 0.5
    found = scores.load("part")
    assert found.meta["partial"] is True
    assert found.signature.agg == "prob-mean-until-decided"
    with pytest.raises(NotComparable, match="partial scores"):
        fuse.fuse([found, scores.load("whole")])
    call(*arguments[:-1], "--out", "said", "--stop-when-decided")
    assert re.search(r"views       \d+\.\d % left out", capsys.readouterr().out)


def test_torchcodec_is_refused_where_it_is_not_there(
    prepared: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ToolMissing, match="pip install torchcodec, or leave it out"):
        call(checkpoint, "--mode", "efficient", "--data", prepared, "--decoder", "torchcodec")


def test_stopping_is_refused_where_nothing_is_ever_certain(
    prepared: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [checkpoint, "--mode", "accurate", "--data", prepared, "--stop-when-decided"]
    real = protocols.get
    for rule in ("logit-mean", "prob-max"):
        monkeypatch.setattr(
            protocols, "get", lambda *names, rule=rule: dataclasses.replace(real(*names), aggregation=rule)
        )
        with pytest.raises(DataError, match=f"--stop-when-decided: under {rule}"):
            call(*arguments)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--save-views keeps them all"):
        call(*arguments, "--save-views")


# --- the command itself ----------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str | Path, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    full = [sys.executable, *flags, "-m", "evalkit.run", *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    took_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command(tmp_path, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # CPU time: the machine may be busy with other tests
        took_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took_s) < 0.3
    code = (
        "import sys, contextlib, evalkit.run\n"
        "with contextlib.suppress(SystemExit): evalkit.run.main(['--help'])\n"
        "print(sorted({'torch', 'pandas', 'sklearn', 'av', 'matplotlib', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, timeout=60)
    assert loaded.stderr.strip() == "[]"


def package(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text("raise RuntimeError('the wrong models')")


def module(folder: Path) -> None:
    (folder / "models.py").write_text("raise RuntimeError('the wrong models')")


def other_package(folder: Path) -> None:
    (folder / "datakit").mkdir()
    (folder / "datakit" / "__init__.py").write_text("")


@pytest.mark.parametrize("shadow", [package, module, other_package])
def test_a_package_of_the_same_name_in_the_folder_is_told(tmp_path: Path, shadow: Callable[[Path], None]) -> None:
    shadow(tmp_path)
    ended = command(tmp_path, "--mode", "accurate", "my ckpt.pth")
    assert ended.returncode == 2
    assert "hides the suite's" in ended.stderr
    assert str(tmp_path) in ended.stderr
    assert ended.stderr.strip().endswith("python -P -m evalkit.run --mode accurate 'my ckpt.pth'")
    assert "the wrong models" not in ended.stderr
    told = command(tmp_path, "--mode", "accurate", "my ckpt.pth", flags=["-P"])
    assert "hides" not in told.stderr
    assert "my ckpt.pth" in told.stderr


def test_a_plain_folder_of_that_name_hides_nothing(tmp_path: Path) -> None:
    """A ``models/`` with weights in it is no package: ours comes first."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("")
    ended = command(tmp_path, "--mode", "accurate", "models/weights.pth")
    assert ended.returncode == 2
    assert "models/weights.pth is not there" in ended.stderr


def test_the_engine_is_given_what_was_typed(prepared: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    real = infer.score

    def score(*args: Any, **options: Any) -> Any:
        given.update(options)
        return real(*args, **options)

    monkeypatch.setattr(infer, "score", score)
    call(checkpoint, "--mode", "efficient", "--data", prepared, "--batch-views", "3", "--workers", "2",
         "--deterministic", "--device", "cpu")  # fmt: skip
    assert given == {"device": torch.device("cpu"), "dtype": "fp32", "batch_views": 3, "workers": 2,
                     "deterministic": True, "keep_views": False, "compile": False, "stop_when_decided": False,
                     "decoder": "pyav",
                     "labels": {f"clip{number:02}": number % 4 for number in range(10)} | {"zz_gone": 0}}  # fmt: skip
