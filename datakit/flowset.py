"""From a prepared RGB variant to its flow: what ``python -m datakit flow`` does.

    clips of the RGB manifest -> flow of each, in a folder or a file of its own -> manifest, lists and lock of the flow

data/NAME/256p-flow/{split}/<class>/<clip_id>/flow_x_00001.jpg ...   or   <clip_id>.mp4, x above y in grey
lists/{split}_flow.txt      path flows label       (mmaction2 raw frames: one flow less than the clip has frames)

It can be killed at any instant, as ``prepare`` can: a clip's folder gets its name after it was read again and counted,
and says itself what it was made from.
"""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

import manifests

from . import __version__, catalog, console, encode, files, fingerprint, flow, folders, manifest, reader, runner
from .annotations import JOURNAL, safe_name
from .errors import BadManifest, ItemError, Refused, Retryable, Unreadable
from .flow import FlowVariant
from .journal import Journal, Outcome
from .layout import stage_of
from .manifest import Clip, Manifest
from .probe import Checked

PIXELS_AT_ONCE, MOST_FRAMES_AT_ONCE = 8_000_000, 64  # what a worker holds of a clip, as RGB and as float flow
UNKNOWN_FPS = 25.0  # a folder of pictures does not say; the video needs some clock
FLOWS_SETTING = "flows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for. ``base``: the RGB variant. ``splits`` empty: all there are."""

    name: str
    data_root: Path
    base: str
    method: str
    params: str
    container: str
    names: str
    weights: Path | None
    device: str
    splits: tuple[str, ...]
    num_jobs: int
    limit: int | None
    retry_failed: bool

    @property
    def set_dir(self) -> Path:
        return self.data_root / self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The flow of one clip. ``old_name``: where the journal says that this clip's flow was, below ``folder``."""

    id: str
    source: Path
    source_sha256: str
    frames: int | None
    fps: float
    variant: FlowVariant
    device: str
    weights: Path | None
    folder: Path
    name: str
    old_name: str
    work: Path

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def tag(self) -> str:
        planes = f"{reader.FLOW_PLANES_TAG} " if self.variant.container == "mp4" else ""
        return f"actionkit {planes}source={self.source_sha256} flow={self.variant.hash}"


def make_flow(request: Request) -> tuple[str, dict[str, int]]:
    """Do all of it; returns the flow variant's name and its counts by status. Raises ``UsageError``, ``DataError``."""
    base_dir = request.set_dir / request.base
    rgb = manifest.read(base_dir)
    for split in request.splits:
        rgb.split(split)  # a misspelt split is an error with the known ones
    variant = FlowVariant(
        base=request.base,
        base_hash=_variant_hash(base_dir),
        method=request.method,
        params=request.params,
        container=request.container,
        names=request.names,
        weights=flow.weights_id(request.weights) if request.weights else "",
    )
    flow.check_device(request.method, request.device)
    flow.estimator(request.method, request.params, "cpu", request.weights)  # fails here, not in every clip
    folder = request.set_dir / variant.name
    with Journal.open(request.set_dir / JOURNAL) as journal:
        journal.add_to_setting(FLOWS_SETTING, [variant.name])
        journal.set_setting(f"flow:{variant.name}", json.dumps(asdict(variant)))
        work = _fresh_work_folder(folder)
        try:
            jobs = list(_jobs(request, variant, rgb, journal, work))[: request.limit]
            pairs = sum(max(0, (job.frames or 0) - 1) for job in jobs)
            print(
                f"{request.name}: {len(rgb.clips)} clips, flow of {len(jobs)} ({pairs} pairs of frames) into "
                f"{variant.name} by {variant.method} {variant.params} on {request.device} with {request.num_jobs} jobs",
                file=sys.stderr,
            )
            runner.fresh_workers()
            outcomes = runner.run(
                make_one, jobs, name=lambda job: job.id, stage=stage_of(variant.name),
                num_jobs=request.num_jobs, notes=work,
            )  # fmt: skip
            for outcome in console.progress(outcomes, total=len(jobs), what="flow"):
                journal.add([outcome])
        finally:
            shutil.rmtree(work.parent, ignore_errors=True)
        return variant.name, write(request.set_dir, variant, journal)


