"""The training config that mmaction2 keeps inside a checkpoint: Python text, read as data and never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from datakit.errors import CheckpointError

SAMPLERS = ("SampleFrames", "DenseSampleFrames", "UniformSampleFrames")
# Arguments of backbones that leave no trace in keys and shapes.
INVISIBLE = (
    "with_pool1",
    "with_pool2",
    "conv1_stride_t",
    "pool1_stride_t",
    "resample_rate",
    "speed_ratio",
    "shift_div",
    "shift_place",
    "temporal_pool",
    "bn_frozen",
)
# Backbone -> those of them that are so unless its config says otherwise.
DEFAULTS: dict[str, dict[str, Any]] = {
    "C2D": {"pool1_padding": 0, "with_pool2": True},
    "ResNet": {"pool1_padding": 1, "with_pool2": False},
    "ResNetTSM": {"pool1_padding": 1, "with_pool2": False, "shift_div": 8},
    "MobileNetV2TSM": {"shift_div": 8},
    "ResNet3dSlowOnly": {"conv1_stride_t": 1, "pool1_stride_t": 1, "with_pool2": False},
    "ResNet3dCSN": {"with_pool2": True},
    "ResNet3d": {"with_pool2": True},
}
# Settings that leave no trace either and that no network here has otherwise.
ONLY: dict[str, Any] = {
    "style": "pytorch",
    "dilations": [1, 1, 1, 1],
    "spatial_strides": [1, 2, 2, 2],
    "conv1_stride_s": 2,
    "pool1_stride_s": 2,
    "spatial_type": "avg",
}


def facts(text: str | None) -> dict[str, Any]:
    """What a config says about the input and about what keys cannot tell.

    clip_len, frame_interval, num_segments (of networks that take single frames), mean, std, and ``network``: arguments
    of the network. Empty when there is no config or it has no sampler. Pipelines of tests are believed before those of
    training, but for the segments, of which tests take more. Raises ``CheckpointError`` for a network not built here.
    """
    if not text:
        return {}
    config = parse(text)
    ordered = {key: config[key] for key in ("test_pipeline", "val_pipeline") if key in config} | config
    tables = [*dicts(ordered)]
    sampler = next((table for table in tables if table.get("type") in SAMPLERS and "clip_len" in table), None)
    if sampler is None:
        return {}
    found: dict[str, Any] = {"clip_len": sampler["clip_len"], "frame_interval": sampler.get("frame_interval", 1)}
    model: dict[str, Any] = config.get("model") or {}
    # Stacks of flow pictures, of which 1.x says only that they go through a 2D network.
    stacked = model.get("type") == "Recognizer2D" or any(table.get("input_format") == "NCHW_Flow" for table in tables)
    if sampler["clip_len"] == 1 or stacked:
        found["num_segments"] = num_segments(config, model)
    norm = next((table for table in tables if {"mean", "std"} <= table.keys()), None)
    if norm:
        found |= {key: tuple(float(value) for value in norm[key]) for key in ("mean", "std")}
    found["network"] = network_facts(model)
    return found


def num_segments(config: dict[str, Any], model: dict[str, Any]) -> int | None:
    places = [model.get(place) or {} for place in ("backbone", "cls_head")]
    told = next((place["num_segments"] for place in places if place.get("num_segments")), None)
    samplers = [table for table in dicts(config.get("train_pipeline")) if table.get("type") in SAMPLERS]
    return told or (samplers[0].get("num_clips", 1) if samplers else None)


def network_facts(model: dict[str, Any]) -> dict[str, Any]:
    """Arguments of our networks that leave no trace in keys and shapes."""
    backbone, neck = model.get("backbone") or {}, model.get("neck") or {}
    for table in dicts({key: model.get(key) for key in ("backbone", "cls_head")}):
        for key, value in ONLY.items():
            if table.get(key, value) != value:
                raise CheckpointError(f"its config has {key} = {table[key]}; the networks here have {value}")
    found = {"with_pool1": True} | DEFAULTS.get(str(backbone.get("type")), {})
    found |= {key: backbone[key] for key in INVISIBLE if backbone.get(key) is not None}
    if backbone.get("is_shift") is False:
        found.pop("shift_div", None)
    norm = backbone.get("norm_cfg")
    if isinstance(norm, dict) and "eps" in norm:
        found["eps"] = norm["eps"]
    if neck:
        found["flow_type"] = neck.get("flow_type", "cascade")
        modulation = neck.get("temporal_modulation_cfg")
        if isinstance(modulation, dict) and modulation.get("downsample_scales"):
            found["temporal_scales"] = modulation["downsample_scales"]
    non_local = backbone.get("non_local_cfg")
    if isinstance(non_local, dict) and non_local:
        found["non_local_mode"] = non_local.get("mode", "embedded_gaussian")
        found["non_local_scale"] = non_local.get("use_scale", True)
    return found


def parse(text: str) -> dict[str, Any]:
    """Assignments of a config text as plain values; what is neither a literal, a dict nor a known name is left out."""
    values: dict[str, Any] = {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return values
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = value_of(statement.value, values)
    return values


def value_of(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [value_of(item, names) for item in items]
        case ast.Dict(keys=keys, values=items):
            pairs = zip(keys, items, strict=True)
            return {value_of(key, names): value_of(item, names) for key, item in pairs if isinstance(key, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
            return {word.arg: value_of(word.value, names) for word in keywords if word.arg}
        case ast.Name(id=name):
            return names.get(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    return None


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Every dict inside ``value``, outer before inner, in order."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from dicts(item)
    elif isinstance(value, list):
        for item in value:
            yield from dicts(item)
