from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import models
from datakit.errors import UsageError
from models import zoo
from models.checkpoints.mmaction2 import adapt

State = Callable[[str], dict[str, torch.Tensor]]


@pytest.mark.parametrize("name", models.list())
def test_every_named_network_has_a_spec_that_survives_json(name: str) -> None:
    spec = zoo.spec(name, num_classes=5, classes=tuple("abcde"))
    assert zoo.ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert zoo.shapes(zoo.hollow(spec))["head.weight"][0] == 5


@pytest.mark.parametrize("name", ["slowonly_r50_4x16", "slowonly_r50_flow_16x4", "slowonly_r101_8x8"])
def test_keys_and_shapes_are_those_of_the_original(name: str, golden_state: State) -> None:
    adapted = {key: tuple(value.shape) for key, value in adapt(golden_state(name)).items()}
    assert adapted == zoo.shapes(zoo.hollow(zoo.spec(name, num_classes=400)))


def test_list_takes_patterns() -> None:
    assert models.list("slowonly_tiny*") == ["slowonly_tiny", "slowonly_tiny_diff", "slowonly_tiny_flow"]
    assert models.list("nothing") == []


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="slowonly_r50_4x16"):
        models.create("slowonly_r50_4x15", num_classes=2)
    with pytest.raises(UsageError, match="type 'base_channels'"):
        models.create("slowonly_tiny", num_classes=2, base_channel=4)


def test_the_seed_decides_the_weights_and_dropout_is_for_training() -> None:
    first, second = (torch.manual_seed(1) and models.create("slowonly_tiny", num_classes=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    net = models.create("slowonly_tiny", num_classes=3, dropout_ratio=0.9)
    x = torch.randn(4, 3, 8, 32, 32)
    with torch.no_grad():
        assert not torch.equal(net(x), net(x))
        net.eval()
        assert torch.equal(net(x), net(x))


def test_normalise_rgb_and_differences() -> None:
    rgb = models.create("slowonly_tiny", num_classes=2, mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0))
    x = torch.full((1, 3, 2, 4, 4), 50.0)
    assert rgb.normalise(x)[0, :, 0, 0, 0].tolist() == [40.0, 15.0, 5.0]
    assert rgb.spec.frame_offsets == (0,)
    diff = models.create("slowonly_tiny_diff", num_classes=2, std=(2.0, 2.0, 2.0))
    frames = torch.tensor([1.0, 5.0, 7.0, 3.0]).view(1, 1, 4, 1, 1).expand(1, 3, 4, 2, 2)  # i0, i0+1, i1, i1+1
    assert diff.normalise(frames)[0, 0, :, 0, 0].tolist() == [2.0, -2.0]
    assert diff.spec.frame_offsets == (0, 1)


def test_importing_models_imports_no_torch() -> None:
    code = "import sys, models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", models.list("*_tiny*"))
def test_tiny_networks_run_and_have_gradients_everywhere(name: str) -> None:
    has_residual = "zero_init_residual" in zoo.arguments_of(zoo.row_of(name)["family"])
    net = models.create(name, num_classes=3, **({"zero_init_residual": False} if has_residual else {}))
    spec = net.spec
    channels = zoo.CHANNELS[spec.input]
    logits = net(torch.randn(2, channels, spec.num_segments or spec.clip_len, 32, 32))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
