"""From a list and a folder of videos to verified variants: what ``python -m datakit prepare`` does.

    clips asked for -> their sources -> one encode a source, all variants -> manifest, lists and lock of each variant

Each step can be killed at any instant. What is finished stays: a file gets its final name only after it was decoded and
counted, it says itself what it was made from, and the journal is only the quick way to know that.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import catalog, console, encode, estimate, fetch, files, folders, labels, lists, manifest, probe, runner
from .annotations import JOURNAL, ClipSpec, stem
from .asked import clips_asked_for
from .catalog import Dataset, Layout, Variant
from .errors import Damaged, ItemError, Refused, Retryable, Unreadable, UsageError
from .journal import Journal, Outcome
from .layout import FILE_STAGE, SOURCE_STAGE, final_path, key, stage_of
from .probe import Checked
from .sources import Options, local, reasons

# A clip may be cut generously, but a file of minutes under the name of a ten-second clip is the video it was cut from.
LONGEST_SHARE, LONGEST_MORE_S = 1.5, 5.0
SHORT_SHARE, SHORT_LESS_S = 0.9, 0.2  # what lacks no more than that is as long as listed
COPY = "copy"  # instead of a tag
CUT_OUT = "cut out of the whole video"
FOLDER_FPS = 25.0  # of folders of pictures, when neither the data set's manifest nor the user says their rate
SAME_SHAPE = 0.02  # pictures whose width : height differ by less were meant to have the same shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for. ``splits`` empty: all there are. ``allow_damaged``: share of the frames."""

    name: str
    data_root: Path
    raw: Path | None
    labels: Path | None
    annotations: Path | None
    splits: tuple[str, ...]
    variants: tuple[Variant, ...]
    num_jobs: int
    limit: int | None
    allow_damaged: float
    retry_failed: bool
    folder_fps: float | None = None
    label_order: str | None = None
    fetching: Options = field(default_factory=Options)

    @property
    def set_dir(self) -> Path:
        return self.data_root / self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One file to make: its variant, its name in the variant's folder, and what the journal knows of such a file."""

    variant: Variant
    folder: Path
    name: str
    sha256: str = ""
    old_name: str = ""

    @property
    def path(self) -> Path:
        return self.folder / self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a source whose size and time stamp are ``stat``."""

    stat: list[float]
    sha256: str
    info: probe.MediaInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One source and what is to be made of it.

    ``folder_fps`` is the rate of a source that is a folder of pictures, ``frame_names`` what they are called in a copy.
    ``of_several``: the source has the name of a clip, but of several on the list, so only the whole video will do.
    """

    spec: ClipSpec
    source: Path
    targets: tuple[Target, ...]
    work: Path
    allow_damaged: float
    facts: Facts | None = None
    folder_fps: float = FOLDER_FPS
    frame_names: str = folders.NAMES
    of_several: bool = False

    @property
    def id(self) -> str:
        return self.spec.id


def prepare(request: Request) -> dict[str, dict[str, int]]:
    """Do all of it; returns counts by status for each variant. Raises ``UsageError``, ``DataError``, ``ToolMissing``.

    What became of a single clip is no error but its status.
    """
    encode.check_tools()
    dataset = catalog.dataset(request.name)
    if request.raw is not None and request.raw.resolve() == request.set_dir.resolve():
        raise UsageError(f"{request.raw} is where the prepared set would go; type another NAME or --data-root DIR")
    with Journal.open(request.set_dir / JOURNAL) as journal:
        splits, specs = clips_asked_for(request, dataset, journal)
        if request.label_order:
            labels.choose(journal, dataset, request.label_order, [*journal.clips(), *specs])
        journal.set_setting("allow_damaged", str(request.allow_damaged))
        journal.add_to_setting("variants", [variant.name for variant in request.variants])
        work = _fresh_work_folder(request.set_dir)
        try:
            with runner.here():
                specs = _with_files(request, dataset, journal, splits, specs, work)
            jobs = list(_jobs(request, dataset, journal, specs, work))
            if request.limit is not None:
                jobs = jobs[: request.limit]
            _say_what_comes(request, specs, jobs)
            jobs = _with_facts(request, journal, jobs, work)
            _ask_before_much(request, jobs)
            _encode_all(request, journal, jobs, work)
        finally:
            shutil.rmtree(work.parent, ignore_errors=True)
        counts = {}
        for variant in request.variants:
            counts[variant.name] = lists.write(request.set_dir, variant, journal, dataset, request.allow_damaged)
            _say_what_is_stray(request.set_dir, variant)
    return counts


