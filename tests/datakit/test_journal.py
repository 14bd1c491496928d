from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datakit import disk
from datakit.annotations import ClipSpec
from datakit.errors import UsageError
from datakit.journal import Journal, Outcome

MOUNTS = r"""/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /data nfs4 rw,vers=4.2 0 0
/dev/sdb1 /data/fast xfs rw 0 0
box: /mnt/my\040share fuse.sshfs rw 0 0
tmpfs /tmp tmpfs rw 0 0
overlay /tmp overlay rw 0 0
short
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [("/home/me", "ext4", False), ("/data/k400", "nfs4", True), ("/data/fast/k400", "xfs", False),
     ("/database", "ext4", False), ("/mnt/my share/k400", "fuse.sshfs", True), ("/tmp/x", "overlay", False)],
)  # fmt: skip
def test_the_longest_and_last_mount_point_counts(path: str, kind: str, network: bool) -> None:
    assert disk.of_mounts(Path(path), MOUNTS) == kind
    assert disk.is_network(kind) == network


def test_this_disk_has_a_type_also_where_the_folder_is_not_there_yet(tmp_path: Path) -> None:
    assert disk.file_system(tmp_path / "not/there/yet") == disk.file_system(tmp_path) != ""
    assert disk.free_bytes(tmp_path / "not/there/yet") > 0


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that claims to be on NFS, with this machine's own disk beside it."""
    nfs = tmp_path / "nfs"
    monkeypatch.setattr(disk, "file_system", lambda path: "nfs4" if path.is_relative_to(nfs) else "ext4")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return nfs / "mine" / "journal.sqlite"


def add(path: Path, item: str) -> None:
    with Journal.open(path) as journal:
        journal.add([Outcome(id=item, stage="s", status="ok")])


def items(path: Path) -> list[str]:
    with Journal.read(path) as journal:
        return sorted(journal.outcomes("s"))


def test_a_journal_on_a_network_disk_is_worked_on_elsewhere(
    on_nfs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Journal.open(on_nfs) as journal:
        journal.replace_clips({"val"}, [ClipSpec(id="a", video="a", split="val", label=None)])
        journal.add([Outcome(id="a", stage="s", status="ok")])
        assert on_nfs.is_file()  # the folder says what it is
        assert items(on_nfs) == ["a"]  # what another command on this machine sees now
        assert not list(on_nfs.parent.glob("*-wal"))  # nothing that needs shared memory is there
        assert list((tmp_path / "state/actionkit").glob("*-wal"))
    assert "is on nfs4, where SQLite is not safe: until this command ends, the journal is kept in" in caplog.text
    assert str(tmp_path / "state") in caplog.text
    assert {path.name for path in on_nfs.parent.iterdir()} == {"journal.sqlite", "journal.lock"}
    for left in (tmp_path / "state/actionkit").iterdir():
        left.unlink()  # another machine has no copy of its own
    assert items(on_nfs) == ["a"]
    add(on_nfs, "b")
    assert items(on_nfs) == ["a", "b"]


def test_after_a_kill_the_own_copy_goes_on_and_another_machine_wins(on_nfs: Path, tmp_path: Path) -> None:
    add(on_nfs, "a")
    code = (
        "import os, pathlib, signal, sys\n"
        "from datakit import disk\n"
        "from datakit.journal import Journal, Outcome\n"
        "disk.file_system = lambda path: 'nfs4' if 'nfs' in path.parts else 'ext4'\n"
        "with Journal.open(pathlib.Path(sys.argv[1])) as journal:\n"
        "    journal.add([Outcome(id='b', stage='s', status='ok')])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    checkout = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code, str(on_nfs)], env={**os.environ, "PYTHONPATH": checkout})
    assert done.returncode == -signal.SIGKILL
    assert items(on_nfs) == ["a", "b"]
    add(on_nfs, "c")
    assert items(on_nfs) == ["a", "b", "c"]
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.rename(elsewhere)  # now another machine works
    add(on_nfs, "d")
    add(on_nfs, "e")
    (tmp_path / "state").rename(tmp_path / "other-state")
    elsewhere.rename(state)  # and this one again
    assert items(on_nfs) == ["a", "b", "c", "d", "e"]
    add(on_nfs, "f")
    assert items(on_nfs) == ["a", "b", "c", "d", "e", "f"]


def test_a_set_that_was_removed_does_not_come_back(on_nfs: Path) -> None:
    add(on_nfs, "a")
    on_nfs.unlink()
    add(on_nfs, "b")
    assert items(on_nfs) == ["b"]


def test_without_an_own_disk_it_is_refused(on_nfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda path: "nfs4")
    said = r"network disk, where SQLite is not safe.*set XDG_STATE_HOME"
    with pytest.raises(UsageError, match=said), Journal.open(on_nfs):
        pass


def test_many_rows_are_quick(tmp_path: Path) -> None:
    """A fall to a hundredth of the measured speed (docs/scale.md) would be seen; the machine's mood would not."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        import journal as benchmark
    finally:
        sys.path.pop(0)
    figures = benchmark.measure(tmp_path / "journal.sqlite", num_clips=2000, num_stages=4)
    assert figures["rows"] == 8000
    assert figures["rows_a_second"] > 1000
    assert figures["bytes_a_row"] < 1200
    assert figures["open_s"] < 1
