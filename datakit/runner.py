"""The same work on every item, on all cores of one machine or of many, with an outcome for every one of them - also
when a worker dies.

Workers return ``Outcome`` and never raise; the caller, one process, writes them down as they come. Every worker leaves
a note of what it works on, so that a killed one (out of memory, a crash in a decoder) is known by what it was at.

One machine     joblib's loky gives the whole run up when a worker dies: the noted items run again alone, each in a
                fresh process, everything else goes on.
Many machines   ``on_cluster``: a Dask scheduler hands the items of a dead worker to another one, which finds the note
                and does not begin. Such items run again when all others are done, and once more alone.

An item that kills its worker alone as well gets the outcome ``WorkerDied``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from .errors import DataError, ItemError, Retryable, ToolMissing, UsageError, WorkerDied
from .journal import Outcome

if TYPE_CHECKING:
    import distributed

Job = TypeVar("Job")

MOST_IDLE_DEATHS = 3  # workers that die before they have begun on anything: the machine is at fault, not a file
IN_FLIGHT_A_THREAD, LEAST_IN_FLIGHT = 4, 64  # items that the scheduler knows at a time
CONNECT_S = 10.0
LOOK_AGAIN_S = 30.0
_GONE = "the Dask scheduler has gone; what is finished stays: start it and type the same command again"
_client: ContextVar[distributed.Client | None] = ContextVar("client", default=None)
_log = logging.getLogger(__name__)


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

    ``name(job)`` is the item's id; ``notes`` an empty folder that this run may write into. Inside ``on_cluster`` its
    workers do the work and ``num_jobs`` does not count.
    """
    waiting = {name(job): job for job in jobs}
    client = _client.get()
    if client is not None:
        yield from _on_dask(client, work, waiting, stage, notes)
        return
    idle_deaths = 0
    while waiting:
        try:
            for outcome in _parallel(work, waiting.items(), stage, num_jobs, notes):
                del waiting[outcome.id]
                idle_deaths = 0
                yield outcome
        except TerminatedWorkerError:
            suspects = [item for item in _noted(notes) if item in waiting]
            for item in suspects:
                yield _alone(work, item, waiting.pop(item), stage, notes)
            idle_deaths += not suspects
            if idle_deaths > MOST_IDLE_DEATHS:
                raise


def fresh_workers() -> None:
    """End the idle workers of earlier runs, before a stage that loads large libraries into them.

    joblib remembers how large a worker was after its first item, takes 300 MB more for a leak, and ends it with a
    warning; where warnings are errors, as in tests, that stops its manager and the run waits for ever.
    """
    get_reusable_executor().shutdown(wait=True)


def _parallel(
    work: Callable[[Job], Outcome], items: Iterable[tuple[str, Job]], stage: str, num_jobs: int, notes: Path
) -> Iterator[Outcome]:
    # joblib runs n_jobs=1 inside this process, where a crash in a decoder would end the run: so two workers, one busy.
    parallel = joblib.Parallel(
        n_jobs=max(2, num_jobs),
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=1 if num_jobs == 1 else "2 * n_jobs",
    )
    calls = [joblib.delayed(_child)(os.getpid(), work, job, item, stage, notes) for item, job in items]
    yield from parallel(calls)


def _alone(work: Callable[[Job], Outcome], item: str, job: Job, stage: str, notes: Path) -> Outcome:
    try:
        return next(_parallel(work, [(item, job)], stage, 1, notes))
    except TerminatedWorkerError:
        _noted(notes)
        return _died(item, stage)


def _child(parent: int, work: Callable[[Job], Outcome], job: Job, item: str, stage: str, notes: Path) -> Outcome:
    if os.getppid() != parent:
        os._exit(1)  # the run was killed: whoever runs it again does this item, not both
    return _guarded(work, job, item, stage, notes)


def _guarded(work: Callable[[Job], Outcome], job: Job, item: str, stage: str, notes: Path) -> Outcome:
    """Run in the worker: whatever happens becomes an outcome. The one place that catches everything."""
    note = notes / f"{hashlib.sha256(item.encode()).hexdigest()[:32]}.working"
    start = time.monotonic()
    try:
        with note.open("x") as file:
            file.write(item)
    except FileExistsError:
        return _died(item, stage)
    except OSError as error:
        return Outcome(id=item, stage=stage, status="failed", error=Retryable.__name__, message=str(error))
    try:
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


def _died(item: str, stage: str) -> Outcome:
    message = "the process that worked on it was killed twice (out of memory, or a crash in a decoder)"
    return Outcome(id=item, stage=stage, status="failed", error=WorkerDied.__name__, message=message)


def _noted(notes: Path) -> list[str]:
    """What the dead workers were at; their notes are used up."""
    items = []
    for note in sorted(notes.glob("*.working")):
        items.append(note.read_text())
        note.unlink()
    return items


@contextmanager
def on_cluster(address: str | None) -> Iterator[None]:
    """Inside, ``run`` works on the workers of the Dask scheduler at ``address`` (``tcp://host:8786``); ``None``: here.

    Raises ``ToolMissing`` without Dask, ``UsageError`` when no scheduler or no worker answers.
    """
    if address is None:
        yield
        return
    try:
        import distributed
    except ImportError:
        raise ToolMissing("--cluster needs Dask; type: pip install 'actionkit[cluster]'") from None
    start = f"type: dask scheduler, and on every machine: dask worker {address} --nworkers -1 --nthreads 1"
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address} ({error}); {start}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=LOOK_AGAIN_S)
        except TimeoutError:
            raise UsageError(f"the scheduler at {address} has no worker; {start}") from None
        token = _client.set(client)
        try:
            yield
        finally:
            _client.reset(token)


