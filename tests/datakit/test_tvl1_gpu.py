"""The kernels for GPUs: run by Triton's interpreter, compiled for GPUs that are not here, and run on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from datakit import tvl1

from .test_tvl1 import end_point_error, parameters, scene

triton = pytest.importorskip("triton", reason="torch brings it along for CUDA on Linux")
PAIRS = ((0.0, 1.0), (0.0, 0.0), (1.0, 0.7))  # one stands still


def compared() -> dict[str, Any]:
    """Kernels against torch, under the interpreter: few iterations, for a kernel takes a millisecond a block."""
    from datakit import tvl1_gpu

    first, second = (torch.from_numpy(np.stack([scene(pair[side], 41, 30) for pair in PAIRS])) for side in (0, 1))
    found: dict[str, Any] = {}
    for name in ("opencv", "opencv-cuda"):
        how = replace(parameters(name), scales=2, warps=2, outer=min(2, parameters(name).outer), inner=5, epsilon=0.05)
        flows = {}
        for path, kernels in (("torch", None), ("kernels", tvl1_gpu)):
            use(kernels)
            flows[path] = tvl1.flow(first, second, how)
        alone = tvl1.flow(first[2:], second[2:], how)
        found[name] = {
            "longest": float(flows["torch"].norm(dim=1).max()),
            "apart": float((flows["kernels"] - flows["torch"]).abs().max()),
            "as_alone": torch.equal(alone, flows["kernels"][2:]),
            "still": not bool(flows["kernels"][1].any()),
        }
    picture = torch.randn(2, 2, 17, 23, generator=torch.Generator().manual_seed(0))
    picture[0, 0, :5] = 1.5
    medians = []
    for kernels in (None, tvl1_gpu):
        use(kernels)
        medians.append(tvl1._median_5x5(picture))
    return found | {"median": torch.equal(*medians)}


def use(kernels: ModuleType | None) -> None:
    tvl1._kernels = lambda device_type: kernels  # type: ignore[assignment]


def test_kernels_compute_what_torch_does() -> None:
    code = f"import json; from {__package__} import test_tvl1_gpu as here; print(json.dumps(here.compared()))"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("median")
    assert len(found) == 2
    for numbers in found.values():
        assert numbers["longest"] > 1
        assert numbers["apart"] < 1e-4
        assert numbers["as_alone"]
        assert numbers["still"]


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_kernels_compile(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from datakit import tvl1_gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {
        tvl1_gpu._primal: {"block": tvl1_gpu.BLOCK},
        tvl1_gpu._dual: {"block": tvl1_gpu.BLOCK, "parts": 128, "looks": True, "estimates": True},
        tvl1_gpu._median: dict(zip(("sort", "ranks", "select", "middle"), tvl1_gpu.networks(), strict=True))
        | {"block": tvl1_gpu.MEDIAN_BLOCK},
    }
    scalars = {"height": "i32", "width": "i32", "most": "fp32", "tau": "fp32", "goal": "fp32"}
    for kernel, values in constants.items():
        signature = {name: "constexpr" if name in values else scalars.get(name, "*fp32") for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in values.items()}
        source = ASTSource(kernel, signature, constexprs=places)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32), options=tvl1_gpu.HOW).asm["cubin"]


@pytest.mark.needs_cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="the kernels are interpreted and compiled above without a GPU"
)
@pytest.mark.parametrize("name", ["opencv", "opencv-cuda", "fast"])
def test_flow_on_a_gpu_is_that_of_a_processor(name: str) -> None:
    first, second = (torch.from_numpy(np.stack([scene(pair[side]) for pair in PAIRS])) for side in (0, 1))
    wanted = tvl1.flow(first, second, parameters(name))
    found = tvl1.flow(first.cuda(), second.cuda(), parameters(name)).cpu()
    error = end_point_error(found.permute(0, 2, 3, 1).numpy(), wanted.permute(0, 2, 3, 1).numpy())
    assert error.mean() < 0.02
    assert np.percentile(error, 95) < 0.1