def fetch_only(request: Request) -> dict[str, int]:
    """Only have the videos here; returns how many clips have their file, and why others do not."""
    dataset = catalog.dataset(request.name)
    if dataset is None:
        raise UsageError(
            f"no manifest describes {request.name}; type: python -m datakit prepare {request.name} --raw DIR"
        )
    with Journal.open(request.set_dir / JOURNAL) as journal:
        splits, specs = clips_asked_for(request, dataset, journal)
        work = _fresh_work_folder(request.set_dir)
        try:
            specs = _with_files(request, dataset, journal, splits, specs, work)
        finally:
            shutil.rmtree(work.parent, ignore_errors=True)
        why = reasons(journal)
    statuses = ("ok" if spec.source else why[spec.id].error.lower() if spec.id in why else "pending" for spec in specs)
    return dict(Counter(statuses))


def _with_files(
    request: Request, dataset: Dataset | None, journal: Journal, splits: set[str], specs: list[ClipSpec], work: Path
) -> list[ClipSpec]:
    """The clips with their files, fetched where that is needed; the journal knows them from here on."""
    if dataset is None:
        journal.replace_clips(splits, specs)
        return specs
    raw = Path(known) if (known := journal.setting("raw")) else None
    return fetch.with_files(
        splits, specs, dataset, request.set_dir, raw, journal, request.fetching,
        num_jobs=request.num_jobs, limit=request.limit, notes=work,
    )  # fmt: skip


def _jobs(
    request: Request, dataset: Dataset | None, journal: Journal, specs: Iterable[ClipSpec], work: Path
) -> Iterator[Job]:
    """What is left to do, found from the journal and the disk without reading a video."""
    layout = dataset.layout if dataset else Layout()
    folder_fps = request.folder_fps or layout.fps or FOLDER_FPS
    sources = journal.outcomes(SOURCE_STAGE)
    there: list[tuple[ClipSpec, Path, str]] = []  # with the source's hash, where it is unchanged
    for spec in specs:
        if spec.source is None or (stat := _source_stat(spec.source, folder_fps)) is None:
            continue
        known = sources.get(spec.id)
        there.append((spec, spec.source, known.data["sha256"] if known and known.data["stat"] == stat else ""))
    sources.clear()
    targets: dict[str, list[Target]] = defaultdict(list)
    for variant in request.variants:  # one after the other: of a large set each is a gigabyte
        before = journal.outcomes(stage_of(variant.name))
        for spec, source, source_sha256 in there:
            name = str(final_path(spec, variant, dataset))
            target = Target(variant=variant, folder=request.set_dir / variant.name, name=name)
            known = before.pop(spec.id, None)
            if known is not None and source_sha256 and known.key == key(source_sha256, variant, spec):
                if _settled(known, source, target.path, request):
                    continue
                target = replace(target, sha256=known.data.get("sha256", ""), old_name=known.data.get("name", ""))
            targets[spec.id].append(target)
    for spec, source, _ in there:
        if spec.id in targets:
            yield Job(
                spec=spec,
                source=source,
                targets=tuple(targets[spec.id]),
                work=work,
                allow_damaged=request.allow_damaged,
                folder_fps=folder_fps,
                frame_names=layout.frame_names or folders.NAMES,
                of_several=dataset is not None
                and spec.cut_s is not None
                and stem(source.name) in local.clip_file_names(spec, dataset),
            )


