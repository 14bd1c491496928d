"""The engine: golden pixels through its path, and outcomes that depend on the clip alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import models
from evalkit import decode, infer, protocols, views
from evalkit.protocols import Protocol

CLASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    id: str
    path: Path | None
    label_index: int = 0
    frames: int | None = None
    status: str = "ok"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    clip_len: int = 4
    frame_interval: int = 4
    frame_offsets: tuple[int, ...] = (0,)
    num_segments: int | None = None
    input: str = "rgb"


class Look:
    """A network that records what it is given and answers with numbers made from the pixels of each view."""

    def __init__(self, spec: Spec | None = None, largest_batch: int = 1 << 30) -> None:
        self.spec = spec or Spec()
        self.largest_batch = largest_batch
        self.seen: list[Tensor] = []

    def normalise(self, x: Tensor) -> Tensor:
        return x / 255

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > self.largest_batch:
            raise torch.OutOfMemoryError("no room")
        self.seen.append(x)
        return torch.stack([x.mean(dim=(1, 2, 3, 4)) * (k + 1) + x[:, 0, 0, 0, 0] for k in range(CLASSES)], dim=1)

    @property
    def batches(self) -> list[int]:
        return [len(x) for x in self.seen]


def protocol(**changes: Any) -> Protocol:
    row = {"num_clips": 3, "num_crops": 3, "short_side_px": 32, "crop_px": 32, "sampling": "mmaction2-0.x"}
    fixed: dict[str, Any] = {"name": "test", "mode": "test", "version": 1, "aggregation": "prob-mean"}
    return Protocol(**(fixed | row | changes))


def write_video(path: Path, num_frames: int, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    """Noise in blocks that moves, as H.264 with a keyframe every 8 frames."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "8", "crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    sizes = [(30, 64, 48), (17, 48, 64), (9, 96, 40), (25, 64, 64), (40, 80, 48), (12, 64, 48), (22, 56, 48)]
    made = []
    for number, (num_frames, width, height) in enumerate(sizes):
        path = write_video(folder / f"clip{number}.mp4", num_frames, width, height, seed=number)
        # Some from a manifest that vouches for the frames, some from a bare list.
        made.append(Clip(id=path.stem, path=path, label_index=number, frames=num_frames if number % 2 else None))
    return made


def run(clips: Sequence[Clip], net: Any = None, rule: Protocol | None = None, **options: Any) -> list[infer.Outcome]:
    return list(infer.score(clips, net or Look(), rule or protocol(), keep_views=True, **options))


def test_golden_pipelines_to_the_bit(golden: Path) -> None:
    """mmaction2's own transforms, from decoded frames to the batch that its network gets."""
    cases = json.loads((golden / "mmaction2" / "pipeline.json").read_text())
    with np.load(golden / "mmaction2" / "pipeline.npz") as arrays:
        for name in ("slowonly_efficient", "slowonly_accurate", "slowonly_flow_accurate", "tsn_accurate",
                     "tsm_accurate_twice", "tsn_flow_5x1x3"):  # fmt: skip
            case, flow = cases[name], cases[name]["modality"] == "Flow"
            frames = arrays["flow_frames" if flow else "rgb_frames"]
            args = case["sampler_args"]
            spec = Spec(clip_len=args["clip_len"], frame_interval=args["frame_interval"])
            crops = {"CenterCrop": 1, "ThreeCrop": 3, "TenCrop": 10}[case["crop"]]
            options = {"twice_sample": True} if args.get("twice_sample") else {}
            rule = protocol(num_clips=args["num_clips"], num_crops=crops, crop_px=case["crop_size"], options=options,
                            sampling="mmaction2-0.x" if args["clip_len"] == 1 else "mmaction2-1.x")  # fmt: skip
            plan = decode.plan(len(frames), 25.0, *frames.shape[1:3], spec, rule)
            assert plan.frames.reshape(-1).tolist() == case["frame_inds"], name
            indices = np.unique(plan.frames)
            cut = infer.Views(torch.from_numpy(frames[indices]), indices, plan).cut(range(plan.num_views))
            wanted = arrays[f"{name}/uint8"]
            if name == "tsn_flow_5x1x3":  # a stack of flows in the channels, x and y of one after the other
                cut = cut.transpose(1, 2)
            assert np.array_equal(cut.numpy().reshape(wanted.shape), wanted), name
            if case["format"] == "NCTHW":
                net = models.create("slowonly_r50_flow_4x16" if flow else "slowonly_tiny", num_classes=2)
                assert np.array_equal(net.normalise(cut.float())[None].numpy(), arrays[f"{name}/normalised"]), name


