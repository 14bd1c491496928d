"""kill -9 at every rename and every commit of a run, then the same command again: the end must be the same.

The kill is injected from outside: a ``sitecustomize`` on the path of the run (and of its workers) counts renames and
database commits over all its processes and kills them all at the n-th. Nothing in the suite knows of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SITE = """
import os, pathlib, signal, sqlite3
counter, target = os.environ.get("FAULT_COUNTER"), int(os.environ.get("FAULT_AT", "-1"))
def event(what):
    fd = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b".")
    number = os.fstat(fd).st_size
    os.close(fd)
    if number == target:
        os.killpg(0, signal.SIGKILL)
def around(function):
    def wrapped(*args, **kwargs):
        event("before")
        result = function(*args, **kwargs)
        event("after")
        return result
    return wrapped
if counter:
    pathlib.Path.replace = around(pathlib.Path.replace)
    pathlib.Path.rename = around(pathlib.Path.rename)
    class Connection(sqlite3.Connection):
        def __exit__(self, *args):
            event("before commit")
            result = super().__exit__(*args)
            event("after commit")
            return result
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)
"""
CHECKOUT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, root: Path, raw: Path, kill_at: int) -> int:
    """One prepare; killed at the ``kill_at``-th event (0: never). Returns the number of events there were."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    counter = tmp_path / "events"
    counter.unlink(missing_ok=True)
    words = ["prepare", "mine", "--raw", str(raw), "--data-root", str(root), "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "datakit", *words, "--variant", "256p", "--variant", "340x256",
         "--variant", "256p-frames"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{CHECKOUT}", "FAULT_COUNTER": str(counter),
             "FAULT_AT": str(kill_at)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    code = process.wait(timeout=120)
    assert code == (-signal.SIGKILL if kill_at else 5), f"exit code {code}"
    return counter.stat().st_size


def state(root: Path) -> dict[str, bytes]:
    """Everything a user sees: the videos, the manifest, the lists, the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("journal.")
    }


def finished(root: Path) -> dict[Path, int]:
    whole = [path for kind in ("*.mp4", "*.jpg") for path in root.rglob(kind) if ".part" not in str(path)]
    return {path: path.stat().st_ino for path in whole}


def kill_and_go_on(tmp_path: Path, raw: Path, reference: dict[str, bytes], kill_at: int) -> list[str]:
    """What went wrong, in words: empty when the killed and resumed run ends like the whole one."""
    root = tmp_path / f"killed-{kill_at}"
    run(tmp_path, root, raw, kill_at)
    wrong = []
    after_kill = state(root)
    for name, content in after_kill.items():
        if (
            "/.work/" not in f"/{name}"
            and name in reference
            and content != reference[name]
            and name.endswith((".mp4", ".jpg"))
        ):
            wrong.append(f"kill {kill_at}: {name} is half-written")
        if "/.work/" not in f"/{name}" and name not in reference and ".part" not in name:
            wrong.append(f"kill {kill_at}: {name} should not be there")
    before = finished(root)
    run(tmp_path, root, raw, 0)
    if state(root) != reference:
        wrong.append(f"kill {kill_at}: the end differs: {sorted(set(state(root)) ^ set(reference))}")
    wrong += [f"kill {kill_at}: {path} was encoded twice" for path, ino in before.items() if path.stat().st_ino != ino]
    return wrong


@pytest.fixture
def raw_and_reference(tmp_path: Path, make_video) -> tuple[Path, dict[str, bytes], int]:  # type: ignore[no-untyped-def]
    raw = tmp_path / "raw"
    make_video(raw / "x/a.mp4")
    make_video(raw / "y/b.mp4", width=340, height=256, frames=5)  # one encode, two names
    (raw / "y/broken.mp4").write_bytes(b"no video")
    events = run(tmp_path, tmp_path / "whole", raw, 0)
    return raw, state(tmp_path / "whole"), events


def test_killed_at_some_renames_and_commits(tmp_path: Path, raw_and_reference) -> None:  # type: ignore[no-untyped-def]
    raw, reference, events = raw_and_reference
    assert events > 40
    wrong = []
    for kill_at in range(1, events + 1, 17):
        wrong += kill_and_go_on(tmp_path, raw, reference, kill_at)
    assert not wrong


@pytest.mark.slow
def test_killed_at_every_rename_and_commit(tmp_path: Path, raw_and_reference) -> None:  # type: ignore[no-untyped-def]
    raw, reference, events = raw_and_reference
    wrong = []
    for kill_at in range(1, events + 1):
        wrong += kill_and_go_on(tmp_path, raw, reference, kill_at)
    print(f"{events} kills, {len(wrong)} wrong")
    assert not wrong