def _with_facts(request: Request, journal: Journal, jobs: Sequence[Job], work: Path) -> list[Job]:
    """A video of hours that holds hundreds of clips is hashed and walked through once, not once a clip."""
    uses = Counter(job.source for job in jobs)
    shared = [path for path, count in uses.items() if count > 1]
    known = journal.outcomes(FILE_STAGE) if shared else {}
    new = [path for path in shared if str(path) not in known or known[str(path)].data["stat"] != folders.stat(path)]
    outcomes = runner.run(_look_at, new, name=str, stage=FILE_STAGE, num_jobs=request.num_jobs, notes=work)
    for outcome in console.progress(outcomes, total=len(new), what="look at whole videos"):
        if outcome.status == "ok":  # else each of its clips says what is wrong
            journal.add([outcome])
            known[outcome.id] = outcome
    facts = {
        path: Facts(stat=data["stat"], sha256=data["sha256"], info=probe.MediaInfo.from_dict(data["info"]))
        for path in shared
        if str(path) in known and (data := known[str(path)].data)
    }
    return [replace(job, facts=facts.get(job.source)) for job in jobs]


def _look_at(path: Path) -> Outcome:
    """In a worker: hash and walk through one source."""
    stat, sha256 = folders.stat(path), encode.sha256_file(path)
    data = {"stat": stat, "sha256": sha256, "info": probe.media_info(path).to_dict()}
    return Outcome(id=str(path), stage=FILE_STAGE, key=sha256, status="ok", data=data)


def _settled(known: Outcome, source: Path, path: Path, request: Request) -> bool:
    """Nothing to do: the file is there as it was left, or it failed in a way that trying again would not change."""
    if "stat" in known.data:
        try:
            return bool(known.data["stat"] == folders.stat(path))
        except FileNotFoundError:
            return False
    if known.status == "damaged":
        return not request.retry_failed and known.data["share"] < request.allow_damaged
    renamed = known.data.get("source", source.name) != source.name  # it may have been refused for its name
    return not request.retry_failed and not renamed and known.error not in {"Retryable", "WorkerDied", "Bug"}


def _encode_all(request: Request, journal: Journal, jobs: Sequence[Job], work: Path) -> None:
    wanted = {job.id: job for job in jobs}
    bad = Counter[str]()
    cut = 0

    def note() -> str:
        return f"({bad.total()} bad)" if bad else ""

    outcomes = runner.run(
        encode_source, jobs, name=lambda job: job.id, stage=SOURCE_STAGE, num_jobs=request.num_jobs, notes=work
    )
    for outcome in console.progress(outcomes, total=len(jobs), what="encode", note=note):
        rows = _rows(outcome, wanted[outcome.id])
        journal.add(rows)
        bad.update({row.error for row in rows if row.error})
        cut += any(row.message.startswith(CUT_OUT) for row in rows)
    if cut:
        print(f"note: {cut} files are whole videos, not clips; their clips were cut out of them", file=sys.stderr)


def _rows(outcome: Outcome, job: Job) -> list[Outcome]:
    """One worker's answer as journal rows: the source, and each variant of it."""
    if outcome.status == "failed":  # it died, or broke before it could say more
        return [replace(outcome, stage=stage_of(target.variant.name)) for target in job.targets]
    data = dict(outcome.data)
    variants = data.pop("variants")
    return [
        replace(outcome, data=data),
        *(Outcome(id=job.id, stage=stage_of(name), seconds=outcome.seconds, **row) for name, row in variants.items()),
    ]


def encode_source(job: Job) -> Outcome:
    """In a worker: make what is missing of one source. The outcome's data say what became of each variant."""
    stat = _source_stat(job.source, job.folder_fps)
    facts = job.facts if job.facts is not None and job.facts.stat == stat else None
    source_sha256 = ""
    try:
        source_sha256 = facts.sha256 if facts else _source_sha256(job.source, job.folder_fps)
        info = facts.info if facts else probe.media_info(job.source, job.folder_fps)
        made = _make(job, source_sha256, info)
    except ItemError as error:
        message = str(error).replace(f"{job.source}: ", "").replace(f"{job.source.name}: ", "")
        failed = {"status": "failed", "error": type(error).__name__, "message": message}
        made = {target.variant.name: {**failed, "data": {"source": job.source.name}} for target in job.targets}
    for target in job.targets:
        made[target.variant.name]["key"] = key(source_sha256, target.variant, job.spec)
    data = {"sha256": source_sha256, "stat": stat, "variants": made}
    return Outcome(id=job.id, stage=SOURCE_STAGE, key=source_sha256, status="ok", data=data)


