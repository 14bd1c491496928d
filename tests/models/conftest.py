"""Weights by the rule of the golden files: every tensor follows from its key and shape."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def golden_models(golden: Path) -> Path:
    return golden / "mmaction2" / "models"


@pytest.fixture(scope="session")
def rule(golden_models: Path) -> Any:
    location = importlib.util.spec_from_file_location("golden_rule", golden_models / "golden_rule.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden_state(golden_models: Path, rule: Any) -> Callable[[str], dict[str, torch.Tensor]]:
    """Name of a golden network -> state dict with mmaction2's keys."""

    def state(name: str) -> dict[str, torch.Tensor]:
        listed = json.loads((golden_models / f"{name}.json").read_text())["state_dict"]
        return {key: torch.from_numpy(np.asarray(rule.tensor(key, shape))) for key, shape, _ in listed}

    return state
