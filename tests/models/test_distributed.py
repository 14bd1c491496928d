"""Several processes: the same steps as one with their batches together, and they go on after one was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from datakit.errors import UsageError
from models.training import loop
from tests.models.train_worker import HOW, MemoryClips, small

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


def run(out: Path, wanted: dict[str, Any], *, processes: int = 1, restarts: int = 0) -> None:
    out.mkdir(parents=True, exist_ok=True)
    program = [str(HERE / "train_worker.py"), str(out), json.dumps(wanted)]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        program = [*torchrun, f"--max-restarts={restarts}", *program]
    done = subprocess.run(
        [sys.executable, *program], check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


def logged(out: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "step" in line]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return models.load(out / "ckpt.pth").body.state_dict()


@pytest.mark.parametrize(
    "clips", [13, pytest.param(20, marks=pytest.mark.slow)], ids=["uneven shares", "whole batches"]
)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, clips: int) -> None:
    run(tmp_path / "one", {"batch": 8, "clips": clips})
    run(tmp_path / "two", {"batch": 4, "clips": clips}, processes=2)
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert [(step["clips"], step["lr"]) for step in one] == [(step["clips"], step["lr"]) for step in two]
    assert len(one) == 2 * -(-clips // 8)
    assert [step["loss"] for step in one] == pytest.approx([step["loss"] for step in two], rel=1e-5)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in ours)


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_goes_on_from_the_last_epoch(tmp_path: Path) -> None:
    whole = {"batch": 3, "clips": 12, "epochs": 3, "freeze_bn": False}
    run(tmp_path / "whole", whole, processes=2)
    run(tmp_path / "cut", {**whole, "die_at": 3}, processes=2, restarts=1)
    assert (tmp_path / "cut" / "died").exists()
    steps = [[(step["step"], step["loss"]) for step in logged(tmp_path / name)] for name in ("whole", "cut")]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 6
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_synchronised_batch_norm_is_refused_on_a_cpu(tmp_path: Path) -> None:
    steps = loop.train(
        small(), MemoryClips(4), HOW, out=tmp_path, arguments={}, device=torch.device("cpu"), sync_bn=True
    )
    with pytest.raises(UsageError, match="NCCL only, not for gloo"):
        next(steps)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="synchronised batch norm needs a GPU")
def test_synchronised_batch_norm_is_put_in_on_a_gpu() -> None:
    net = small()
    keys = [*net.body.state_dict()]
    loop.prepare(net, torch.device("cuda"), sync_bn=True, split_bn=False)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in net.modules())
    assert [*net.body.state_dict()] == keys