def stored_variants(journal: Journal) -> dict[str, FlowVariant]:
    """The flow variants of a set, each as it was made last."""
    known = {name: journal.setting(f"flow:{name}") for name in (journal.setting(FLOWS_SETTING) or "").split()}
    return {name: FlowVariant(**json.loads(how)) for name, how in known.items() if how}


def write(set_dir: Path, variant: FlowVariant, journal: Journal) -> dict[str, int]:
    """Write manifest, lists and lock of ``set_dir/variant``; returns how many clips have which status."""
    folder = set_dir / variant.name
    rgb, rows = table(set_dir, variant, journal)
    listed = [row for row in rows if row["path"]]
    # What a killed run left of the small files; the journal's lock says that nobody else writes here.
    encode.discard([stale for place in (folder, folder / "lists") for stale in place.glob("*.part")])
    for split in sorted({row["split"] for row in rows}):
        lines = [f"{row['path']} {row['frames']} {row['label_index']}\n" for row in listed if row["split"] == split]
        files.write_text(folder / "lists" / f"{split}_flow.txt", "".join(lines))
    files.write_text(folder / "lists" / "classes.txt", "".join(f"{name}\n" for name in rgb.classes))
    manifest.write(folder, rows, _lock(set_dir.name, variant, rows))
    return dict(Counter(row["status"] for row in rows))


def table(set_dir: Path, variant: FlowVariant, journal: Journal) -> tuple[Manifest, list[dict[str, Any]]]:
    """(the RGB manifest, a manifest row for every clip of it) as the journal and the disk are now."""
    rgb = manifest.read(set_dir / variant.base)
    made = journal.outcomes(stage_of(variant.name))
    return rgb, [_row(clip, made.get(clip.id), set_dir, variant) for clip in rgb.clips]


def _row(clip: Clip, made: Outcome | None, set_dir: Path, variant: FlowVariant) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": clip.id,
        "label": clip.label,
        "label_index": clip.label_index,
        "split": clip.split,
        "path": None,
        "source": None if clip.path is None else clip.path.name,
        "source_sha256": clip.sha256,
        "reason": None,
    }
    if clip.path is None:
        return {**row, "status": clip.status, "reason": clip.reason}
    if made is None or made.key not in ("", _key(clip.sha256, variant)):
        return {**row, "status": "pending"}
    if made.status == "failed":
        return {**row, "status": made.error.lower(), "reason": made.message}
    name = _name(clip, set_dir / variant.base, variant)
    if not (set_dir / variant.name / name).exists():
        return {**row, "status": "lost", "reason": "the finished flow is not there any more"}
    facts = {key: value for key, value in made.data.items() if key not in ("stat", "name")}
    return {**row, **facts, "path": name, "status": clip.status, "reason": clip.reason}


