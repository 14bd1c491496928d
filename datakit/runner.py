"""The same work on every item, on all cores, with an outcome for every one of them - also when a worker dies.

Workers return ``Outcome`` and never raise; the caller, one process, writes them down as they come. When a worker
process is killed (out of memory, a crash in a decoder) joblib gives the whole run up; so every worker leaves a note of
what it works on, those items run again alone, each in a fresh process, and the one that kills it again gets the outcome
``WorkerDied``. Everything else goes on.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from .errors import ItemError, Retryable, WorkerDied
from .journal import Outcome

Job = TypeVar("Job")

MOST_IDLE_DEATHS = 3  # workers that die before they have begun on anything: the machine is at fault, not a file


def run(
    work: Callable[[Job], Outcome],
    jobs: Sequence[Job],
    *,
    name: Callable[[Job], str],
    stage: str,
    num_jobs: int,
    notes: Path,
) -> Iterator[Outcome]:
    """Yield one outcome for each of ``jobs``, in the order they finish.

    ``name(job)`` is the item's id; ``notes`` an empty folder that this run may write into.
    """
    waiting = {name(job): job for job in jobs}
    idle_deaths = 0
    while waiting:
        try:
            for outcome in _parallel(work, list(waiting.values()), name, stage, num_jobs, notes):
                del waiting[outcome.id]
                idle_deaths = 0
                yield outcome
        except TerminatedWorkerError:
            suspects = [item for item in _noted(notes) if item in waiting]
            for item in suspects:
                yield _alone(work, waiting.pop(item), name, stage, notes)
            idle_deaths += not suspects
            if idle_deaths > MOST_IDLE_DEATHS:
                raise


def _parallel(
    work: Callable[[Job], Outcome], jobs: list[Job], name: Callable[[Job], str], stage: str, num_jobs: int, notes: Path
) -> Iterator[Outcome]:
    # joblib runs n_jobs=1 inside this process, where a crash in a decoder would end the run: so two workers, one busy.
    parallel = joblib.Parallel(
        n_jobs=max(2, num_jobs),
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=1 if num_jobs == 1 else "2 * n_jobs",
    )
    yield from parallel(joblib.delayed(_guarded)(work, job, name(job), stage, notes, os.getpid()) for job in jobs)


def _alone(work: Callable[[Job], Outcome], job: Job, name: Callable[[Job], str], stage: str, notes: Path) -> Outcome:
    try:
        return next(_parallel(work, [job], name, stage, 1, notes))
    except TerminatedWorkerError:
        _noted(notes)
        message = "the process that worked on it was killed twice (out of memory, or a crash in a decoder)"
        return Outcome(id=name(job), stage=stage, status="failed", error=WorkerDied.__name__, message=message)


def _guarded(work: Callable[[Job], Outcome], job: Job, item: str, stage: str, notes: Path, parent: int) -> Outcome:
    """Run in the worker: whatever happens becomes an outcome. The one place that catches everything."""
    if os.getppid() != parent:
        os._exit(1)  # the run was killed: whoever runs it again does this item, not both
    note = notes / f"{os.getpid()}.working"
    start = time.monotonic()
    try:
        note.write_text(item)
        outcome = work(job)
    except ItemError as error:
        outcome = Outcome(id=item, stage=stage, status="failed", error=type(error).__name__, message=str(error))
    except OSError as error:
        outcome = Outcome(id=item, stage=stage, status="failed", error=Retryable.__name__, message=str(error))
    except Exception:
        # Our own mistake: it must not take the other items with it, and it must be seen whole.
        outcome = Outcome(id=item, stage=stage, status="failed", error="Bug", message=traceback.format_exc())
    note.unlink(missing_ok=True)
    return replace(outcome, seconds=round(time.monotonic() - start, 3))


def _noted(notes: Path) -> list[str]:
    """What the dead workers were at; their notes are used up."""
    items = []
    for note in sorted(notes.glob("*.working")):
        items.append(note.read_text())
        note.unlink()
    return items
