"""Weights by the rule of the golden files: every tensor follows from its key and shape."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from datakit import manifest


@pytest.fixture(scope="session")
def golden_models(golden: Path) -> Path:
    return golden / "mmaction2" / "models"


@pytest.fixture(scope="session")
def rule(golden_models: Path) -> Any:
    return imported(golden_models / "golden_rule.py")


@pytest.fixture(scope="session")
def other_rule(golden: Path) -> Any:
    return imported(golden / "others" / "weights_rule.py")


def imported(path: Path) -> Any:
    location = importlib.util.spec_from_file_location(path.stem, path)
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden_state(golden_models: Path, rule: Any) -> Callable[[str], dict[str, torch.Tensor]]:
    """Name of a golden network -> state dict with mmaction2's keys."""

    @functools.cache
    def state(name: str) -> dict[str, torch.Tensor]:
        listed = json.loads((golden_models / f"{name}.json").read_text())["state_dict"]
        return {key: torch.from_numpy(np.asarray(rule.tensor(key, shape))) for key, shape, _ in listed}

    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What training reads of a manifest's clip."""

    id: str
    label_index: int
    path: Path | None
    frames: int | None
    width: int | None
    height: int | None


@pytest.fixture
def make_clips(tmp_path: Path) -> Callable[..., list[Clip]]:
    """Encode small videos: even ones (class 0) brighten by 4 a frame, odd ones (class 1) darken."""

    def make(*, num_clips: int, num_frames: int = 12, bright_left: bool = False) -> list[Clip]:
        clips = []
        for number in range(num_clips):
            path = tmp_path / "videos" / f"clip_{number}.mp4"
            levels = [4 * index + 20 * bright_left for index in range(num_frames)]
            write_video(path, levels[::-1] if number % 2 else levels, bright_left=bright_left)
            clips.append(Clip(id=path.stem, label_index=number % 2, path=path, frames=num_frames, width=64, height=48))
        return clips

    return make


def write_video(path: Path, levels: list[int], *, bright_left: bool) -> None:
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            picture = np.full((48, 64, 3), level, np.uint8)
            if bright_left:
                picture[:, :32] += 100
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def make_prepared(tmp_path: Path, make_clips: Callable[..., list[Clip]]) -> Callable[..., Path]:
    """A prepared variant, data/NAME/VARIANT, of small videos: the first half trains, the second is val."""

    def make(name: str, variant: str, *, num_clips: int, classes: tuple[str, ...] = ("up", "down")) -> Path:
        folder = tmp_path / "data" / name / variant
        rows = []
        for number, clip in enumerate(make_clips(num_clips=num_clips)):
            assert clip.path is not None
            path = Path("train" if number < num_clips // 2 else "val", clip.path.name)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(clip.path.read_bytes())
            known = {"path": str(path), "split": path.parts[0], "status": "ok", "frames": clip.frames, "fps": 25.0}
            label = number % len(classes)
            digest = hashlib.sha256(clip.path.read_bytes()).hexdigest()
            rows.append(
                {**known, "id": clip.id, "label": classes[label], "label_index": label, "sha256": digest}
                | {"width": clip.width, "height": clip.height}
            )
        (folder / "lists").mkdir()
        (folder / "lists/classes.txt").write_text("".join(f"{one}\n" for one in classes))
        manifest.write(folder, rows, {})
        return folder

    return make