@contextmanager
def here() -> Iterator[None]:
    """Inside, ``run`` works on this machine, also within ``on_cluster``: downloads share one line and one pace."""
    token = _client.set(None)
    try:
        yield
    finally:
        _client.reset(token)


def num_at_once(num_jobs: int) -> int:
    """How many items are worked on at the same time."""
    client = _client.get()
    return max(1, num_jobs if client is None else _num_threads(client))


def _on_dask(
    client: distributed.Client, work: Callable[[Job], Outcome], waiting: dict[str, Job], stage: str, notes: Path
) -> Iterator[Outcome]:
    if waiting:
        _check_workers(client, notes)
    for alone in (False, False, True):
        died = []
        for outcome in _submitted(client, work, waiting, stage, notes, alone):
            if outcome.error == WorkerDied.__name__ and not alone:
                died.append(outcome.id)
            else:
                yield outcome
        _noted(notes)
        waiting = {item: waiting[item] for item in died}


def _submitted(
    client: distributed.Client, work: Callable[[Job], Outcome], items: dict[str, Job], stage: str, notes: Path,
    alone: bool,
) -> Iterator[Outcome]:  # fmt: skip
    """One outcome for each of ``items``; ``WorkerDied`` for those at which a worker died."""
    from distributed.scheduler import KilledWorker

    done: queue.Queue[distributed.Future] = queue.Queue()
    rest = iter(items.items())
    flying: dict[str, str] = {}  # key of the future -> item
    futures = {}
    num_threads, counted = _num_threads(client), time.monotonic()
    while True:
        if time.monotonic() - counted > LOOK_AGAIN_S:  # workers come and go
            num_threads, counted = _num_threads(client), time.monotonic()
        at_once = 1 if alone else max(LEAST_IN_FLIGHT, IN_FLIGHT_A_THREAD * num_threads)
        for item, job in islice(rest, max(0, at_once - len(flying))):
            future = client.submit(_guarded, work, job, item, stage, notes, pure=False)
            flying[future.key], futures[future.key] = item, future
            future.add_done_callback(done.put)
        if not flying:
            return
        for future in _next_ones(client, done):
            if future.status in ("pending", "lost"):  # its worker died with the outcome: another one works on it
                future.add_done_callback(done.put)
                continue
            item = flying.pop(future.key)
            del futures[future.key]
            if future.status == "finished":
                yield future.result()
            elif future.status == "error" and isinstance(future.exception(), KilledWorker):
                yield _died(item, stage)
            elif future.status == "error":
                raise DataError(f"{item}: the workers cannot run it: {future.exception()!r}")
            else:
                raise DataError(_GONE)


def _next_ones(client: distributed.Client, done: queue.Queue[distributed.Future]) -> list[distributed.Future]:
    """All futures that are done, at least one; says so while there is nobody to do them."""
    while True:
        try:
            futures = [done.get(timeout=LOOK_AGAIN_S)]
            break
        except queue.Empty:
            if not _num_threads(client):
                _log.warning("no worker is left; waiting for one: dask worker %s", client.scheduler.address)
    while not done.empty():
        futures.append(done.get())
    return futures


def _num_threads(client: distributed.Client) -> int:
    try:
        if client.status == "running":
            return int(sum(client.nthreads().values()))
    except OSError:
        pass
    raise DataError(_GONE)


def _check_workers(client: distributed.Client, notes: Path) -> None:
    """Every worker must see this run's folder under the same path, with the same tools: else their files are others."""
    token = notes / "is-it-here"
    token.write_text(str(os.getpid()))
    here = _tools()
    install = "install actionkit there, with the versions of constraints.txt, and start it from that environment"
    try:  # Dask's scheduler unpacks what it passes on
        client.run_on_scheduler(_tools)
    except Exception as error:
        raise UsageError(
            f"the scheduler at {client.scheduler.address} cannot load our code ({error}); {install}"
        ) from None
    for worker, found in client.run(_look_around, token, on_error="return").items():
        if isinstance(found, BaseException):
            raise UsageError(f"worker {worker} cannot load our code ({found}); {install}")
        if found is None:
            raise UsageError(
                f"worker {worker} does not see {notes.parent}: the data root must be a folder that all machines share, "
                f"under the same path; type --data-root with such a folder"
            )
        if found != here:
            differing = ", ".join(
                f"{name} {found[name]} (here {here[name]})" for name in here if found[name] != here[name]
            )
            raise UsageError(
                f"worker {worker} has other tools, its files would differ: {differing}; install the same there"
            )
    token.unlink()


def _look_around(token: Path) -> dict[str, str] | None:
    """In a worker: its tools; ``None`` when it does not see the file."""
    return _tools() if token.is_file() else None


def _tools() -> dict[str, Any]:
    import av

    from . import __version__, encode

    return {"actionkit": __version__, "ffmpeg": encode.encoder_name(), "pyav": av.__version__}