def _make(job: Job, source_sha256: str, info: probe.MediaInfo) -> dict[str, dict[str, Any]]:
    """Have every target's file in place and checked, encoding once for each different result."""
    guessed = _moment_of_whole_video(job.spec, info) if job.spec.cut_s is None or job.of_several else None
    if job.of_several and guessed is None:
        raise Refused(
            f"{info.duration_s:.0f} s long, so not the whole video but one of the clips that the list has of it, and "
            f"nothing says which; if it is this one name it {job.spec.id}"
        )
    moment = guessed or job.spec.cut_s
    part = probe.part(job.source, info, *moment) if moment else None
    shown = part or info
    sizes = {target: target.variant.size(shown.displayed_width, shown.displayed_height) for target in job.targets}
    refused = {
        target.variant.name: {
            "status": "failed",
            "error": Refused.__name__,
            "message": f"the picture would be {size[0]}x{size[1]}, H.264 takes {encode.LARGEST_SIDE_PX} at most",
        }
        for target, size in sizes.items()
        if max(size) > encode.LARGEST_SIDE_PX
    }
    targets = [target for target in job.targets if target.variant.name not in refused]
    if not targets:
        return refused
    tags = {
        target: COPY
        if _is_copy(job, target)
        else encode.tag_for(source_sha256, target.variant.encode_key(sizes[target]), part)
        for target in targets
    }
    checked = {
        target: kept for target in targets if (kept := _keep(job, target, tags[target], source_sha256)) is not None
    }
    groups: dict[str, list[Target]] = {}
    for target in targets:
        if target not in checked:
            groups.setdefault(tags[target], []).append(target)
    copies = groups.pop(COPY, [])
    orders = [(group[0].variant, sizes[group[0]], tag) for tag, group in groups.items()]
    encoded = encode.encode(job.source, orders, job.work, part, fps=job.folder_fps) if orders else []
    made = list(zip(encoded, groups.values(), strict=True))
    try:
        if copies:
            made.append((_copied(job), copies))
        if encoded:
            _refuse_changing_shape((shown.width, shown.height), encoded[0].new_sizes)
        for one, group in made:
            checked.update(dict.fromkeys(group, one.checked))
        counts = {one.frames for one in checked.values()}
        if len(counts) > 1:
            raise Retryable(f"the variants came out with different numbers of frames: {sorted(counts)}")
        complaints = encoded[0].complaints if encoded else encode.complaints(job.source, part)
        verdict = _verdict(counts.pop(), shown, complaints, pictures=job.source.is_dir())
        if guessed:
            verdict["message"] = "; ".join(filter(None, [_cut_out(guessed, info), verdict["message"]]))
        elif part is None and not verdict["message"]:
            verdict["message"] = short(job.spec, info.duration_s)
        if verdict["status"] == "ok" or verdict["data"]["share"] >= job.allow_damaged:
            for one, group in made:
                for target in group:
                    _place(one.part, target.path)
    finally:
        encode.discard([one.part for one, _ in made])
    return refused | {
        target.variant.name: {**verdict, "data": {**verdict["data"], **_facts(checked[target], target, info.fps)}}
        for target in targets
    }


def _is_copy(job: Job, target: Target) -> bool:
    """Whether the variant is the source's own JPEG files: nothing that was encoded once is encoded again."""
    variant = target.variant
    return job.source.is_dir() and variant.container == "frames" and not variant.short_side_px and not variant.width_px


def _copied(job: Job) -> encode.Encoded:
    part = job.work / f"{uuid.uuid4().hex}.part"
    try:
        folders.copy(job.source, part, job.frame_names)
        return encode.Encoded(part=part, checked=encode.check(part), complaints="")
    except Unreadable as error:
        encode.discard([part])
        message = str(error)
        for number, path in enumerate(folders.frame_files(job.source), start=1):  # name their file, not our copy of it
            message = message.replace(str(part / job.frame_names.format(number)), path.name)
        raise Unreadable(message) from None
    except BaseException:
        encode.discard([part])
        raise


