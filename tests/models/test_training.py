"""The loop: it learns, it resumes to the bit, it refuses what would mix two runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from datakit.errors import DataError, UsageError
from models import zoo
from models.training import loop, recipe
from models.training.data import TrainingClips

HOW = dataclasses.replace(recipe.get("tiny"), epochs=3, batch=4, short_side_px=20, validate_every=2, colour_mix=0.0)
Make = Callable[..., list[Any]]


def run(clips: list[Any], out: Path, *, stop_after: int | None = None, **changes: Any) -> list[loop.Step]:
    """Train in this process; ``stop_after`` steps the run is dropped where it stands, as a kill would."""
    how = dataclasses.replace(HOW, **{key: value for key, value in changes.items() if key in {"epochs", "lr"}})
    torch.manual_seed(7)
    net = zoo.create("slowonly_tiny", num_classes=2, base_channels=2, clip_len=4, train_crop_px=16, dropout_ratio=0.3)
    source = TrainingClips(clips, net.spec, how, seed=7, cache_bytes=1e9)
    arguments = {**json.loads(json.dumps(dataclasses.asdict(how))), "seed": 7}
    validate = changes.get("validate", lambda net: {"top1": 0.5})
    steps = loop.train(
        net,
        source,
        how,
        out=out,
        arguments=arguments,
        device=torch.device("cpu"),
        validate=validate,
        deadline=changes.get("deadline", float("inf")),
    )
    taken: list[loop.Step] = []
    for step in steps:
        taken.append(step)
        if len(taken) == stop_after:
            break
    return taken


def losses(out: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "step" in entry]


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6, 7])
def test_a_killed_run_goes_on_to_the_bit(make_clips: Make, tmp_path: Path, stop_after: int) -> None:
    clips = make_clips(num_clips=11)  # three steps an epoch
    whole = run(clips, tmp_path / "whole")
    run(clips, tmp_path / "cut", stop_after=stop_after)
    rest = run(clips, tmp_path / "cut")
    assert [step.loss for step in rest] == [step.loss for step in whole][9 - len(rest) :]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    ours, theirs = (models.load(tmp_path / name / "ckpt.pth").body.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert run(clips, tmp_path / "cut") == []


def test_a_line_that_was_logged_but_not_saved_is_dropped(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=8)
    run(clips, tmp_path / "whole")
    run(clips, tmp_path / "cut", stop_after=4)
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"epoch": 1, "step": 2, "loss": 99.0}\n{"epoch": 1, "st')
    run(clips, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_changed_arguments_are_refused(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=4)
    run(clips, tmp_path / "run", stop_after=2)
    with pytest.raises(UsageError, match=r"begun with lr 0.1, not 0.5. .*another --out"):
        run(clips, tmp_path / "run", lr=0.5)


def test_best_last_and_log(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=5)
    clips[2].path.write_bytes(b"broken")
    scores = iter([0.75, 0.25])
    seen: list[bool] = []

    def validate(net: models.Recognizer) -> Mapping[str, float]:
        seen.append(net.training)
        return {"top1": next(scores)}

    run(clips, tmp_path / "run", epochs=4, validate=validate)
    assert seen == [False, False]
    best = torch.load(tmp_path / "run" / "best.pth", weights_only=True)
    assert (best["epoch"], best["metrics"]) == (1, {"top1": 0.75})
    epochs = [
        entry
        for entry in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        if "clips_per_s" in entry
    ]
    assert [entry["clips"] for entry in epochs] == [5, 5, 5, 5]  # another clip in the place of the broken one
    assert [*epochs[0]["unreadable"]] == [clips[2].id]
    assert epochs[3]["val"] == {"top1": 0.25}
    assert all(0 <= entry["waiting_share"] <= 1 for entry in epochs)
    state = loop.saved_state(tmp_path / "run")
    assert (state.epochs, state.best_epoch, state.best_top1) == (4, 1, 0.75)
    assert models.load(tmp_path / "run" / "last.pth").spec.name == "slowonly_tiny"


def test_time_limit_stops_after_an_epoch_and_the_same_command_goes_on(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=4)
    whole = run(clips, tmp_path / "whole")
    first = run(clips, tmp_path / "run", deadline=0.0)
    assert len(first) == 1
    assert (tmp_path / "run" / "ckpt.pth").exists()
    assert first + run(clips, tmp_path / "run") == whole


def test_nothing_readable_and_diverged_losses_are_errors(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=3)
    with pytest.raises(DataError, match=r"the loss is (nan|inf).*--lr"):
        run(clips, tmp_path / "hot", lr=1e30, epochs=3)
    for clip in clips:
        clip.path.unlink()
    with pytest.raises(DataError, match="not one clip could be read"):
        run(clips, tmp_path / "none")


def test_it_learns_motion(make_clips: Make, tmp_path: Path) -> None:
    """Two classes, brightening and darkening: the same frames in another order."""
    clips = make_clips(num_clips=8, num_frames=16)
    first, *_, last = run(clips, tmp_path / "run", epochs=30)
    assert first.loss > 0.6
    assert last.loss < 0.35


def test_help_is_fast_and_imports_no_torch() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['train', '--help']\n"
        "try: runpy.run_module('models.train', run_name='__main__')\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'av', 'pandas', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
