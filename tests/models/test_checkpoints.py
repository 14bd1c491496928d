"""What a file is, what is refused, and that every key is accounted for. Weights are those of a narrow network."""

from __future__ import annotations

import copy
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from datakit.errors import CheckpointError
from models import checkpoints, zoo
from models.checkpoints import config, identify, mmaction2
from models.nets.resnet3d import ResNet3d

CONFIG_0X = """
model = dict(
    type='Recognizer3D',
    backbone=dict(type='ResNet3dSlowOnly', depth=50, pretrained=None, with_pool1=False, inflate=(0, 0, 1, 1)),
    cls_head=dict(type='I3DHead', num_classes=400))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_bgr=False)
train_pipeline = [
    dict(type='SampleFrames', clip_len=8, frame_interval=4, num_clips=1),
    dict(type='Normalize', **img_norm_cfg)
]
test_pipeline = [
    dict(type='SampleFrames', clip_len=8, frame_interval=5, num_clips=10, test_mode=True),
    dict(type='Normalize', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_bgr=False)
]
"""


def mmaction2_key(key: str) -> str:
    """Ours -> mmaction2's; the inverse of the adapter, written separately."""
    if key.startswith("stem."):
        return "backbone.conv1." + key.removeprefix("stem.")
    if key.startswith("head."):
        return "cls_head.fc_cls." + key.removeprefix("head.")
    stage, rest = key.split(".", 1)
    return f"backbone.layer{int(stage.removeprefix('res')) - 1}.{rest.replace('shortcut', 'downsample')}"


@pytest.fixture(autouse=True)
def narrow_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of the zoo, sixteen times narrower: these tests are about keys and names."""
    table = copy.deepcopy(zoo.table())
    for row in table["networks"].values():
        row["network"]["base_channels"] = 4
    monkeypatch.setattr(zoo, "table", lambda: table)


@pytest.fixture(scope="module")
def foreign() -> dict[str, torch.Tensor]:
    """A narrow SlowOnly R50 with mmaction2's keys and 99 classes."""
    torch.manual_seed(0)
    state = ResNet3d(num_classes=99, depth=50, base_channels=4).state_dict()
    return {mmaction2_key(key): value for key, value in state.items()}


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torchvision's reference training writes averaged weights."""
    return {"n_averaged": torch.tensor(5)} | {f"module.{key}": value for key, value in state.items()}


