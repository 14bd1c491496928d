"""The one door through which all workers ask a site that counts: paced, closed for everybody when it asks for a pause.

The state is a small file beside the videos, so processes and later runs share it: a pause survives a restart.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import files
from ..errors import Retryable

LOOK_AGAIN_S = 5.0


@dataclass(slots=True, kw_only=True)
class State:
    """``not_before``: when the next one may ask (seconds since 1970). ``stopped``: why nobody may in this run."""

    not_before: float = 0.0
    paused_at: float = 0.0
    num_pauses: int = 0
    num_setup_errors: int = 0
    stopped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    folder: Path
    pace_s: float
    most_pauses: int
    most_setup_errors: int
    sleep: Callable[[float], None] = time.sleep

    def open(self, longest_pause_s: float) -> None:
        """Begin a run: what stopped the last one is forgotten, a pause that the site asked for is not."""
        with self._state() as state:
            not_before = min(state.not_before, time.time() + longest_pause_s)
            state.not_before, state.stopped, state.num_pauses, state.num_setup_errors = not_before, "", 0, 0

    def enter(self) -> float:
        """Wait for our turn; returns when it came. Raises ``Retryable`` when the run was stopped."""
        while True:
            with self._state() as state:
                if state.stopped:
                    raise Retryable(f"not asked for: {state.stopped}")
                now = time.time()
                wait_s = state.not_before - now
                if wait_s <= 0:
                    state.not_before = now + self.pace_s
                    return now
            self.sleep(min(wait_s, LOOK_AGAIN_S))

    def pause(self, entered: float, pause_s: float, why: str) -> None:
        """The site wants a pause: nobody enters before it is over. Of several who hear it at once one counts."""
        with self._state() as state:
            if entered < state.paused_at:
                return
            now = time.time()
            state.num_pauses += 1
            if state.num_pauses > self.most_pauses:
                state.stopped = f"{why}, {state.num_pauses} times in a row; type the command again in a few hours"
                return
            state.paused_at, state.not_before = now, now + pause_s
        until = time.strftime("%H:%M", time.localtime(now + pause_s))
        print(f"note: {why}; everybody waits until {until}", file=sys.stderr, flush=True)

    def worked(self) -> None:
        with self._state() as state:
            state.num_pauses = state.num_setup_errors = 0

    def setup_error(self, why: str) -> None:
        with self._state() as state:
            state.num_setup_errors += 1
            if state.num_setup_errors >= self.most_setup_errors:
                state.stopped = why

    def stop(self, why: str) -> None:
        with self._state() as state:
            state.stopped = why

    def stopped(self) -> str:
        with self._state() as state:
            return state.stopped

    @contextmanager
    def _state(self) -> Iterator[State]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "gate.json"
        with (self.folder / "gate.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                before = State(**json.loads(path.read_text()))
            except (FileNotFoundError, ValueError, TypeError):
                before = State()
            state = State(**asdict(before))
            try:
                yield state
            finally:
                if state != before:
                    files.write_text(path, json.dumps(asdict(state)))
