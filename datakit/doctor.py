"""Is everything here that the work needs? Tools and their age, ffmpeg's parts tried out, the disk, one data set's size.

Nothing is changed: what is tried out is written to a temporary folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import manifests

from . import catalog, disk, estimate
from .catalog import Dataset, Variant
from .errors import KitError, ToolMissing

OLD_DAYS = {"yt-dlp": 90}  # sites change; other packages do not go bad
SECONDS_A_PROGRAM = 120
# Needed by encode.py, then by sources that people have.
FILTERS = ("format", "scale", "setparams", "setsar", "split", "zscale")
ENCODERS = ("libx264", "mjpeg")
DECODERS = ("av1", "h264", "hevc", "mpeg4", "vp8", "vp9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``verdict``: ok, note (works, but), lacking (some commands need it), broken."""

    what: str
    verdict: str
    found: str
    advice: str = ""


def examine(data_root: Path, dataset: Dataset | None, variants: list[Variant]) -> Iterator[Finding]:
    """Everything, one finding after the other; those of a data set when one is named."""
    yield python()
    yield from packages()
    yield torch_pair()
    yield from ffmpeg()
    yield javascript()
    yield processors()
    yield from folder(data_root)
    if dataset is not None:
        yield from room_for(dataset, variants, data_root)


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = str(_project()["requires-python"])
    fits = all(_compare(found, clause) for clause in wanted.split(","))
    return Finding(
        what="Python", verdict="ok" if fits else "broken", found=found,
        advice="" if fits else f"{wanted} is needed: make setup PYTHON=/path/to/another",
    )  # fmt: skip


def packages() -> Iterator[Finding]:
    """What pyproject.toml asks for; a package whose version is a date has an age."""
    for requirement in _project()["dependencies"]:
        name = re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0]
        clauses = re.sub(r"^[\w.-]+(\[[\w,.-]+\])?", "", requirement.split(";")[0]).replace(" ", "")
        advice = f"type: pip install '{requirement}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(what=name, verdict="broken", found="not there", advice=advice)
            continue
        fits = all(_compare(version, clause) for clause in clauses.split(",") if clause)
        days = days_old(version)
        found = version if days is None else f"{version}, {days} days old"
        if not fits:
            yield Finding(what=name, verdict="broken", found=found, advice=advice)
        elif days is not None and days > OLD_DAYS.get(name, days):
            yield Finding(
                what=name, verdict="note", found=found, advice=f"likely to fail by now: pip install -U {name}"
            )
        else:
            yield Finding(what=name, verdict="ok", found=found)


def torch_pair() -> Finding:
    """torch and torchvision are built for each other: another pair imports, and fails at the first operator."""
    code = (
        "import torch, torchvision; from torchvision.ops import nms; "
        "nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5); "
        "cuda = torch.cuda.is_available(); "
        "print(f'{torch.__version__} with torchvision {torchvision.__version__}, ' + "
        "(', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if cuda else 'no GPU'))"
    )
    done = _program([sys.executable, "-W", "ignore", "-c", code])
    if done.returncode == 0:
        return Finding(what="torch", verdict="ok", found=done.stdout.strip())
    said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
    return Finding(
        what="torch", verdict="broken", found=said,
        advice="torch and torchvision must be of one release: pip install -U torch torchvision",
    )  # fmt: skip


