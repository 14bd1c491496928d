"""A training recipe, read from ``manifests/recipes.toml``."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

import manifests
from datakit.errors import BadManifest, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The fields are explained at the top of ``manifests/recipes.toml``."""

    name: str
    epochs: int
    batch: int
    lr: float
    lr_batch: int
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Literal["cosine", "step", "constant"]
    cosine_from: Literal["warmup-end", "start"] = "warmup-end"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    lr_changes: Literal["step", "epoch"] = "step"
    clip_grad_norm: float | None = None
    short_side_px: int
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    flip: bool
    colour_mix: float = 0.0
    label_smoothing: float = 0.0
    validate_every: int = 1

    def __post_init__(self) -> None:
        allowed = {
            "schedule": ("cosine", "step", "constant"),
            "cosine_from": ("warmup-end", "start"),
            "lr_changes": ("step", "epoch"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise BadManifest(
                    f"recipe {self.name}: {key} is {getattr(self, key)!r}; write one of {', '.join(values)}"
                )
        if self.epochs < 1 or self.batch < 1 or self.validate_every < 1:
            raise UsageError(f"recipe {self.name}: epochs, batch and validate_every are at least 1")
        if self.schedule == "step" and not self.milestones:
            raise BadManifest(f"recipe {self.name}: a step schedule needs milestones")

    @property
    def scaled_lr(self) -> float:
        """The learning rate for the real batch."""
        return self.lr * self.batch / self.lr_batch


def get(name: str, **changes: Any) -> Recipe:
    """A named recipe; ``changes`` that are not ``None`` replace its fields.

    ``lr`` is meant at the real batch. Other ``epochs`` stretch the whole recipe: warm-up and milestones move along.
    Raises ``UsageError`` for an unknown name, ``BadManifest`` for a row with unknown or missing keys.
    """
    rows = manifests.read("recipes")
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1) or [*rows]
        raise UsageError(f"no recipe {name!r}; type --recipe {' or --recipe '.join(near)}")
    row = {key: value for key, value in rows[name].items() if key not in ("about", "source")}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    try:
        manifests.check_keys(values, {field.name for field in dataclasses.fields(Recipe)}, f"recipes.toml [{name}]")
        recipe = Recipe(name=name, **values)
    except (KeyError, TypeError) as error:
        raise BadManifest(f"recipes.toml [{name}]: {error.args[0]}") from error
    changes = {key: value for key, value in changes.items() if value is not None}
    if "lr" in changes:
        changes["lr_batch"] = changes.get("batch", recipe.batch)
    if "epochs" in changes:
        stretch = changes["epochs"] / recipe.epochs
        changes["warmup_epochs"] = recipe.warmup_epochs * stretch
        changes["milestones"] = tuple(milestone * stretch for milestone in recipe.milestones)
    return dataclasses.replace(recipe, **changes)