def test_file_name_tells_the_clip_and_the_head_the_classes(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = saved(
        tmp_path / "slowonly_imagenet_pretrained_r50_4x16x1_120e_gym99_rgb_20201111.pth", {"state_dict": foreign}
    )
    net = models.load(path)
    assert (net.spec.name, net.spec.num_classes, net.spec.clip_len) == ("slowonly_r50_4x16", 99, 4)
    assert net.spec.known["clip_len"] == "file name of a published file"
    assert not net.training
    assert len(net.spec.weights) == 8


def test_published_jester_file_is_8x4_whatever_its_name_says(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path / "slowonly_imagenet_pretrained_r50_8x8x1_64e_jester_rgb-b56a5389.pth", foreign)
    spec = models.load(path).spec
    assert (spec.name, spec.protocol) == ("slowonly_r50_8x4", "slowonly-jester")
    assert spec.published is None  # the name is that of a published file, the content is not


def test_a_published_file_is_known_by_its_hash(
    foreign: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "sha8", lambda path: "b56a5389")
    spec = models.load(saved(tmp_path / "renamed.pth", foreign)).spec
    assert (spec.name, spec.protocol, spec.weights) == ("slowonly_r50_8x4", "slowonly-jester", "b56a5389")
    assert spec.published is not None
    assert spec.published["top1"] == 97.2


def test_a_published_file_without_date_and_hash(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Its keys are those of a network with a pool behind the stem: only the whole name tells that it has none."""
    path = saved(tmp_path / "slowonly_imagenet_pretrained_r50_8x4x1_64e_sthv1_rgb.pth", foreign)
    spec = models.load(path).spec
    assert (spec.name, spec.network["with_pool1"]) == ("slowonly_r50_8x4_nopool", False)


def test_own_training_by_file_name(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    net = models.load(saved(tmp_path / "my_slowonly_resnet50_8x8x1_epoch_9.pth", foreign))
    assert (net.spec.name, net.spec.known["name"]) == ("slowonly_r50_8x8", "file name")


def test_config_inside_goes_before_the_file_name(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    top = {"meta": {"config": CONFIG_0X, "mmaction_version": "0.24.1"}, "state_dict": foreign}
    net = models.load(saved(tmp_path / "slowonly_r50_4x16x1.pth", top))
    spec = net.spec
    assert (spec.clip_len, spec.frame_interval, spec.mean, spec.std) == (8, 5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert spec.name == "slowonly_r50_8x5_nopool"
    assert spec.network["with_pool1"] is False
    assert spec.origin == "mmaction2-0.x"
    assert spec.known["mean"] == "config in the file"


def test_name_goes_before_everything(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    top = {"meta": {"config": CONFIG_0X}, "state_dict": foreign}
    spec = models.load(saved(tmp_path / "slowonly_r50_4x16x1.pth", top), name="slowonly_r50_8x8").spec
    assert (spec.name, spec.known["clip_len"]) == ("slowonly_r50_8x8", "name=")


def test_nothing_tells_the_clip(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.pth.*slowonly_r50_4x16, slowonly_r50_8x8.*name="):
        models.load(saved(tmp_path / "best.pth", foreign))


def test_the_only_network_that_fits_is_assumed_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = ResNet3d(num_classes=5, depth=101, base_channels=4).state_dict()
    path = saved(tmp_path / "best.pth", {mmaction2_key(key): value for key, value in state.items()})
    spec = models.load(path).spec
    assert spec.name == "slowonly_r101_8x8"
    assert spec.known["clip_len"].startswith("assumed")
    assert "best.pth: taken for slowonly_r101_8x8" in caplog.text
    assert models.load(path.rename(tmp_path / "slowonly_r101_8x8x1.pth")).spec.known["clip_len"] == "file name"
    with pytest.raises(CheckpointError, match="slowonly_r101_8x8"):  # its name speaks of a clip that no network has
        models.load((tmp_path / "slowonly_r101_8x8x1.pth").rename(tmp_path / "slowonly_r101_16x2x1.pth"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model_state": state, "optimizer_state": {}},
        lambda state: {"model": {key: value * 0 for key, value in state.items()}, "model_ema": averaged(state)},
        lambda state: state | {f"ema_{key.replace('.', '_')}": value * 0 for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["module", "model_state", "model_ema", "mmcv-ema", "no-num-batches"],
)
def test_wrappers(foreign: dict[str, torch.Tensor], tmp_path: Path, wrap: Any) -> None:
    net = models.load(saved(tmp_path / "x.pth", wrap(foreign)), name="slowonly_r50_4x16")
    assert torch.equal(net.body.state_dict()["head.weight"], foreign["cls_head.fc_cls.weight"])


def test_every_key_is_accounted_for(foreign: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = dict(foreign)
    state["backbone.extra.weight"] = state.pop("backbone.layer2.1.conv2.conv.weight")
    state["backbone.layer1.0.conv2.conv.weight"] = torch.zeros(4, 4, 1, 5, 5)
    with pytest.raises(CheckpointError) as caught:
        models.load(saved(tmp_path / "slowonly_r50_4x16.pth", state))
    message = str(caught.value)
    assert "1 missing: res3.1.conv2.conv.weight" in message
    assert "1 unused: backbone.extra.weight" in message
    assert "res2.0.conv2.conv.weight [4, 4, 1, 5, 5] instead of [4, 4, 1, 3, 3]" in message


def test_unknown_framework(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no framework known here has such keys"):
        models.load(saved(tmp_path / "x.pth", {"encoder.weight": torch.zeros(3)}))


def test_adapter_leaves_its_argument_alone_and_keeps_every_key(foreign: dict[str, torch.Tensor]) -> None:
    before = dict(foreign)
    adapted = mmaction2.adapt(foreign)
    assert foreign == before
    assert len(adapted) == len(foreign)
    assert not identify.mismatches(identify.expected("slowonly_r50_4x16", 99, {}), adapted)


class HistoryBuffer:
    """As mmengine's, which keeps the losses of a training in arrays."""

    def __init__(self) -> None:
        self._log_history = np.arange(3.0)


def test_numpy_and_foreign_objects_in_meta_load(
    foreign: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with numpy numbers and an mmengine object, written where that class exists and read where it does not."""
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setattr(HistoryBuffer, "__module__", name)
        patch.setattr(sys.modules[name], "HistoryBuffer", HistoryBuffer, raising=False)
        top = {
            "state_dict": foreign,
            "meta": {"loss": np.float64(0.5), "best": np.int64(3), "random": np.arange(4)},
            "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
        }
        path = saved(tmp_path / "slowonly_r50_4x16x1.pth", top)
    assert models.load(path).spec.origin == "mmaction2-1.x"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo run > /dev/null",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_runs_a_program_is_refused_by_name(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "meta": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    with pytest.raises(CheckpointError, match=rf"holds the object {os.name}\.system,.*trust=True"):
        models.load(path)
    assert not ran


def test_numpy_object_arrays_stay_inert(tmp_path: Path, foreign: dict[str, torch.Tensor]) -> None:
    """numpy's own loader would build what an object array holds; ours refuses the object inside."""
    path = saved(tmp_path / "x.pth", {"state_dict": foreign, "meta": np.array([Evil()], dtype=object)})
    with pytest.raises(CheckpointError, match="holds the object"):
        models.load(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04cut"], ids=["empty", "text", "cut"])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth: "):
        models.load(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        models.load(tmp_path / "none.pth")


def test_our_format_round_trips(tmp_path: Path) -> None:
    torch.manual_seed(3)
    names = tuple("abcdefgh")
    net = models.create("slowonly_tiny", num_classes=8, classes=names, dropout_ratio=0.25)
    models.save(tmp_path / "ckpt.pth", net, epoch=7)
    again = models.load(tmp_path / "ckpt.pth")
    assert again.spec.classes == names
    assert again.spec.network == net.spec.network
    assert again.spec.network["dropout_ratio"] == 0.25
    x = torch.randn(2, 3, 8, 32, 40)
    with torch.inference_mode():
        assert torch.equal(again(x), net.eval()(x))
    with pytest.raises(CheckpointError, match="holds slowonly_tiny, not slowonly_r50_4x16"):
        models.load(tmp_path / "ckpt.pth", name="slowonly_r50_4x16")


def test_safetensors(tmp_path: Path, foreign: dict[str, torch.Tensor]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(foreign, tmp_path / "slowonly_r50_4x16x1.safetensors")
    assert models.load(tmp_path / "slowonly_r50_4x16x1.safetensors").spec.name == "slowonly_r50_4x16"


def test_a_config_is_read_as_data() -> None:
    facts = config.facts(CONFIG_0X + "\nimport os\nx = os.system('false')\n")
    assert (facts["clip_len"], facts["frame_interval"]) == (8, 5)
    assert config.facts("model = dict(") == {}
    assert config.facts(None) == {}


def test_a_config_of_segments_and_of_what_keys_cannot_tell() -> None:
    text = """
model = dict(
    backbone=dict(type='ResNet3dSlowFast', resample_rate=4, speed_ratio=4,
                  non_local_cfg=dict(mode='dot_product', use_scale=False)),
    cls_head=dict(type='TSMHead', num_segments=16))
train_pipeline = [dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=16)]
test_pipeline = [dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=8, twice_sample=True)]
"""
    facts = config.facts(text)
    assert facts["num_segments"] == 16
    assert facts["network"] == {
        "with_pool1": True,
        "resample_rate": 4,
        "speed_ratio": 4,
        "non_local_mode": "dot_product",
        "non_local_scale": False,
    }


def test_a_config_decides_between_networks_of_the_same_keys(tmp_path: Path) -> None:
    """I3D and its heavy form differ in strides only; C2D and TSN in pooling only."""
    text = """
model = dict(backbone=dict(conv1_stride_t=1, pool1_stride_t=1, with_pool2=True))
test_pipeline = [dict(type='SampleFrames', clip_len=32, frame_interval=2, num_clips=10)]
"""
    fitting = {name: name for name in models.list("i3d_r50*32x2") if "nl" not in name}
    chosen, how = identify.choose(tmp_path, fitting, config.facts(text), None, None, typed=False)
    assert (chosen, how) == ("i3d_r50_heavy_32x2", "config in the file")
