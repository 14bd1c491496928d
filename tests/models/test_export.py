"""torch.export takes every network whole: no step of it depends on what its input holds."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import models
from models import zoo


def input_of(spec: models.ModelSpec, size: int) -> torch.Tensor:
    num_frames = spec.num_segments or spec.clip_len
    return torch.randn(1, spec.network["in_channels"], num_frames, size, size)


def exported(body: torch.nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own parts
        return torch.export.export(body, (x,))


def kinds() -> list[Any]:
    """One name of each network; those of more than tiny size, but for the torchvision's, are slow."""
    found: dict[str, Any] = {}
    for name in models.list():
        spec = zoo.spec(name, num_classes=5)
        quick = "tiny" in name
        key = f"{spec.family} {sorted(spec.network.items())} {spec.clip_len if spec.family == 'slowfast' else ''}"
        found.setdefault(key, pytest.param(name, marks=[] if quick else pytest.mark.slow))
    return [*found.values()]


@pytest.mark.parametrize("name", kinds())
def test_export(name: str) -> None:
    torch.manual_seed(0)
    spec = zoo.spec(name, num_classes=5)
    body = zoo.build(spec).body.eval()
    x = input_of(spec, 224 if name == "s3d" else 64)
    program = exported(body, x)
    assert program.example_inputs is not None
    if "tiny" in name:
        with torch.inference_mode():
            assert torch.allclose(program.module()(x), body(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_pool", ["logits", "softmax"])
@pytest.mark.parametrize("name", ["slowonly_tiny", "slowfast_tiny", "csn_tiny"])
def test_export_with_the_rules_of_other_programs(name: str, head_pool: str) -> None:
    arguments = {"slow_frames": "spread", "lateral_norm": True} if name == "slowfast_tiny" else {}
    net = models.create(name, num_classes=5, head_pool=head_pool, train_crop_px=32, **arguments).eval()
    x = input_of(net.spec, 64)
    with torch.inference_mode():
        assert torch.allclose(exported(net.body, x).module()(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.list("*_tiny*"))
def test_onnx(name: str, tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net = models.create(name, num_classes=5).eval()
    x = input_of(net.spec, 64)
    path = tmp_path / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.body, (x,), str(path), dynamo=True, verbose=False)
    onnx.checker.check_model(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(logits), net(x), rtol=1e-3, atol=1e-4)
