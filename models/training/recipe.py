"""A training recipe, read from ``manifests/recipes.toml``."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

import manifests
from datakit.errors import BadManifest, UsageError

# What a row says about the recipe, beside the recipe itself.
ABOUT = ("about", "source", "published", "network", "weights", "like")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The fields are explained at the top of ``manifests/recipes.toml``. ``batch``: of all processes together."""

    name: str
    epochs: int
    batch: int
    lr: float
    lr_batch: int
    momentum: float
    nesterov: bool
    weight_decay: float
    param_groups: Literal["all", "bn-no-decay", "tsn", "tsm"] = "all"
    schedule: Literal["cosine", "step", "constant"]
    cosine_from: Literal["warmup-end", "start"] = "warmup-end"
    min_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    milestones_from: Literal["start", "warmup-end"] = "start"
    gamma: float = 0.1
    lr_factors: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    warmup_start: float = 0.0
    warmup_rule: Literal["line", "times-schedule"] = "line"
    warmup_changes: Literal["step", "epoch"] | None = None
    warmup_full: Literal["end", "last"] | None = None
    lr_changes: Literal["step", "epoch"] = "step"
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    precise_bn_batches: int = 0
    multigrid: Literal["none", "short", "long", "both"] = "none"
    short_side_px: int
    repeats: int = 1
    crop: Literal["random-resized", "multi-scale", "short-side"] = "random-resized"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    crop_scales: tuple[float, ...] = (1.0,)
    crop_scale_gap: int = 1
    crop_positions: int = 5
    crop_short_side_px: tuple[float, float] = (256, 320)
    flip: bool
    colour_mix: float = 0.0
    colour_jitter: tuple[float, ...] = ()
    randaugment: tuple[int, ...] = ()
    erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    label_smoothing: float = 0.0
    validate_every: int = 1

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[str | None, ...]] = {
            "param_groups": ("all", "bn-no-decay", "tsn", "tsm"),
            "schedule": ("cosine", "step", "constant"),
            "cosine_from": ("warmup-end", "start"),
            "milestones_from": ("start", "warmup-end"),
            "warmup_rule": ("line", "times-schedule"),
            "warmup_changes": ("step", "epoch", None),
            "warmup_full": ("end", "last", None),
            "lr_changes": ("step", "epoch"),
            "multigrid": ("none", "short", "long", "both"),
            "crop": ("random-resized", "multi-scale", "short-side"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                words = ", ".join(value for value in values if value)
                raise BadManifest(f"recipe {self.name}: {key} is {getattr(self, key)!r}; write one of {words}")
        if min(self.epochs, self.batch, self.validate_every, self.repeats) < 1:
            raise UsageError(f"recipe {self.name}: epochs, batch, validate_every and repeats are at least 1")
        if self.crop_positions not in (0, 5, 13) or len(self.colour_jitter) not in (0, 4):
            raise BadManifest(f"recipe {self.name}: crop_positions is 0, 5 or 13; colour_jitter has 4 numbers or none")
        if len(self.randaugment) not in (0, 2) or any(not 0 <= size <= 30 for size in self.randaugment):
            raise BadManifest(f"recipe {self.name}: randaugment is [operations, magnitude of 30]")
        if self.schedule == "step" and not self.milestones:
            raise BadManifest(f"recipe {self.name}: a step schedule needs milestones")
        if self.lr_factors and len(self.lr_factors) != len(self.milestones) + 1:
            raise BadManifest(
                f"recipe {self.name}: lr_factors has {len(self.lr_factors)} values; "
                f"{len(self.milestones)} milestones need one more than they are"
            )

    @property
    def scaled_lr(self) -> float:
        """The learning rate for the real batch."""
        return self.lr * self.batch / self.lr_batch


def rows() -> dict[str, dict[str, Any]]:
    """Every row whole: what it is ``like`` put in, what it changes put over that.

    Raises ``BadManifest`` for a row that is like none there is, or like itself.
    """
    table = manifests.read("recipes")

    def whole(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
        row: dict[str, Any] | None = table.get(name)
        if row is None or name in above:
            raise BadManifest(f"recipes.toml [{above[-1]}]: like = {name!r}, which is no other row")
        base = whole(row["like"], (*above, name)) if "like" in row else {}
        inherited = {key: value for key, value in base.items() if key not in ABOUT}
        return inherited | row

    return {name: whole(name) for name in table}


def get(name: str, *, processes: int = 1, **changes: Any) -> Recipe:
    """A named recipe; ``changes`` that are not ``None`` replace its fields.

    ``batch`` is what one of the ``processes`` takes; the recipe's own becomes that of all together. ``lr`` is meant at
    that real batch. Other ``epochs`` stretch the whole recipe: warm-up and milestones move along.
    Raises ``UsageError`` for an unknown name, ``BadManifest`` for a row with unknown or missing keys.
    """
    table = rows()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1) or [*table]
        raise UsageError(f"no recipe {name!r}; type --recipe {' or --recipe '.join(near)}")
    row = {key: value for key, value in table[name].items() if key not in ABOUT}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    try:
        manifests.check_keys(values, {field.name for field in dataclasses.fields(Recipe)}, f"recipes.toml [{name}]")
        recipe = Recipe(name=name, **values)
    except (KeyError, TypeError) as error:
        raise BadManifest(f"recipes.toml [{name}]: {error.args[0]}") from error
    changes = {key: value for key, value in changes.items() if value is not None}
    changes["batch"] = changes.get("batch", recipe.batch) * processes
    if "lr" in changes:
        changes["lr_batch"] = changes["batch"]
        changes.setdefault("min_lr", recipe.min_lr * changes["lr"] / recipe.lr)
    if "epochs" in changes:
        stretch = changes["epochs"] / recipe.epochs
        changes["warmup_epochs"] = recipe.warmup_epochs * stretch
        changes["warmup_steps"] = round(recipe.warmup_steps * stretch)
        changes["milestones"] = tuple(milestone * stretch for milestone in recipe.milestones)
    return dataclasses.replace(recipe, **changes)
