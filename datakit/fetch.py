"""Have the files of the clips that a list asks for: from the sources that were named, each filling what others lack.

What each source said of each clip stays in the journal, so that the next run asks only for what may still come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import manifests

from . import console, estimate
from .annotations import ClipSpec
from .catalog import Dataset
from .errors import BadManifest, UsageError
from .journal import Journal, Outcome
from .sources import Options, Order, archive, cvdf, local, youtube

SOURCES: dict[str, Callable[[Sequence[ClipSpec], Order], Iterator[list[Outcome]]]] = {
    "archive": archive.fetch,
    "cvdf": cvdf.fetch,
    "local": local.fetch,
    "youtube": youtube.fetch,
}
# What [sources.NAME] of a data set's manifest must say; [sources.cvdf.replacements] may be there.
KEYS = {
    "archive": {"parts"},
    "cvdf": {"lists"},
    "local": set[str](),
    "youtube": {"url", "unit", "margin_s", "short_side_px"},
}
LINE_BYTES_PER_S = 100e6 / 8  # for the estimate: a line of 100 Mbit/s


def with_files(
    splits: set[str],
    specs: Sequence[ClipSpec],
    dataset: Dataset,
    set_dir: Path,
    raw: Path | None,
    journal: Journal,
    options: Options,
    *,
    num_jobs: int,
    limit: int | None,
    notes: Path,
) -> list[ClipSpec]:
    """``specs``, all the clips of ``splits``, with ``source`` and ``cut_s`` where the file is here or could be had.

    The journal holds them from here on. ``raw`` is the folder that the user named; ``limit``: fetch no more clips than
    that this time. Raises ``UsageError`` for a source that the data set does not have, ``DataError`` when the disk is
    too small, and whatever a source raises that concerns all of its clips.
    """
    names = source_names(dataset, raw, journal, options)
    _check_tables(dataset)
    orders = [
        Order(
            name=name,
            dataset=dataset,
            table=dataset.sources.get(name, {}),
            set_dir=set_dir,
            raw=raw,
            journal=journal,
            options=options,
            num_jobs=num_jobs,
            limit=limit,
            notes=notes,
        )
        for name in names
    ]
    journal.set_setting("sources", ",".join(names))
    skip = frozenset(order.folder for order in orders if order.name != "local")
    if "local" not in names and (set_dir / "raw").is_dir():  # what somebody put there by hand
        specs = local.find(specs, set_dir / "raw", dataset, skip)
    for order in orders:
        specs = _from_journal(specs, order)
        waiting = [spec for spec in specs if not _is_there(spec)]
        if not waiting:
            break
        if limit is not None:
            have = len(specs) - len(waiting)
            if have >= limit:
                continue
            order = replace(order, limit=limit - have)
        if order.name != "local":
            journal.replace_clips(splits, specs)  # so that the state can be seen while it is fetched
        _ask_before_much(waiting, order)
        for outcomes in SOURCES[order.name](waiting, order):
            journal.add(outcomes)
        specs = _from_journal(specs, order)
    journal.replace_clips(splits, specs)
    return list(specs)


def source_names(dataset: Dataset, raw: Path | None, journal: Journal, options: Options) -> tuple[str, ...]:
    """The sources that were asked for; else ``local`` where a folder was named, else those of the run before, else the
    first that the data set's manifest describes."""
    if options.names:
        names = options.names
    elif raw is not None:
        names = ("archive", "local") if "archive" in dataset.sources else ("local",)
    else:
        before = tuple(filter(None, (journal.setting("sources") or "").split(",")))
        names = tuple(name for name in before if name != "local") or tuple(dataset.sources)[:1]
    for name in names:
        if name != "local" and name not in dataset.sources:
            known = ", ".join([*dataset.sources, "local"])
            raise UsageError(f"{dataset.title} has no source {name!r}; type --source with some of: {known}")
    if not names:
        raise UsageError(
            f"{dataset.title} cannot be fetched by a program; it can be had from {dataset.access}. "
            f"With a copy on disk type: python -m datakit prepare {dataset.name} --raw /videos --variant VARIANT"
        )
    return names


def _check_tables(dataset: Dataset) -> None:
    """Raise ``BadManifest`` for a source that nobody knows, or that lacks what it needs."""
    for name, table in dataset.sources.items():
        where = f"datasets/{dataset.name}.toml [sources.{name}]"
        if name not in SOURCES:
            raise BadManifest(f"{where}: no such source; there are: {', '.join(SOURCES)}")
        if lacking := KEYS[name] - set(table):
            raise BadManifest(f"{where}: {min(lacking)} is not there")
        try:
            manifests.check_keys(table, KEYS[name] | ({"replacements"} if name == "cvdf" else set()), where)
        except KeyError as error:
            raise BadManifest(error.args[0]) from None
        if table.get("unit", "clip") not in youtube.UNITS:
            raise BadManifest(f"{where}: unit is one of {', '.join(youtube.UNITS)}")


def _from_journal(specs: Sequence[ClipSpec], order: Order) -> list[ClipSpec]:
    """``specs`` with the files that this source has had so far."""
    known = order.journal.outcomes(order.stage, but="failed")
    return [spec if not known or _is_there(spec) else _with_file(spec, known, order) for spec in specs]


def _with_file(spec: ClipSpec, known: dict[str, Outcome], order: Order) -> ClipSpec:
    for name in (spec.id, *local.clip_file_names(spec, order.dataset)):
        if name not in known or not (path := order.set_dir / known[name].data["path"]).exists():
            continue
        from_s = known[name].data["from_s"]
        if from_s is None:
            return replace(spec, source=path)
        if spec.start_s is not None and spec.end_s is not None:
            return replace(spec, source=path, cut_s=(round(spec.start_s - from_s, 6), round(spec.end_s - from_s, 6)))
    return spec


def _is_there(spec: ClipSpec) -> bool:
    return spec.source is not None and spec.source.exists()


def _ask_before_much(specs: Sequence[ClipSpec], order: Order) -> None:
    """Say what a long fetch will take, and ask when a person is there (``estimate.ask_before``)."""
    if order.limit is not None:
        return
    if order.name == "cvdf":
        num_archives, num_bytes = cvdf.size({spec.split for spec in specs}, order)
        seconds = num_bytes / LINE_BYTES_PER_S
        needed = num_bytes * (2 if order.options.keep_archives else 1)
        less = ", --no-keep-archives needs half of it" if order.options.keep_archives else ""
        what = f"{num_archives} archives, about {num_bytes / 1e9:.0f} GB"
        how_long = f"{console.duration(seconds)} at 100 Mbit/s"
    elif order.name == "youtube":
        num_videos, seconds, needed = youtube.effort(specs, order)
        less = ""
        what = f"{num_videos} videos"
        how_long = f"at least {console.duration(seconds)} at the pace that the site lets guests have"
    else:
        return
    estimate.ask_before(
        f"{order.dataset.title} from {order.name}: {what}, {how_long}",
        seconds,
        needed,
        order.folder,
        yes=order.options.yes,
        instead=f"--limit N fetches a few{less}",
    )
