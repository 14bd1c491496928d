from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datakit import runner
from datakit.__main__ import main
from datakit.annotations import ClipSpec
from datakit.errors import Unreadable
from datakit.journal import Journal, Outcome
from datakit.sources import fetch_stage


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


def test_workers_take_no_new_item_when_the_run_is_killed(tmp_path: Path) -> None:
    """Only the main process dies: what its workers had queued must not be done behind the back of the next run."""
    code = (
        "import pathlib, sys, time\n"
        "from datakit import runner\n"
        "from datakit.journal import Outcome\n"
        "def work(job):\n"
        "    pathlib.Path(sys.argv[1], job).touch(); time.sleep(0.5)\n"
        "    return Outcome(id=job, stage='s', status='ok')\n"
        "notes = pathlib.Path(sys.argv[2])\n"
        "list(runner.run(work, [f'{n}' for n in range(40)], name=str, stage='s', num_jobs=2, notes=notes))\n"
    )
    done, notes = tmp_path / "done", tmp_path / "notes"
    done.mkdir()
    notes.mkdir()
    program = tmp_path / "program.py"
    program.write_text(code)
    process = subprocess.Popen(
        [sys.executable, program, done, notes],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    while not list(done.iterdir()):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(0.2)
    begun = len(list(done.iterdir()))
    time.sleep(1.5)
    assert len(list(done.iterdir())) == begun


def test_status_before_anything_is_encoded_counts_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "a.mp4"
    there.touch()
    journal_file = tmp_path / "data/mine/journal.sqlite"
    words = ["status", "mine", "--data-root", str(tmp_path / "data")]
    with Journal.open(journal_file):
        pass
    assert main(words) == 0
    assert "mine: nothing was asked for yet; type: python -m datakit prepare mine" in capsys.readouterr().out
    with Journal.open(journal_file) as journal:
        clips = [
            ClipSpec(id=name, video=name, split="val", label=None, source=tmp_path / f"{name}.mp4") for name in "abc"
        ]
        journal.replace_clips({"val"}, clips)
        journal.set_setting("sources", "youtube")
        journal.add([Outcome(id="b", stage=fetch_stage("youtube"), status="failed", error="Gone", message="private")])
    assert main(words) == 0
    assert "mine val: 3 asked for, files: 1 ok, 1 gone, 1 missing" in capsys.readouterr().out