def ffmpeg() -> Iterator[Finding]:
    """The program that is used, what it was built with, and a real encode with it."""
    from . import encode

    try:
        program = encode.ffmpeg_program()
    except ToolMissing as error:
        yield Finding(what="ffmpeg", verdict="broken", found="not there", advice=str(error))
        return
    banner = _program([program, "-version"]).stdout
    first = " ".join(banner.split()[:3])
    built = re.search(r"-(20\d\d)(\d\d)(\d\d)\b", first)
    days = days_old(".".join(built.groups())) if built else None
    year = re.search(r"Copyright \(c\) 2000-(\d{4})", banner)
    age = f", {days} days old" if days is not None else f", of {year[1]}" if year else ""
    yield Finding(what="ffmpeg", verdict="ok", found=f"{first}{age}, {program}")
    for what, option, wanted, needed in (
        ("filters", "-filters", FILTERS, True),
        ("encoders", "-encoders", ENCODERS, True),
        ("decoders", "-decoders", DECODERS, False),
    ):
        there = set(re.findall(r"^ [\w.|]+ +(\S+)", _program([program, "-hide_banner", option]).stdout, re.MULTILINE))
        # "libdav1d" decodes av1: what counts is the codec, which stands in brackets behind other names
        there |= set(re.findall(r"\(codec (\w+)\)", _program([program, "-hide_banner", option]).stdout))
        lacking = [name for name in wanted if name not in there]
        verdict = "ok" if not lacking else "broken" if needed else "note"
        found = ", ".join(wanted) if not lacking else f"lacks {', '.join(lacking)}"
        yield Finding(
            what=f"ffmpeg {what}", verdict=verdict, found=found,
            advice="" if not lacking else "type: pip install -U imageio-ffmpeg; unset IMAGEIO_FFMPEG_EXE",
        )  # fmt: skip
    yield _trial()


