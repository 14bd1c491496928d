"""A fetch that is killed again and again: every clip comes, and hardly a byte comes twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datakit.sources import fetch_stage
from tests.datakit.server import Fault, serving
from tests.datakit.test_sources import Site, outcomes, tar

NUM_ARCHIVES, CLIPS_EACH, PAD_BYTES = 8, 40, 40_000
# What was on its way when a process died: the buffers of the sockets of two connections.
IN_FLIGHT_BYTES = 2 * 200_000


@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_fetch(tmp_path: Path, num_kills: int) -> None:
    chance = random.Random(num_kills)
    clips = [b"\0\0\0\x18ftypmp42" + chance.randbytes(PAD_BYTES) for _ in range(NUM_ARCHIVES * CLIPS_EACH)]
    site = Site(tmp_path / "www", clips)
    paths = []
    for number in range(NUM_ARCHIVES):
        site.publish(f"part_{number}.tar.gz", tar(site.ask(CLIPS_EACH)))
        paths.append(f"/kinetics/400/val/part_{number}.tar.gz")
    size = sum((tmp_path / "www" / path.lstrip("/")).stat().st_size for path in paths)
    with serving(tmp_path / "www") as server:
        for path in paths[::2]:
            server.faults[path] = [Fault(times=2, cut_after=300_000), Fault(times=1, status=500)]
        command = [sys.executable, "-m", "datakit", "fetch", "k400", "--split", "val", "--data-root",
                   str(tmp_path / "data"), "--mirror", server.url, "--jobs", "2", "--json"]  # fmt: skip
        if num_kills > 2:
            command.append("--no-keep-archives")
        server.bytes_per_s = 2_500_000
        for kill in range(num_kills):
            run = subprocess.Popen(
                command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            goal = sum(server.sent[path] for path in paths) + size // (num_kills + 3)
            while sum(server.sent[path] for path in paths) < goal:
                assert run.poll() is None
                time.sleep(0.005)
            # all of it at once, or only the one that holds the journal: its workers die when they see it
            os.killpg(run.pid, signal.SIGKILL) if kill % 2 == 0 else run.kill()
            run.wait()
        server.bytes_per_s = 0
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sent = sum(server.sent[path] for path in paths)
    assert json.loads(done.stdout)["clips"] == {"ok": NUM_ARCHIVES * CLIPS_EACH}
    again = sent - size
    print(f"{num_kills} kills: {size} bytes, {again} again, {again / num_kills:.0f} a kill")
    assert again <= num_kills * IN_FLIGHT_BYTES
    rows = outcomes(tmp_path / "data", fetch_stage("cvdf"))
    for name, content in site.content.items():
        assert (tmp_path / "data/k400" / rows[name].data["path"]).read_bytes() == content
    left = {path.suffix for path in (tmp_path / "data/k400/raw").rglob("*") if path.is_file()}
    assert left == {".csv", ".mp4", *([] if num_kills > 2 else [".gz"])}
