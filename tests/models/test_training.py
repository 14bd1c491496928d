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
from models.train import network_for
from models.training import loop, recipe
from models.training.data import TrainingClips
from tests.models.train_worker import HOW as MEMORY
from tests.models.train_worker import MemoryClips, small

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


def memory_run(out: Path, *, stop_after: int | None = None, net: Any = None, clips: int = 12, **changes: Any) -> Any:
    """Train on clips in memory; ``changes`` are fields of the recipe or arguments of ``loop.train``."""
    fields = {field.name for field in dataclasses.fields(recipe.Recipe)}
    how = dataclasses.replace(MEMORY, **{key: value for key, value in changes.items() if key in fields})
    rest = {key: value for key, value in changes.items() if key not in fields}
    torch.manual_seed(7)
    net = net or small(dropout_ratio=0.3)
    data = MemoryClips(clips, clip_len=4, channels=len(net.spec.mean))
    steps = loop.train(net, data, how, out=out, arguments={}, device=torch.device("cpu"), **rest)
    return net, [step for _, step in zip(range(stop_after or 10**6), steps, strict=False)]


FEATURES: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.9},
    "precise batch norm": {"precise_bn_batches": 2},
    "parts": {"accumulate": 2},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "short cycle": {"multigrid": "short"},
    "groups": {"param_groups": "tsm", "clip_grad_norm": 1.0},
}