def _trial() -> Finding:
    """Two variants of a small video, as ``prepare`` makes them: shows what no list of parts does."""
    from . import encode

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.mp4"
        made = _program(
            [encode.ffmpeg_program(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=12",
             "-frames:v", "12", "-c:v", "libx264", str(source)]
        )  # fmt: skip
        try:
            orders = [(catalog.variant(catalog.variant_names()[0]), size, "trial") for size in ((64, 48), (96, 64))]
            frames = {one.checked.frames for one in encode.encode(source, orders, Path(folder))}
        except (KitError, OSError) as error:
            said = made.stderr.strip() or str(error)
            return Finding(
                what="trial encode", verdict="broken", found=said, advice="type: pip install -U imageio-ffmpeg av"
            )
    verdict = "ok" if frames == {12} else "broken"
    return Finding(what="trial encode", verdict=verdict, found=f"12 frames in, {', '.join(map(str, frames))} out")


def javascript() -> Finding:
    """yt-dlp needs a JavaScript runtime for YouTube; nothing else does."""
    from .sources import youtube

    try:
        versions = youtube.check_setup()
    except ToolMissing as error:
        return Finding(what="YouTube", verdict="lacking", found="only --source youtube needs this", advice=str(error))
    return Finding(what="YouTube", verdict="ok", found=", ".join(f"{name} {found}" for name, found in versions.items()))


def processors() -> Finding:
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else there
    found = f"{usable} processors" + (f" of {there}" if usable < there else "")
    if quota := _cgroup_processors():
        found += f", {quota:g} of them worth of time"
        usable = min(usable, max(1, int(quota)))
    if usable < there:
        advice = f"type --jobs {usable} (make: JOBS={usable}); the default is {there}"
        return Finding(what="processors", verdict="note", found=found, advice=advice)
    return Finding(what="processors", verdict="ok", found=found)


def _cgroup_processors() -> float | None:
    """What a container is allowed, in processors."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def folder(data_root: Path) -> Iterator[Finding]:
    """The disk that the data are on: room, links, names, locks."""
    kind = disk.file_system(data_root) or "of unknown type"
    free = disk.free_bytes(data_root)
    yield Finding(what="data root", verdict="ok", found=f"{data_root}: {estimate.gigabytes(free)} free, {kind}")
    if disk.is_network(kind):
        yield Finding(
            what="journal", verdict="note", found=f"{kind} is a network disk, where SQLite is not safe",
            advice="a running command keeps its journal on a disk of this machine (XDG_STATE_HOME) and copies it back",
        )  # fmt: skip
    there = data_root.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as name:
            first, second = Path(name) / "a", Path(name) / "A"
            first.touch()
            one_case = second.exists()
            try:
                os.link(first, Path(name) / "link")
                links = True
            except OSError:
                links = False
    except OSError as error:
        yield Finding(
            what="data root", verdict="broken", found=f"{there} cannot be written to ({error.strerror})",
            advice="type --data-root with a folder that can be",
        )  # fmt: skip
        return
    if one_case:
        yield Finding(
            what="file names", verdict="note", found="this disk does not tell A from a, YouTube ids do",
            advice="a few clips of a large set will share a name; use a disk that tells them apart",
        )  # fmt: skip
    if not links:
        yield Finding(
            what="links", verdict="note", found="this disk has no hard links",
            advice="variants that come out equal are stored twice",
        )  # fmt: skip


def room_for(dataset: Dataset, variants: list[Variant], data_root: Path) -> Iterator[Finding]:
    """Disk and hours for all of a data set, by what its clips are like (manifests/costs.toml)."""
    typical = manifests.read("costs")["typical"].get(dataset.name)
    if typical is None:
        yield Finding(what=dataset.name, verdict="note", found="nobody has measured what its clips are like")
        return
    num_clips = sum(split.rows for split in dataset.splits)
    width, height = typical["width_px"], typical["height_px"]
    frames = typical["seconds"] * typical["fps"]
    total = 1e9 * typical["raw_GB"]
    hours = 0.0
    free = disk.free_bytes(data_root)
    yield Finding(
        what=f"{dataset.name} as fetched", verdict="ok", found=f"{num_clips} clips, about {typical['raw_GB']} GB"
    )
    for variant in variants:
        cpu_s, num_bytes = estimate.of_clip(
            width * height, frames, [variant], [variant.size(Fraction(width), Fraction(height))]
        )
        total += num_clips * num_bytes
        hours += num_clips * cpu_s / 3600
        yield Finding(
            what=f"{dataset.name} {variant.name}", verdict="ok",
            found=f"about {estimate.gigabytes(num_clips * num_bytes)}, {num_clips * cpu_s / 3600:.0f} processor hours",
        )  # fmt: skip
    enough = total <= free
    yield Finding(
        what=f"{dataset.name} in all", verdict="ok" if enough else "note",
        found=f"{estimate.gigabytes(total)} needed, {estimate.gigabytes(free)} free; {hours:.0f} processor hours",
        advice="" if enough else "type --data-root with a larger disk; or less: --variant, --split, --no-keep-archives",
    )  # fmt: skip


def days_old(version: str) -> int | None:
    """Age of a version that is a date (2026.10.26)."""
    match = re.fullmatch(r"(20\d\d)\.(\d{1,2})\.(\d{1,2})(\D.*)?", version)
    if match is None:
        return None
    try:
        return (datetime.now(UTC).date() - date(int(match[1]), int(match[2]), int(match[3]))).days
    except ValueError:
        return None


def _project() -> dict[str, Any]:
    """requires-python and dependencies, from the checkout or from the installed package."""
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if file.is_file():
        return dict(tomllib.loads(file.read_text())["project"])
    metadata = importlib.metadata.metadata("actionkit")
    wanted = [one for one in importlib.metadata.requires("actionkit") or [] if "extra ==" not in one]
    return {"requires-python": metadata["Requires-Python"], "dependencies": wanted}


def _compare(version: str, clause: str) -> bool:
    """Whether a version satisfies ">=3.11", "<19", "==0.17.5", "!=1.2"; numbers are compared, the rest is not."""
    wanted = clause.strip().lstrip("<>=!~")
    sign = clause.strip().removesuffix(wanted)
    here, there = ([int(part) for part in re.findall(r"\d+", text)] for text in (version, wanted))
    width = max(len(here), len(there))
    a, b = (one + [0] * (width - len(one)) for one in (here, there))
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b, "~=": a >= b}[sign]


def _program(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS_A_PROGRAM)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
