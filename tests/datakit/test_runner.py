from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from datakit import runner
from datakit.errors import Unreadable
from datakit.journal import Journal, Outcome


def work(job: str) -> Outcome:
    if job == "killer":
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "broken":
        raise Unreadable("no picture")
    if job == "full disk":
        raise OSError(28, "No space left on device")
    if job == "mistake":
        raise ZeroDivisionError
    return Outcome(id=job, stage="s", status="ok")


def test_every_item_has_an_outcome_also_when_a_worker_is_killed(tmp_path: Path) -> None:
    jobs = [f"good {number}" for number in range(20)]
    jobs[3:3] = ["killer"]
    jobs[10:10] = ["broken", "full disk", "mistake"]
    outcomes = list(runner.run(work, jobs, name=str, stage="s", num_jobs=2, notes=tmp_path))
    assert sorted(outcome.id for outcome in outcomes) == sorted(jobs)
    errors = {outcome.id: outcome.error for outcome in outcomes if outcome.status != "ok"}
    assert errors == {"killer": "WorkerDied", "broken": "Unreadable", "full disk": "Retryable", "mistake": "Bug"}
    assert "ZeroDivisionError" in next(outcome.message for outcome in outcomes if outcome.id == "mistake")
    assert not list(tmp_path.iterdir())


def test_journal_counts_tries_and_keeps_the_last_outcome(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        journal.add([Outcome(id="a", stage="s", status="failed", error="Retryable", message="429")])
        journal.add(
            [Outcome(id="a", stage="s", status="ok", data={"frames": 3}), Outcome(id="b", stage="s", status="ok")]
        )
    with Journal.read(tmp_path / "journal.sqlite") as journal:
        assert journal.outcomes("s")["a"].data == {"frames": 3}
        assert {id_: count for id_, (count, _) in journal.tries("s").items()} == {"a": 2, "b": 1}
