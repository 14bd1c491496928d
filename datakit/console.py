"""What every command line does the same way: exit codes, progress, results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from .errors import EXIT_INTERRUPTED, DataError, KitError

T = TypeVar("T")
LINE_EVERY_S = 30.0
_DISK_AT_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Call ``main(None)`` and leave the process with the exit code of DESIGN section 10.

    A ``KitError`` is one line on stderr and its own exit code; a traceback is kept for our own mistakes (1).
    """
    # Before anything loads OpenMP: its threads would spin while they wait and take the cores from the decoders
    # (measured on two busy cores: four times the CPU and three times the time for a test of a small network).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # joblib's, when a run stops in the middle (disk full, Ctrl-C): the rest was not done, as we say ourselves.
    warnings.filterwarnings("ignore", message=".*tasks which were still being processed")
    try:
        code = main(None)
        sys.stdout.flush()
    except KitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in _DISK_AT_FAULT:
            raise
        print(f"{error}; mend that and run the same command again: what is finished stays", file=sys.stderr)
        code = DataError.exit_code
    sys.exit(code)


def print_json(kind: str, payload: dict[str, Any]) -> None:
    """One object on stdout, with the schema's name and version in front."""
    print(json.dumps({"schema": f"{kind}/1", **payload}, indent=1, sort_keys=False, allow_nan=False))


def progress(items: Iterable[T], *, total: int, what: str, note: Callable[[], str] = str) -> Iterator[T]:
    """Pass ``items`` on and show on stderr how far they are: a bar on a terminal, else a line every 30 s.

    ``note`` is asked for a short text to stand behind the count ("3 failed").
    """
    if total and sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit="", file=sys.stderr, leave=False) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(note(), refresh=False)
                bar.update(1)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, about {duration(left)} left {note()}".rstrip(), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``, ``5 h 10 min``: never more than two units."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