def _keep(job: Job, target: Target, tag: str, source_sha256: str) -> Checked | None:
    """A file that already has the final name and says it is what we would make: taken if it is whole.

    A clip that changed its label or split is such a file under its old name.
    """
    old = target.folder / target.old_name
    if not target.path.exists() and target.old_name and old.exists():
        target.path.parent.mkdir(parents=True, exist_ok=True)
        old.replace(target.path)
    if not target.path.exists():
        return None
    try:
        if tag == COPY and _source_sha256(target.path, job.folder_fps) != source_sha256:
            return None
        if tag != COPY and encode.read_tag(target.path) != tag:
            return None
        checked = encode.check(target.path)
    except ItemError:
        return None
    return checked if target.sha256 in ("", checked.sha256) else None


def _moment_of_whole_video(spec: ClipSpec, info: probe.MediaInfo) -> tuple[float, float] | None:
    """The moment that the list names, when the file is evidently the video that the clip was taken from."""
    if spec.start_s is None or spec.end_s is None or not is_longer(spec, info.duration_s):
        return None
    if spec.start_s >= info.end_s:
        raise Refused(
            f"{info.duration_s:.0f} s long where the list says {spec.end_s - spec.start_s:g} s from "
            f"{spec.start_s:g} s on: "
            f"neither the clip nor the whole video"
        )
    return spec.start_s, spec.end_s


def is_longer(spec: ClipSpec, duration_s: float) -> bool:
    """Whether a file is so much longer than its clip that it is evidently the video that the clip was taken from."""
    if spec.start_s is None or spec.end_s is None:
        return False
    return duration_s > LONGEST_SHARE * (spec.end_s - spec.start_s) + LONGEST_MORE_S


def _cut_out(moment: tuple[float, float], info: probe.MediaInfo) -> str:
    return f"{CUT_OUT} of {info.duration_s:.0f} s, from {moment[0]:g} s to {moment[1]:g} s"


def short(spec: ClipSpec, duration_s: float) -> str:
    """What to say of a whole clip that is shorter than its list says, as one in twenty of Kinetics-700-2020 test is;
    empty when it is not."""
    if spec.start_s is None or spec.end_s is None:
        return ""
    listed_s = spec.end_s - spec.start_s
    if duration_s >= min(SHORT_SHARE * listed_s, listed_s - SHORT_LESS_S):
        return ""
    return f"short: {duration_s:.1f} s long, the list says {listed_s:g} s"


def _refuse_changing_shape(first: tuple[int, int], others: Iterable[tuple[int, int]]) -> None:
    """Scaled to the one size of a file, a picture of another shape would come out stretched."""
    for width, height in others:
        if abs(width * first[1] / (height * first[0]) - 1) > SAME_SHAPE:
            raise Refused(
                f"the picture changes from {first[0]}x{first[1]} to {width}x{height} on the way, "
                f"which would be stretched to the first one's shape"
            )


def _verdict(
    frames: int, info: probe.MediaInfo | probe.Part, complaints: str, *, pictures: bool = False
) -> dict[str, Any]:
    """ok, or damaged with the share of the promised frames that came out. Of a folder of ``pictures`` all must."""
    cut_short = info.expected_frames > info.num_packets
    share = min(1.0, frames / max(1, info.expected_frames))
    # Decoders give up without a word: ffmpeg takes an empty JPEG file for the end of its series.
    silent = frames < info.expected_frames if pictures else share < SHORT_SHARE
    if not complaints and not cut_short and not silent:
        return {"status": "ok", "error": "", "message": "", "data": {"share": 1.0}}
    ends = f"the file ends before {'its header' if isinstance(info, probe.MediaInfo) else 'the list'} says"
    reason = complaints or (ends if cut_short else "the decoder stopped without a word")
    whole = f"all {frames} frames can be decoded, but with errors"
    part = f"{frames} of {info.expected_frames} frames can be decoded"
    message = f"{whole if share == 1 else part}: {reason}"
    return {"status": "damaged", "error": Damaged.__name__, "message": message, "data": {"share": round(share, 4)}}