@pytest.mark.parametrize("changes", FEATURES.values(), ids=FEATURES.keys())
def test_whatever_is_switched_on_a_killed_run_goes_on_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {"validate": lambda net: {"top1": 0.5}, **changes}
    _, whole = memory_run(tmp_path / "whole", **changes)
    memory_run(tmp_path / "cut", stop_after=len(whole) // 2 + 1, **changes)
    memory_run(tmp_path / "cut", **changes)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    ours, theirs = (models.load(tmp_path / name / "ckpt.pth").body.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_random_numbers_of_an_epoch_follow_from_seed_and_epoch(tmp_path: Path) -> None:
    """Whatever the generator was used for before the second epoch, its dropout is the same."""
    _, whole = memory_run(tmp_path / "a")
    validate = lambda net: {"top1": float(torch.rand(3).sum())}  # noqa: E731
    _, disturbed = memory_run(tmp_path / "b", validate=validate)
    assert [step.loss for step in whole] == [step.loss for step in disturbed]
    assert len({step.loss for step in whole}) == len(whole)


def test_parts_of_a_batch_are_the_batch(tmp_path: Path) -> None:
    from models.training import finetune

    runs = []
    for parts in (1, 2, 3):
        torch.manual_seed(1)
        net = small()
        finetune.freeze(net, batch_norm=True)
        runs.append(memory_run(tmp_path / str(parts), net=net, accumulate=parts, clips=10)[1])
    for steps in runs[1:]:
        assert [step.loss for step in steps] == pytest.approx([step.loss for step in runs[0]], rel=1e-5)


def test_the_running_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []
    net = small()
    hook = net.body.head.register_forward_pre_hook(lambda module, _: weights.append(module.weight.detach().clone()))
    kept = []
    _, steps = memory_run(
        tmp_path,
        net=net,
        ema_decay=0.5,
        validate=lambda shown: kept.append(shown.body.head.weight.clone()) or {"top1": 1},
    )
    hook.remove()
    average = weights[0]
    after = [*weights[1 : len(steps)], net.body.head.weight.detach()]
    for number, now in enumerate(after):
        keep = min(0.5, (1 + number) / (10 + number))
        average = keep * average + (1 - keep) * now
    assert torch.allclose(kept[-1], average, atol=1e-6)
    assert torch.equal(models.load(tmp_path / "ckpt.pth").body.head.weight, kept[-1])
    raw = torch.load(tmp_path / "last.pth", weights_only=True)["state_dict"]["head.weight"]
    assert torch.equal(raw, net.body.head.weight)


def test_precise_batch_norm_has_the_statistics_of_all_batches() -> None:
    """Of batches of one size: exactly the mean and (but for n - 1) the variance over all their clips."""
    from models.training import finetune
    from models.training.data import Batch

    net = small()
    x = torch.randint(0, 255, (24, 3, 4, 16, 16), dtype=torch.uint8)
    batches = [Batch(x=part, labels=torch.zeros(8, dtype=torch.int64), failed=()) for part in x.split(8)]
    loop.precise_batch_norm(net, finetune.batch_norms(net), batches, torch.device("cpu"))
    with torch.no_grad():
        features = net.body.stem.conv(net.normalise(x.float()))
    assert torch.allclose(net.body.stem.bn.running_mean, features.mean(dim=(0, 2, 3, 4)), atol=1e-5)
    assert torch.allclose(net.body.stem.bn.running_var, features.var(dim=(0, 2, 3, 4)), rtol=1e-3)
    assert net.body.stem.bn.momentum == 0.1
    assert not any(norm.training for norm in finetune.batch_norms(net))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_the_weights_in_float32(tmp_path: Path, precision: str) -> None:
    net, steps = memory_run(tmp_path, epochs=20, precision=precision, clips=8)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert steps[-1].loss < 0.5 * steps[0].loss


@pytest.mark.parametrize(
    "name",
    ["tsn_tiny", "tsm_tiny", "tsm_mobilenetv2_tiny", "slowonly_tiny_flow", "tpn_tiny", "slowfast_tiny", "csn_tiny"],
)
def test_every_family_trains(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net = zoo.create(name, num_classes=2, train_crop_px=32)
    data = MemoryClips(
        8,
        clip_len=net.spec.clip_len,
        num_segments=net.spec.num_segments or 1,
        px=32,
        channels=len(net.spec.mean),
    )
    how = dataclasses.replace(MEMORY, epochs=4)
    before = net.body.head.weight.clone()
    steps = list(loop.train(net, data, how, out=tmp_path, arguments={}, device=torch.device("cpu")))
    assert len(steps) == 8
    assert not torch.equal(before, net.body.head.weight)
    assert models.load(tmp_path / "ckpt.pth").spec.name == name


@pytest.mark.slow
def test_a_compiled_network_trains_alike(tmp_path: Path) -> None:
    """Fresh process: the compiler's warnings are not ours."""
    code = (
        "import sys, torch; from pathlib import Path; from tests.models.test_training import memory_run\n"
        "from tests.models.train_worker import small\n"
        "runs = []\n"
        "for compiled in (False, True):\n"
        "    torch.manual_seed(1)\n"
        "    net = small(dropout_ratio=0.0)\n"
        "    runs.append(memory_run(Path(sys.argv[1]) / str(compiled), epochs=1, net=net, compiled=compiled)[1])\n"
        "assert all(abs(one.loss - other.loss) < 1e-4 for one, other in zip(*runs, strict=True)), runs\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_network_is_one_of_what_the_variant_holds(tmp_path: Path) -> None:
    flow, frames = tmp_path / "256p-flow", tmp_path / "256p"
    for folder, definition in ((flow, {"flow_of": "256p"}), (frames, {"short_side_px": 256})):
        folder.mkdir()
        (folder / "manifest.lock").write_text(json.dumps({"definition": definition}))
    assert network_for("slowonly_r50_4x16", flow) == "slowonly_r50_flow_4x16"
    assert network_for("slowonly_r50_flow_4x16", flow) == "slowonly_r50_flow_4x16"
    assert network_for("slowonly_r50_4x16", frames) == "slowonly_r50_4x16"
    assert network_for("slowonly_r50_flow_4x16", tmp_path) == "slowonly_r50_flow_4x16"  # nobody knows what it holds
    with pytest.raises(
        UsageError, match=r"slowfast_r50_4x16 looks at frames; networks of flow: .*slowonly_r50_flow_8x8"
    ):
        network_for("slowfast_r50_4x16", flow)
    with pytest.raises(UsageError, match=r"holds frames.*python -m datakit flow NAME --variant 256p$"):
        network_for("slowonly_r50_flow_4x16", frames)
