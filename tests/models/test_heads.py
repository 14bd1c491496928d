"""Several data sets trained together: heads of their own, of which the first stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import models
from models import train, zoo
from models.training import heads

Prepared = Callable[..., Path]


def test_the_first_outputs_stay_as_they_are(tmp_path: Path) -> None:
    net = zoo.create("slowonly_tiny", num_classes=5, classes=("a", "b", "2:web:a", "2:web:b", "2:web:c")).eval()
    models.save(tmp_path / "net.pth", net, epoch=3)
    heads.keep_first(tmp_path / "net.pth", 2)
    before = (tmp_path / "net.pth").read_bytes()
    heads.keep_first(tmp_path / "net.pth", 2)
    assert (tmp_path / "net.pth").read_bytes() == before
    cut = models.load(tmp_path / "net.pth")
    assert (cut.spec.num_classes, cut.spec.classes) == (2, ("a", "b"))
    x = torch.randn(2, 3, 8, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(cut(x), net(x)[:, :2], atol=1e-6)
    assert torch.load(tmp_path / "net.pth", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_mixed_labels_train(
    make_prepared: Prepared, tmp_path: Path, augment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_prepared("mine", "256p", num_clips=8)
    arguments = ["slowonly_tiny", "--recipe", "tiny", "--epochs", "1", "--batch", "4", "--workers", "0", "--json"]
    assert train.main([*arguments, "--data", str(data), "--out", str(tmp_path / "run"), "--augment", augment]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    (line, *_) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["loss"] < 3
    made = json.loads((tmp_path / "run" / "training.json").read_text())  # what evalkit.table lists of it
    assert (made["gpus"], made["batch"], made["weights"], made["others"]) == (0, 4, "", [])


def test_two_sets_train_one_network(
    make_prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = make_prepared("mine", "256p", num_clips=8)
    web = make_prepared("web", "256p", num_clips=6, classes=("x", "y", "z"))
    arguments = ["slowonly_tiny", "--recipe", "tiny", "--epochs", "1", "--batch", "3", "--workers", "0", "--json"]
    arguments += [
        "--data",
        str(main),
        "--data",
        f"{web}:0.5",
        "--out",
        str(tmp_path / "run"),
        "--augment",
        "randaugment",
    ]
    assert train.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum(line["clips"] for line in lines if "step" in line) == 6  # four, and half as many of the other set
    assert models.load(tmp_path / "run" / "ckpt.pth").spec.classes == ("up", "down")
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["spec"]["num_classes"] == 5
    assert train.main(arguments) == 0  # finished: nothing is cut twice