def _place(part: Path, final: Path) -> None:
    """Give a checked file its final name. Several names may share it: equal encodes are stored once if links work."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if part.is_dir():
        twin = final.with_name(f"{uuid.uuid4().hex}.part")  # beside it: the variant's folder may be on another disk
        try:
            folders.twin(part, twin)
            folders.place(twin, final)
        finally:
            encode.discard([twin])
        return
    link = part.with_name(f"{uuid.uuid4().hex}.part")
    try:
        os.link(part, link)
        files.sync(link)
        link.replace(final)
    except OSError:  # a disk without links, or the variant's folder is a link to another disk
        link.unlink(missing_ok=True)
        with files.replacing(final) as copy:
            shutil.copyfile(part, copy)


def _facts(checked: Checked, target: Target, fps: float) -> dict[str, Any]:
    """What the manifest will say of a file, and how the next run sees that it is untouched, or where it was."""
    if not target.path.exists():
        return {}
    facts = asdict(checked)
    del facts["tag"]
    if target.path.is_dir():  # pictures have no clock of their own
        facts |= {"fps": fps, "duration_s": checked.frames / fps if fps else 0.0}
    return {**facts, "stat": folders.stat(target.path), "name": target.name, "encoder": encode.encoder_name()}


def _source_stat(path: Path, folder_fps: float) -> list[float] | None:
    """What changes when a source does, ``None`` when it is not there; the rate of a folder of pictures is only said, so
    it is part of it."""
    try:
        found: list[float] = [*folders.stat(path)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [*found, folder_fps] if len(found) == 3 else found  # of a folder: bytes, time, how many files


def _source_sha256(path: Path, folder_fps: float) -> str:
    return folders.frames_sha256(path, folder_fps) if path.is_dir() else encode.sha256_file(path)


def _fresh_work_folder(set_dir: Path) -> Path:
    """Half-written files live here and nowhere else; what a killed run left goes. The journal's lock protects it."""
    work = set_dir / ".work"
    shutil.rmtree(work, ignore_errors=True)
    folder = work / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder


def _say_what_is_stray(set_dir: Path, variant: Variant) -> None:
    """A loader of class folders would take these for clips of the set; nobody deletes them unasked."""
    folder = set_dir / variant.name
    listed = manifest.listed_paths(folder)
    there: list[str] = []
    if variant.container == "frames":  # a walk through millions of pictures would not find more than their folders
        for parent in {path.rpartition("/")[0] for path in listed}:
            there += [f"{parent}/{entry.name}" for entry in os.scandir(folder / parent) if entry.is_dir()]
    else:
        for top, subfolders, names in os.walk(folder):
            within = os.path.relpath(top, folder)
            subfolders[:] = [name for name in subfolders if (within, name) != (".", lists.TREE)]
            there += [os.path.normpath(f"{within}/{name}") for name in names if name.endswith(".mp4")]
    stray = sorted(path for path in there if path not in listed)
    if stray:
        where = folder / stray[0]
        print(f"note: {len(stray)} clips in {folder} are on no list (any more), such as {where}", file=sys.stderr)


def _ask_before_much(request: Request, jobs: Sequence[Job]) -> None:
    sources = []
    for job in jobs:
        moment = job.spec.cut_s or (job.spec.start_s, job.spec.end_s)
        seconds = moment[1] - moment[0] if moment[0] is not None and moment[1] is not None else None
        sources.append(
            estimate.Source(
                path=job.source, variants=tuple(target.variant for target in job.targets), seconds=seconds,
                info=job.facts.info if job.facts else None, folder_fps=job.folder_fps,
            )
        )  # fmt: skip
    num_at_once = runner.num_at_once(request.num_jobs)
    estimate.before_encoding(request.name, sources, request.set_dir, num_at_once, yes=request.fetching.yes)


def _say_what_comes(request: Request, specs: Sequence[ClipSpec], jobs: Sequence[Job]) -> None:
    found = sum(spec.source is not None and spec.source.exists() for spec in specs)
    names = ", ".join(variant.name for variant in request.variants)
    print(
        f"{request.name}: {len(specs)} clips asked for, {found} found, {len(jobs)} to encode into {names} with "
        f"{runner.num_at_once(request.num_jobs)} jobs",
        file=sys.stderr,
    )
