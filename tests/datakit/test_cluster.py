"""A Dask cluster of two real worker processes on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from datakit import manifest, runner
from datakit.__main__ import main
from datakit.errors import DataError, UsageError
from datakit.journal import Outcome

if os.environ.get("REQUIRE_ALL"):
    import distributed
else:
    distributed = pytest.importorskip("distributed")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers know nothing of the tests


def work(job: tuple[str, Path]) -> Outcome:
    item, folder = job
    with (folder / f"{item}.begun").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if item == "killer":
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    if item.startswith("slow"):
        time.sleep(0.5)
    if item == "mistake":
        raise ZeroDivisionError
    return Outcome(id=item, stage="s", status="ok", data={"pid": os.getpid()})


def local_cluster(num_workers: int) -> Any:
    return distributed.LocalCluster(
        n_workers=num_workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster(2) as cluster:
        yield cluster


def folders(tmp_path: Path) -> tuple[Path, Path]:
    begun, notes = tmp_path / "begun", tmp_path / "notes"
    begun.mkdir()
    notes.mkdir()
    return begun, notes


def run(cluster: Any, items: list[str], begun: Path, notes: Path) -> list[Outcome]:
    jobs = [(item, begun) for item in items]
    with runner.on_cluster(cluster.scheduler_address):
        return list(runner.run(work, jobs, name=lambda job: job[0], stage="s", num_jobs=1, notes=notes))


def test_a_clip_that_kills_its_worker_takes_nothing_with_it(cluster: Any, tmp_path: Path) -> None:
    begun, notes = folders(tmp_path)
    items = [f"good {number}" for number in range(20)]
    items[3:3] = ["killer"]
    items[9:9] = ["mistake"]
    outcomes = run(cluster, items, begun, notes)
    assert sorted(outcome.id for outcome in outcomes) == sorted(items)
    assert {o.id: o.error for o in outcomes if o.status != "ok"} == {"killer": "WorkerDied", "mistake": "Bug"}
    assert len((begun / "killer.begun").read_text().split()) == 3  # not more workers than that
    assert not list(notes.iterdir())


def test_a_worker_that_is_killed_from_outside_loses_no_clip(cluster: Any, tmp_path: Path) -> None:
    begun, notes = folders(tmp_path)
    items = [f"slow {number}" for number in range(12)]
    outcomes = []
    with runner.on_cluster(cluster.scheduler_address):
        jobs = [(item, begun) for item in items]
        for outcome in runner.run(work, jobs, name=lambda job: job[0], stage="s", num_jobs=1, notes=notes):
            if not outcomes:
                os.kill(outcome.data["pid"], signal.SIGKILL)
            outcomes.append(outcome)
    assert sorted(outcome.id for outcome in outcomes) == sorted(items)
    assert all(outcome.status == "ok" for outcome in outcomes)


def test_outcomes_that_die_with_their_worker_are_made_again(cluster: Any, tmp_path: Path) -> None:
    begun, notes = folders(tmp_path)
    items = [f"good {number}" for number in range(20)]
    with runner.on_cluster(cluster.scheduler_address):
        jobs = [(item, begun) for item in items]
        coming = runner.run(work, jobs, name=lambda job: job[0], stage="s", num_jobs=1, notes=notes)
        outcomes = [next(coming)]
        while len(list(begun.iterdir())) < len(items):  # all are done before a second one is asked for
            time.sleep(0.01)
        time.sleep(0.5)
        for pid in {int(path.read_text()) for path in begun.iterdir()}:
            os.kill(pid, signal.SIGKILL)
        time.sleep(2)
        outcomes += coming
    assert sorted(outcome.id for outcome in outcomes) == sorted(items)
    assert all(outcome.status == "ok" for outcome in outcomes)


def test_the_same_set_from_a_cluster_and_from_one_machine(
    cluster: Any, tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "mine", "--raw", str(class_folders), "--variant", "256p", "--variant", "340x256"]
    assert main([*words, "--data-root", str(tmp_path / "one"), "--jobs", "2"]) == 5
    assert main([*words, "--data-root", str(tmp_path / "many"), "--cluster", cluster.scheduler_address]) == 5

    def files(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*")
                if p.is_file() and not p.name.startswith("journal.")}  # fmt: skip

    one, many = files(tmp_path / "one"), files(tmp_path / "many")
    assert one == many
    assert len(manifest.read(tmp_path / "many/mine/256p").clips) == 6
    main(["verify", "mine", "--data-root", str(tmp_path / "many"), "--cluster", cluster.scheduler_address])
    assert "5 files decoded, 5 as recorded" in capsys.readouterr().out


def test_workers_with_another_disk_or_other_tools_are_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, notes = folders(tmp_path)
    monkeypatch.setattr(runner, "_look_around", lambda token: None)
    with pytest.raises(UsageError, match=r"does not see .*a folder that all machines share"):
        run(cluster, ["good"], begun, notes)
    monkeypatch.setattr(runner, "_look_around", lambda token: {**runner._tools(), "pyav": "1.0"})
    with pytest.raises(UsageError, match=r"other tools, its files would differ: pyav 1.0"):
        run(cluster, ["good"], begun, notes)


def test_workers_that_lack_our_code_are_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, notes = folders(tmp_path)

    def lacks_it(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'datakit'")

    monkeypatch.setattr(runner, "_look_around", lacks_it)
    with pytest.raises(UsageError, match=r"worker tcp.* cannot load our code \(No module named .*install actionkit"):
        run(cluster, ["good"], begun, notes)
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
        monkeypatch.setattr(client, "run_on_scheduler", lacks_it)
        with pytest.raises(UsageError, match=r"scheduler at tcp.* cannot load our code"):
            runner._check_workers(client, notes)


def test_without_a_scheduler_or_workers_it_says_what_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CONNECT_S", 1.0)
    with pytest.raises(UsageError, match=r"no Dask scheduler answers at .*dask worker"), \
            runner.on_cluster("tcp://127.0.0.1:9"):  # fmt: skip
        pass
    monkeypatch.setattr(runner, "LOOK_AGAIN_S", 0.5)
    with local_cluster(0) as empty, \
            pytest.raises(UsageError, match="has no worker; type: dask scheduler"), \
            runner.on_cluster(empty.scheduler_address):  # fmt: skip
        pass


def test_a_scheduler_that_goes_ends_the_run_in_words(tmp_path: Path) -> None:
    begun, notes = folders(tmp_path)
    cluster = local_cluster(1)

    def run_until_it_goes() -> None:
        jobs = [(f"slow {number}", begun) for number in range(50)]
        with runner.on_cluster(cluster.scheduler_address):
            for _ in runner.run(work, jobs, name=lambda job: job[0], stage="s", num_jobs=1, notes=notes):
                cluster.close()

    with pytest.raises(DataError, match="scheduler has gone"):
        run_until_it_goes()