def test_mirrored_flow_has_x_negated_and_only_x(golden: Path) -> None:
    with np.load(golden / "mmaction2" / "pipeline.npz") as arrays:
        flow, wanted = arrays["flow_frames"][:4], arrays["flow_flip/correct_v0.24.1_semantics"]
    rule = protocol(num_clips=1, num_crops=10, short_side_px=45, crop_px=45)
    plan = decode.plan(4, 25.0, 45, 60, Spec(clip_len=4, frame_interval=1, input="flow"), rule)
    cut = infer.Views(torch.from_numpy(flow), np.arange(4), plan).cut(range(10)).permute(0, 2, 3, 4, 1).numpy()
    assert np.array_equal(cut[0], flow[:, :, :45])  # the upper left corner, then its mirror image
    assert np.array_equal(cut[1], wanted[:, :, 15:])


@pytest.mark.parametrize("rule", ["prob-mean", "prob-sum", "prob-max", "logit-mean", "segment-logit-mean"])
def test_views_become_scores_by_the_rule(clips: list[Clip], rule: str) -> None:
    """TSN and TSM as mmaction2 feeds them: frames crops outermost, then along time, in groups of num_segments."""
    torch.manual_seed(0)
    net = models.create("slowonly_tiny", num_classes=CLASSES, clip_len=1, frame_interval=1, num_segments=4,
                        shift_div=8, inflate=[0, 0, 0, 0]).eval()  # fmt: skip
    with torch.no_grad():
        net.body.head.weight.mul_(40)
    sampled = protocol(num_clips=4, aggregation=rule, options={"twice_sample": True})
    outcome = run(clips[:1], net, sampled)[0]
    with decode.reader.open(clips[0].path) as video:
        frames = video.frames(np.arange(30))
    single = decode.plan(30, 25.0, 48, 64, net.spec, protocol(num_clips=4, options={"twice_sample": True}))
    x_FCTHW = infer.Views(torch.from_numpy(frames), np.arange(30), single).cut(range(24)).float()
    segments = 4 if rule == "segment-logit-mean" else 1
    x_VCTHW = x_FCTHW.view(24 // segments, segments, 3, 32, 32).transpose(1, 2)
    with torch.inference_mode():
        logits = net(net.normalise(x_VCTHW))
    views = logits if rule == "logit-mean" else logits.softmax(dim=1)
    wanted = {"prob-mean": views.mean(0), "prob-sum": views.sum(0), "prob-max": views.amax(0),
              "logit-mean": views.mean(0).softmax(0), "segment-logit-mean": views.mean(0)}[rule]  # fmt: skip
    assert outcome.views is not None
    assert np.abs(outcome.views - views.numpy()).max() < 1e-5
    assert np.abs(outcome.scores - wanted.numpy()).max() < 1e-5
    assert (outcome.num_views, outcome.num_planned) == (24 // segments, 24 // segments)


def test_views_come_crops_outermost(clips: list[Clip]) -> None:
    net = Look()
    outcome = run(clips[:1], net)[0]
    plan = decode.plan(30, 25.0, 48, 64, net.spec, protocol())
    assert plan.num_views == 9
    with decode.reader.open(clips[0].path) as video:
        frames = torch.from_numpy(video.frames(np.arange(30)))
    whole = infer.resize.linear(frames, plan.height, plan.width)
    expected = [
        whole[row, :, top : top + h, left : left + w].transpose(0, 1)
        for top, left, h, w in plan.boxes
        for row in torch.from_numpy(plan.frames)
    ]
    assert torch.equal(torch.cat(net.seen), net.normalise(torch.stack(expected).float()))
    assert outcome.views is not None
    assert outcome.scores is not None
    assert outcome.views.shape == (9, CLASSES)
    assert np.allclose(outcome.views.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(outcome.scores, outcome.views.mean(axis=0), atol=1e-7)
    assert (outcome.scores.dtype, outcome.views.dtype) == (np.float32, np.float32)


def test_only_what_a_crop_needs_is_resized_and_it_is_the_same() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 90, 120, 3), dtype=np.uint8)
    plan = decode.plan(
        6, 25.0, 90, 120, Spec(clip_len=2, frame_interval=2), protocol(num_clips=2, num_crops=1, crop_px=24)
    )
    indices = np.unique(plan.frames)
    got = infer.Views(torch.from_numpy(frames[indices]), indices, plan)
    whole = infer.resize.linear(torch.from_numpy(frames), 32, 43)[:, :, 4:28, 9:33]
    assert got.x_nCHW.shape[-2:] == (24, 24)
    assert torch.equal(got.cut(range(2)), whole[torch.from_numpy(plan.frames)].transpose(1, 2))


def test_pairs_of_frames_end_at_the_last_frame() -> None:
    plan = decode.plan(9, 25.0, 32, 32, Spec(clip_len=4, frame_interval=2, frame_offsets=(0, 1)), protocol(num_clips=1))
    rows = views.frame_indices("mmaction2-0.x", 9, 4, 2, 1)[0]
    assert plan.frames[0].tolist() == [frame for row in rows for frame in (row, min(row + 1, 8))]
    with_last = decode.plan(
        4, 25.0, 32, 32, Spec(clip_len=2, frame_interval=3, frame_offsets=(0, 1)), protocol(num_clips=1)
    )
    assert with_last.frames[0].tolist()[-1] <= 3


def test_the_difference_network_sees_pairs(clips: list[Clip]) -> None:
    net = models.create("slowonly_tiny_diff", num_classes=3).eval()
    outcome = run(clips[:1], net)[0]
    assert outcome.scores is not None
    assert outcome.scores.shape == (3,)


@pytest.mark.parametrize("options", [
    {"batch_views": 1}, {"batch_views": 4}, {"batch_views": 1000}, {"workers": 0}, {"workers": 1}, {"workers": 4},
    {"deterministic": True},
])  # fmt: skip
def test_batches_and_workers_do_not_move_results(clips: list[Clip], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = models.create("slowonly_tiny", num_classes=CLASSES).eval()
    base = run(clips, net)
    for one, other in zip(base, run(clips, net, **options), strict=True):
        assert (one.id, one.label_index) == (other.id, other.label_index)
        assert one.views is not None
        assert other.views is not None
        assert np.abs(one.views - other.views).max() < 1e-5


def test_deterministic_is_equal_to_the_bit_whatever_is_around(clips: list[Clip]) -> None:
    torch.manual_seed(0)
    net = models.create("slowonly_tiny", num_classes=CLASSES).eval()
    base = {outcome.id: outcome for outcome in run(clips, net, deterministic=True)}
    for chosen, workers in ((clips[::-1], 4), (clips[2:4], 0), (clips[5:], 1)):
        for outcome in run(chosen, net, deterministic=True, workers=workers):
            assert np.array_equal(outcome.views, base[outcome.id].views)
            assert np.array_equal(outcome.scores, base[outcome.id].scores)


def test_deterministic_does_not_depend_on_the_number_of_threads(clips: list[Clip]) -> None:
    threads: list[int] = []

    class Counting(Look):
        def __call__(self, x: Tensor) -> Tensor:
            threads.append(torch.get_num_threads())
            return super().__call__(x)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run(clips[:1], Counting())
        run(clips[:1], Counting(), deterministic=True)
        assert set(threads) == {1, 3}
        assert threads[-1] == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_batches_are_filled_across_videos(clips: list[Clip]) -> None:
    net = Look()
    run(clips, net, batch_views=8, rule=protocol(num_clips=5, num_crops=1))
    assert net.batches == [8, 8, 8, 8, 3]  # 7 videos of 5 views
    net = Look()
    run(clips, net, batch_views=8, rule=protocol(num_clips=5, num_crops=1), deterministic=True)
    assert net.batches == [5] * 7


def test_a_clip_is_handed_out_as_soon_as_it_is_through(clips: list[Clip]) -> None:
    net = Look()
    outcomes = infer.score(clips, net, protocol(num_clips=5, num_crops=1), batch_views=2)
    for number, _ in enumerate(outcomes, start=1):
        assert len(net.batches) == -(-5 * number // 2)


def test_batches_halve_until_the_memory_suffices(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(infer.FRAMES_AT_ONCE, "cpu", 64)
    net = Look(largest_batch=5)
    halved = run(clips, net)
    assert set(net.batches) <= {4, 3, 2, 1}
    for one, other in zip(halved, run(clips), strict=True):
        assert np.array_equal(one.views, other.views)


def test_a_batch_size_that_was_asked_for_is_kept_or_refused(clips: list[Clip]) -> None:
    with pytest.raises(infer.DataError, match="--batch-views 4"):
        run(clips, Look(largest_batch=5), batch_views=8)
    with pytest.raises(infer.DataError, match="1 views do not fit"):
        run(clips, Look(largest_batch=0))


def test_bad_clips_are_outcomes_with_reasons(clips: list[Clip], tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips[4].path.read_bytes()[:900])  # type: ignore[union-attr]
    half = tmp_path / "half.mp4"  # shorter than its manifest says
    half.write_bytes(clips[5].path.read_bytes())  # type: ignore[union-attr]
    holed = tmp_path / "holed.mp4"
    whole = bytearray(clips[4].path.read_bytes())  # type: ignore[union-attr]
    whole[len(whole) // 3 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 3)
    holed.write_bytes(whole)
    bad = [
        Clip(id="text", path=text),
        Clip(id="empty", path=empty),
        Clip(id="gone", path=tmp_path / "gone.mp4"),
        Clip(id="missing", path=None, status="missing", reason="no file of that name"),
        Clip(id="pending", path=None, status="pending"),
        Clip(id="folder", path=tmp_path),
        Clip(id="cut", path=cut, frames=40),
        Clip(id="half", path=half, frames=40),
    ]
    mixed = [clips[0], *bad[:4], clips[1], *bad[4:], clips[2]]
    outcomes = run(mixed, workers=2)
    assert [outcome.id for outcome in outcomes] == [clip.id for clip in mixed]
    failed = {outcome.id: outcome.reason for outcome in outcomes if outcome.scores is None}
    assert set(failed) == {clip.id for clip in bad}
    assert "text.mp4" in str(failed["text"])
    assert failed["missing"] == "no file of that name"
    assert "pending" in str(failed["pending"])
    assert "frame" in str(failed["half"])
    good = {outcome.id: outcome for outcome in run(clips[:3])}
    for outcome in outcomes:
        if outcome.scores is not None:
            assert np.array_equal(outcome.scores, good[outcome.id].scores)
    for known in (40, None):  # damaged in the middle: some outcome, no crash
        assert len(run([Clip(id="holed", path=holed, frames=known)])) == 1


def test_a_crop_that_does_not_fit_is_a_reason(clips: list[Clip]) -> None:
    outcome = run(clips[:1], rule=protocol(num_crops=1, crop_px=33))[0]
    assert outcome.scores is None
    assert "does not fit" in str(outcome.reason)


def test_a_network_that_gives_nan_fails_the_clip_by_name(clips: list[Clip]) -> None:
    class Broken(Look):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) * float("nan")

    outcome = run(clips[:1], Broken())[0]
    assert outcome.scores is None
    assert "NaN" in str(outcome.reason)


@pytest.mark.parametrize("dtype", ["bf16"])
def test_lower_precision_is_near(clips: list[Clip], dtype: str) -> None:
    torch.manual_seed(0)
    net = models.create("slowonly_tiny", num_classes=CLASSES).eval()
    for one, other in zip(run(clips[:3], net), run(clips[:3], net, dtype=dtype), strict=True):
        assert one.scores is not None
        assert other.scores is not None
        assert 0 < np.abs(one.scores - other.scores).max() < 0.05
        assert other.scores.dtype == np.float32


def test_colours_made_on_the_device_are_the_same(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    base = run(clips)
    monkeypatch.setattr(infer, "CONVERTS", ("cpu",))
    monkeypatch.setattr(infer, "CONVERTED_AT_ONCE", 3)
    for one, other in zip(base, run(clips), strict=True):
        assert np.array_equal(one.views, other.views)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_uses_cudnn_without_tf32(deterministic: bool) -> None:
    with infer.cudnn_flags(deterministic):
        cudnn = torch.backends.cudnn
        assert (cudnn.enabled, cudnn.deterministic, cudnn.benchmark) == (True, deterministic, not deterministic)
        assert not cudnn.allow_tf32
    assert torch.backends.cudnn.enabled


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_scores(clips: list[Clip]) -> None:
    torch.manual_seed(0)
    net = models.create("slowonly_tiny", num_classes=CLASSES).eval()
    base = run(clips, net)
    for one, other in zip(base, run(clips, net.cuda(), device="cuda"), strict=True):
        assert np.abs(one.scores - other.scores).max() < 1e-5


def test_accurate_is_what_the_table_says() -> None:
    net = models.create("slowonly_r50_4x16", num_classes=2)
    plan = decode.plan(300, 30.0, 256, 340, net.spec, protocols.get("slowonly", "accurate"))
    assert (plan.num_views, plan.frames.shape, plan.height, plan.width) == (30, (10, 4), 256, 340)
    assert plan.boxes == ((0, 0, 256, 256), (0, 84, 256, 256), (0, 42, 256, 256))