def _lock(name: str, variant: FlowVariant, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    splits = {}
    for split in sorted({row["split"] for row in rows}):
        asked = [row for row in rows if row["split"] == split]
        listed = [row for row in asked if row["path"]]
        splits[split] = {
            "asked": len(asked),
            "listed": len(listed),
            "status": dict(sorted(Counter(row["status"] for row in asked).items())),
            "list_id": fingerprint.list_id((row["id"], row["label"] or "") for row in listed),
            "media_id": fingerprint.media_id((row["id"], row["sha256"]) for row in listed),
            "content_id": fingerprint.media_id((row["id"], row["content_sha256"]) for row in listed),
        }
    return {
        "schema": "actionkit-lock/1",
        "set": name,
        "variant": variant.name,
        "variant_hash": variant.hash,
        "definition": variant.definition(),
        "splits": splits,
        "encoders": sorted({row["encoder"] for row in rows if row.get("encoder")}),
        "tools": {"pyav": av.__version__, "actionkit": __version__},
    }


def _jobs(request: Request, variant: FlowVariant, rgb: Manifest, journal: Journal, work: Path) -> Iterator[Job]:
    """What is left to do, found from the journal and the disk without reading a picture."""
    before = journal.outcomes(stage_of(variant.name))
    folder = request.set_dir / variant.name
    for clip in rgb.clips:
        if clip.path is None or (request.splits and clip.split not in request.splits):
            continue
        name = _name(clip, request.set_dir / request.base, variant)
        known = before.get(clip.id)
        asked_before = known is not None and known.key in ("", _key(clip.sha256, variant))
        if known is not None and asked_before and _settled(known, folder / name, request):
            continue
        yield Job(
            id=clip.id,
            source=clip.path,
            source_sha256=clip.sha256 or "",
            frames=clip.frames,
            fps=clip.fps or UNKNOWN_FPS,
            variant=variant,
            device=request.device,
            weights=request.weights,
            folder=folder,
            name=name,
            old_name=str(known.data.get("name", "")) if known is not None else "",
            work=work,
        )


def _settled(known: Outcome, path: Path, request: Request) -> bool:
    if known.status == "ok":
        return path.exists() and known.data["stat"] == folders.stat(path)
    return not request.retry_failed and known.error not in {"Retryable", "WorkerDied", "Bug"}


def _key(rgb_sha256: str | None, variant: FlowVariant) -> str:
    """Names what a clip's flow is made from: these RGB bytes, by this definition. A dead worker leaves no key."""
    return catalog.digest([rgb_sha256 or "", variant.hash])


def _name(clip: Clip, base_dir: Path, variant: FlowVariant) -> str:
    """Where a clip's flow lies below the folder of its variant: where the clip lies below its own."""
    assert clip.path is not None
    try:
        place = str(clip.path.relative_to(base_dir)).removesuffix(".mp4")
    except ValueError:  # somebody else's copy, verified in place
        place = str(Path(clip.split, *([safe_name(clip.label)] if clip.label else []), safe_name(clip.id)))
    return f"{place}.mp4" if variant.container == "mp4" else place


def make_one(job: Job) -> Outcome:
    """In a worker: compute, store and check the flow of one clip, unless it is there already."""
    stage, key = stage_of(job.variant.name), _key(job.source_sha256, job.variant)
    # Before anything else: joblib takes a library that a worker loads after its first item for a memory leak.
    encoder = flow.encoder_name(job.variant.method, job.variant.params)
    try:
        checked = _keep(job) or _stored(job)
    except ItemError as error:
        message = str(error).replace(f"{job.source}: ", "")
        return Outcome(id=job.id, stage=stage, key=key, status="failed", error=type(error).__name__, message=message)
    facts = asdict(checked)
    del facts["tag"]
    facts |= {
        "fps": job.fps,
        "duration_s": checked.frames / job.fps,
        "encoder": encoder,
        "stat": folders.stat(job.path),
        "name": job.name,
    }
    return Outcome(id=job.id, stage=stage, key=key, status="ok", data=facts)


def _keep(job: Job) -> Checked | None:
    """Flow that already has the final name and says it is what we would make: taken if it is whole.

    That of a clip that changed its label or split is there under its old name.
    """
    old = job.folder / job.old_name
    if job.old_name and not job.path.exists() and old.exists():
        job.path.parent.mkdir(parents=True, exist_ok=True)
        old.rename(job.path)
    if not job.path.exists():
        return None
    if encode.read_tag(job.path) != job.tag:
        return None
    try:
        checked = _checked(job.path)
    except ItemError:
        return None
    return checked if job.frames is None or checked.frames == job.frames - 1 else None


def _stored(job: Job) -> Checked:
    part = job.work / uuid.uuid4().hex
    try:
        checked = _made(job, part)
        _place(part, job.path)
    except OSError as error:  # what comes of a picture or a video says nothing of its file
        raise Retryable(f"{job.path} cannot be written: {error.strerror or error}; type the command again") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
    return checked


def _made(job: Job, part: Path) -> Checked:
    """Write the flow into ``part`` and read it again. Raises ``Unreadable``, ``Refused``, ``Retryable``."""
    storage = manifests.read("flow")["storage"]
    with reader.open(job.source, num_frames=job.frames, kind="rgb") as video:
        num_flows = video.num_frames - 1
        if num_flows < 1:
            raise Refused("a clip of one frame has no flow")
        flows = _flows(job, video, storage["bound_px"])
        if job.variant.container == "mp4":
            _write_video(part, flows, job, storage, video.height, video.width)
        else:
            _write_jpegs(part, flows, job, storage["quality"])
        size = (video.height, video.width)
    checked = _checked(part)
    if (checked.frames, checked.height, checked.width) != (num_flows, *size):
        raise Retryable(
            f"{num_flows} flows of {size[1]}x{size[0]} written, "
            f"{checked.frames} of {checked.width}x{checked.height} read again"
        )
    return checked


def _flows(job: Job, video: reader.Video, bound_px: float) -> Iterator[reader.Frames]:
    """All flows of a clip as bytes, uint8 [n, H, W, 2], some at a time."""
    estimate = _estimator(job.variant.method, job.variant.params, job.device, job.weights)
    size = max(1, min(MOST_FRAMES_AT_ONCE, PIXELS_AT_ONCE // (video.height * video.width)))
    for start in range(0, video.num_frames - 1, size):
        try:
            frames = video.frames(range(start, min(start + size, video.num_frames - 1) + 1))
        except IndexError as error:  # fewer than the manifest vouches for
            raise Unreadable(f"{error}; type: python -m datakit verify") from error
        yield flow.quantised(estimate(frames), bound_px)


@cache
def _estimator(method: str, params: str, device: str, weights: Path | None) -> flow.Estimate:
    if method != "dis":
        import torch

        torch.set_num_threads(1)  # clips run side by side
    return flow.estimator(method, params, device, weights)


def _write_jpegs(part: Path, flows: Iterator[reader.Frames], job: Job, quality: int) -> None:
    part.mkdir()
    template = flow.NAMES[job.variant.names]
    number = 0
    for some in flows:
        for one in some:
            number += 1
            for plane, axis in enumerate("xy"):
                tag = job.tag if (number, axis) == (1, "x") else ""
                path = part / template.format(axis, number)
                folders.save_jpeg(np.ascontiguousarray(one[..., plane]), path, quality, tag)


def _write_video(
    part: Path, flows: Iterator[reader.Frames], job: Job, storage: dict[str, Any], height: int, width: int
) -> None:
    """Grey H.264 of twice the height, x above y; the same bytes everywhere, as the RGB variants."""
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    with av.open(str(part), "w", format="mp4", options=options) as container:
        container.metadata["comment"] = job.tag
        stream = container.add_stream(storage["codec"], rate=Fraction(job.fps).limit_denominator(65535))
        stream.height, stream.width, stream.pix_fmt = 2 * height, width, "gray"
        stream.gop_size = storage["gop_frames"]
        stream.thread_count = 1
        stream.options = {
            "crf": str(storage["crf"]),
            "preset": storage["preset"],
            "flags": "+cgop+bitexact",
            "x264-params": "threads=1:cpu-independent=1",
        }
        for some in flows:
            for one in some:
                stacked = np.ascontiguousarray(one.transpose(2, 0, 1)).reshape(2 * height, width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(stacked, format="gray")))
        container.mux(stream.encode())


def _checked(path: Path) -> Checked:
    """What is stored at ``path``, read again; of a video the height is that of a plane."""
    checked = encode.check(path)
    return checked if path.is_dir() else replace(checked, height=checked.height // 2)


def _place(part: Path, final: Path) -> None:
    """Give a finished folder or file its name; what has it, of whatever kind, goes first."""
    if part.is_dir():
        folders.place(part, final)
        return
    files.sync(part)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():  # it was a folder of pictures when the flow was asked for in another container
        shutil.rmtree(final)
    part.replace(final)


def _variant_hash(base_dir: Path) -> str:
    lock = base_dir / "manifest.lock"
    try:
        return str(json.loads(lock.read_text())["variant_hash"])
    except (OSError, ValueError, KeyError) as error:
        what_to_do = f"type: python -m datakit lists {base_dir.parent.name}"
        raise BadManifest(f"{lock} cannot be read ({error}); {what_to_do}") from None


def _fresh_work_folder(folder: Path) -> Path:
    """Half-written flow lives here, on the disk where it will stay; what a killed run left goes."""
    work = folder / ".work"
    shutil.rmtree(work, ignore_errors=True)
    mine = work / uuid.uuid4().hex
    mine.mkdir(parents=True)
    return mine
