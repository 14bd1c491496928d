"""Write a checkpoint as another program has it: the same weights under other names, and nothing else changed.

    python -m models.convert in.pth out.pth --to mmaction2 | pyslowfast | pytorchvideo | torchvision | actionkit

What the other program cannot hold is refused. What was written is read back before it gets its name: it has to be the
same network with the same weights.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit import console
from datakit.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .zoo import ModelSpec, Recognizer

log = logging.getLogger(__name__)

Rules = tuple[tuple[str, Any], ...]
TARGETS = ("mmaction2", "pyslowfast", "pytorchvideo", "torchvision", "actionkit")
# Arguments that leave the logits of a picture of the training size as they are.
WITHOUT_EFFECT = {"dropout_ratio", "zero_init_residual", "bn_frozen", "train_crop_px", "head_pool"}
# What no config of the target tells, so that it has to be as our networks have it unless told otherwise.
FIXED: dict[str, tuple[str, ...]] = {
    "mmaction2": (
        "spatial_strides", "temporal_strides", "temporal_first", "stem_channels", "middle_of", "factored_shortcut",
        "middle_eps", "non_local_pool_first", "non_local_out_bias",
    ),
    "pyslowfast": ("spatial_strides", "with_pool1", "conv1_stride_t", "pool1_stride_t", "pool1_padding"),
    "pytorchvideo": ("conv1_stride_t", "pool1_stride_t", "pool1_padding"),
    "torchvision": (),
}  # fmt: skip


def stage_up(found: re.Match[str]) -> str:
    return f"layer{int(found[1]) - 1}."


# The tables of models/checkpoints/{mmaction2,pyslowfast,pytorchvideo,torchvision}.py the other way round.
MMACTION2: Rules = (
    (r"^head\.", "cls_head.fc_cls."),
    (r"^lateral\.0\.", "backbone.slow_path.conv1_lateral."),
    (r"^lateral\.(\d)\.", r"backbone.slow_path.layer\1_lateral."),
    (r"^(slow|fast)\.", r"\1_path."),
    (r"^spatial_modulation\.", "neck.spatial_modulation.spatial_modulation.0.0."),
    (r"^temporal_modulation\.(\d)\.", r"neck.temporal_modulation_ops.\1.conv.conv."),
    (r"^bottom_up\.", "neck.downsample_ops.0.conv.conv."),
    (r"^(level_fusion_\d\.downsamples\.\d)\.", r"neck.\1.conv."),
    (r"^(level_fusion_|pyramid_fusion|aux_head)", r"neck.\1"),
    (r"\bstem\.(conv_s|bn_s|conv_t)\.", r"conv1.conv.\1."),
    (r"\bstem\.", "conv1."),
    (r"\bnon_local\.res(\d)_(\d+)\.", lambda found: f"layer{int(found[1]) - 1}.{found[2]}.nl."),
    (r"\.nl\.(g|phi)\.", r".non_local_block.\1.@.conv."),
    (r"\.nl\.theta\.", ".non_local_block.theta.conv."),
    (r"\.nl\.out\.", ".non_local_block.conv_out.conv."),
    (r"\.nl\.bn\.", ".non_local_block.conv_out.bn."),
    (r"\bres(\d)\.", stage_up),
    (r"\.shortcut\.", ".downsample."),
    (r"\.(conv\d|downsample)\.(conv_s|bn_s|conv_t)\.", r".\1.conv.\2."),
    (r"^(?!backbone|neck|cls_head)", "backbone."),
)  # fmt: skip
PYSLOWFAST: Rules = (
    (r"^head\.", "head.projection."),
    (r"^lateral\.(\d)\.conv\.", lambda found: f"s{int(found[1]) + 1}_fuse.conv_f2s."),
    (r"^lateral\.(\d)\.bn\.", lambda found: f"s{int(found[1]) + 1}_fuse.bn."),
    (r"^(?:slow\.)?(stem|res\d|non_local)\b", r"0.\1"),
    (r"^fast\.", "1."),
    (r"^(\d)\.stem\.", r"s1.pathway\1_stem."),
    (r"^(\d)\.res(\d)\.(\d+)\.", r"s\2.pathway\1_res\3."),
    (r"\.shortcut\.conv\.", ".branch1."),
    (r"\.shortcut\.bn\.", ".branch1_bn."),
    (r"\.conv(\d)\.conv\.", lambda found: f".branch2.{'abc'[int(found[1]) - 1]}."),
    (r"\.conv(\d)\.bn\.", lambda found: f".branch2.{'abc'[int(found[1]) - 1]}_bn."),
    (r"^(\d)\.non_local\.res(\d)_(\d+)\.bn\.", r"s\2.pathway\1_nonlocal\3.bn."),
    (r"^(\d)\.non_local\.res(\d)_(\d+)\.", r"s\2.pathway\1_nonlocal\3.conv_"),
)
PYTORCHVIDEO: Rules = (
    (r"^head\.", "blocks.6.proj."),
    (r"^lateral\.(\d)\.conv\.", r"blocks.\1.multipathway_fusion.conv_fast_to_slow."),
    (r"^lateral\.(\d)\.bn\.", r"blocks.\1.multipathway_fusion.norm."),
    (r"^((?:slow\.|fast\.)?)stem\.conv\.", r"blocks.0.\1conv."),
    (r"^((?:slow\.|fast\.)?)stem\.bn\.", r"blocks.0.\1norm."),
    (r"^((?:slow\.|fast\.)?)res(\d)\.", lambda found: f"blocks.{int(found[2]) - 1}.{found[1]}res_blocks."),
    (r"\.slow\.", ".multipathway_blocks.0."),
    (r"\.fast\.", ".multipathway_blocks.1."),
    (r"\.shortcut\.conv\.", ".branch1_conv."),
    (r"\.shortcut\.bn\.", ".branch1_norm."),
    (r"\.conv2\.conv_t\.", ".branch2.conv_b.conv_t."),
    (r"\.conv2\.bn_s\.", ".branch2.conv_b.norm."),
    (r"\.conv2\.conv_s\.", ".branch2.conv_b.conv_xy."),
    (r"\.conv2\.0\.", ".conv2."),
    (r"\.conv(\d)\.conv\.", lambda found: f".branch2.conv_{'abc'[int(found[1]) - 1]}."),
    (r"\.conv(\d)\.bn\.", lambda found: f".branch2.norm_{'abc'[int(found[1]) - 1]}."),
)
TORCHVISION: Rules = (
    (r"^trunk\.", ""),
    (r"^head\.", "fc."),
    (r"^res(\d)\.", stage_up),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.bn\.", ".downsample.1."),
    (r"^stem\.conv_s\.", "stem.0."),
    (r"^stem\.bn_s\.", "stem.1."),
    (r"^stem\.conv_t\.", "stem.3."),
    (r"^stem\.bn\.", "stem.4."),
    (r"\.(conv\d)\.conv_s\.", r".\1.0.0."),
    (r"\.(conv\d)\.bn_s\.", r".\1.0.1."),
    (r"\.(conv\d)\.conv_t\.", r".\1.0.3."),
    (r"\.(conv\d)\.bn\.", r".\1.1."),
)
# Target -> family -> the class of its network there; families that are not named it does not have.
FAMILIES: dict[str, dict[str, str]] = {
    "mmaction2": {
        "slowonly": "ResNet3dSlowOnly", "slowfast": "ResNet3dSlowFast", "i3d": "ResNet3d", "c2d": "C2D",
        "tsn": "ResNet", "tsm": "ResNetTSM", "tsm-mobilenetv2": "MobileNetV2TSM", "r2plus1d": "ResNet2Plus1d",
        "csn": "ResNet3dCSN", "tpn": "ResNet3dSlowOnly",
    },
    "pyslowfast": {"slowonly": "slow", "slowfast": "slowfast", "i3d": "i3d", "c2d": "c2d"},
    "pytorchvideo": {
        "slowonly": "slow", "slowfast": "slowfast", "i3d": "i3d", "c2d": "c2d", "csn": "csn", "r2plus1d": "r2plus1d",
    },
    "torchvision": {"torchvision": "", "r2plus1d": "r2plus1d_18"},
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.convert", description="Write a checkpoint with the names of another program."
    )
    parser.add_argument("source", type=Path, metavar="IN", help="any checkpoint that models.load reads")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write, name.pth")
    parser.add_argument("--to", required=True, choices=TARGETS, help="whose names; actionkit is this suite")
    parser.add_argument("--name", metavar="MODEL", help="which network IN is, for a file that does not say")
    parser.add_argument("--trust-checkpoint", action="store_true", help="let a pickled checkpoint run its code")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.out.suffix == ".safetensors":
        raise UsageError(f"{args.out}: what is written holds a config, too; type {args.out.with_suffix('.pth')}")

    from . import checkpoints

    net = checkpoints.load(args.source, name=args.name, trust=args.trust_checkpoint)
    convert(net, args.out, args.to)
    if args.json:
        console.print_json("convert", {"out": str(args.out), "to": args.to, "network": net.spec.name})
    else:
        print(f"{net.spec.name}: {args.source} -> {args.out} as {args.to} has it, read back and equal")
    return 0


def convert(net: Recognizer, out: Path, target: str) -> None:
    """Write ``net`` to ``out`` with the names of ``target``, one of ``TARGETS``.

    Raises ``CheckpointError``, and writes nothing, when the target has no such network or would compute another one.
    """
    import torch

    from datakit.files import replacing

    from . import checkpoints, zoo
    from .checkpoints import identify

    if target == "actionkit":
        checkpoints.save(out, net)
        return
    spec = net.spec
    if spec.family not in FAMILIES[target]:
        raise CheckpointError(f"{target} has no {spec.family}; it has {', '.join(FAMILIES[target])}")
    if spec.input == "rgb-diff" or (spec.input == "flow" and target != "mmaction2"):
        raise CheckpointError(f"{target} has no input {spec.input}, which {spec.name} is fed with")
    network, defaults = arguments(spec), zoo.arguments_of(spec.family)
    for key in FIXED[target]:
        if key in network and identify.plain(network[key]) != identify.plain(defaults[key]):
            raise CheckpointError(
                f"{target} cannot hold {spec.name}: {key} is {network[key]} here and {defaults[key]} there"
            )
    state = {key: value.detach().cpu() for key, value in net.body.state_dict().items()}
    with replacing(out) as part:
        torch.save(document(spec, theirs(state, net.body, spec, target), target), part)
        check(spec, state, part, target)


def theirs(state: Mapping[str, Tensor], body: nn.Module, spec: ModelSpec, target: str) -> dict[str, Tensor]:
    """The state of a network with the keys and shapes of ``target``."""
    found = {}
    for key, value in state.items():
        renamed = renamed_for(key, body, spec, target)
        if target == "mmaction2" and looks_at_frames(spec) and renamed.startswith("backbone.") and value.ndim == 5:
            value = value if ".non_local_block." in renamed else value.squeeze(2)
        if target == "mmaction2" and spec.family == "slowfast" and key == "head.weight":
            slow = int(state["slow.res5.0.shortcut.conv.weight"].shape[0])
            value = value.roll(-slow, dims=1)  # [slow, fast] -> [fast, slow]
        if renamed == "classifier.1.weight":
            value = value[:, :, None, None, None]
        found[renamed] = value.clone()
    return found


def looks_at_frames(spec: ModelSpec) -> bool:
    """Whether mmaction2 has it with 2D kernels."""
    return spec.family == "c2d" or spec.num_segments is not None


def renamed_for(key: str, body: nn.Module, spec: ModelSpec, target: str) -> str:
    rules = {
        "mmaction2": MMACTION2, "pyslowfast": PYSLOWFAST, "pytorchvideo": PYTORCHVIDEO, "torchvision": TORCHVISION,
    }[target]  # fmt: skip
    renamed = key
    for pattern, replacement in rules:
        renamed = re.sub(pattern, replacement, renamed)
    if target == "mmaction2":
        # A pool in front of g and phi makes a list of them.
        renamed = renamed.replace(".@.", ".0." if arguments(spec).get("non_local_pool") else ".")
        return shift_wrapped(renamed, key, body, arguments(spec))
    if target == "pytorchvideo":
        pooled = arguments(spec).get("with_pool2")  # by a block of its own behind res2
        if pooled and (match := re.match(r"blocks\.([2-4])\.", renamed)):
            return f"blocks.{int(match[1]) + 1}.{renamed.removeprefix(match[0])}"
        if not pooled and spec.family != "slowfast":
            return re.sub(r"^blocks\.6\.", "blocks.5.", renamed)
    if target == "torchvision" and spec.network.get("arch") == "s3d":
        return renamed.replace("fc.", "classifier.1.") if key.startswith("head.") else renamed
    return renamed


def shift_wrapped(renamed: str, key: str, body: nn.Module, network: Mapping[str, Any]) -> str:
    """mmaction2's TSM wraps what it shifts in ``net``, and the blocks before a non-local one in ``block``."""
    match = re.match(r"(res(\d)\.(\d+))\.(.*)", key)
    if match is None or not network.get("shift_div"):
        return renamed
    block, prefix = body.get_submodule(match[1]), f"backbone.layer{int(match[2]) - 1}."
    inner = renamed.removeprefix(f"{prefix}{match[3]}.")
    if getattr(block, "shift_div", None):
        if "widen_factor" in network:
            inner = inner.replace("conv.0.", "conv.0.net.", 1)
        elif network["shift_place"] == "block":
            inner = f"net.{inner}"
        else:
            inner = inner.replace("conv1.conv.", "conv1.conv.net.", 1)
    if f"res{match[2]}_{match[3]}" in getattr(body, "non_local", ()):
        inner = f"block.{inner}"
    pooled = "net." if network.get("temporal_pool") and match[2] == "3" else ""
    return f"{prefix}{pooled}{match[3]}.{inner}"


def arguments(spec: ModelSpec) -> dict[str, Any]:
    """Constructor's arguments of a network, defaults included."""
    from . import zoo

    return {**zoo.arguments_of(spec.family), **spec.network}


def document(spec: ModelSpec, state: Mapping[str, Tensor], target: str) -> dict[str, Any]:
    """What a file of ``target`` holds; with it goes what no key tells, as a config of that program."""
    if target == "mmaction2":
        return {"meta": {"config": mmaction2_config(spec)}, "state_dict": dict(state)}
    if target == "torchvision":
        return dict(state)
    return {"model_state": dict(state), "cfg": pyslowfast_config(spec, target)}


def mmaction2_config(spec: ModelSpec) -> str:
    network = arguments(spec)
    backbone: dict[str, Any] = {"type": FAMILIES["mmaction2"][spec.family]}
    if spec.family == "tpn" and spec.num_segments:
        backbone["type"] = "ResNetTSM"
    for key in ("with_pool1", "with_pool2", "conv1_stride_t", "pool1_stride_t", "resample_rate", "speed_ratio",
                "shift_div", "shift_place", "temporal_pool", "bn_frozen"):  # fmt: skip
        if key in network:
            backbone[key] = network[key]
    if spec.family == "csn":
        backbone["norm_cfg"] = {"type": "BN3d", "eps": network["eps"]}
    if any(map(bool, network.get("non_local", ()))):
        backbone["non_local_cfg"] = {"mode": network["non_local_mode"], "use_scale": network["non_local_scale"]}
    model: dict[str, Any] = {"backbone": backbone, "cls_head": {"num_classes": spec.num_classes}}
    if spec.num_segments:
        backbone["num_segments"] = spec.num_segments
    if spec.family == "tpn":
        scales = list(network["temporal_scales"])
        model["neck"] = {
            "type": "TPN", "flow_type": network["flow_type"], "temporal_modulation_cfg": {"downsample_scales": scales},
        }  # fmt: skip
    sampler = {"type": "SampleFrames", "clip_len": spec.clip_len, "frame_interval": spec.frame_interval}
    stacked = spec.num_segments is not None and spec.input == "flow"
    pipeline = [
        {**sampler, "num_clips": spec.num_segments or 1},
        {"type": "Normalize", "mean": list(spec.mean), "std": list(spec.std)},
        {"type": "FormatShape", "input_format": "NCHW_Flow" if stacked else "NCHW" if spec.num_segments else "NCTHW"},
    ]
    return f"model = {model!r}\ntest_pipeline = {pipeline!r}\n"


def pyslowfast_config(spec: ModelSpec, target: str) -> str:
    network = arguments(spec)
    arch = FAMILIES[target][spec.family]
    if arch in ("i3d", "c2d") and not network["with_pool2"]:
        arch += "_nopool"
    sections: dict[str, dict[str, Any]] = {
        "DATA": {
            "MEAN": [value / 255 for value in spec.mean], "NUM_FRAMES": spec.clip_len,
            "SAMPLING_RATE": spec.frame_interval, "STD": [value / 255 for value in spec.std],
            "TRAIN_CROP_SIZE": spec.train_crop_px,
        },
        "MODEL": {"ARCH": arch, "NUM_CLASSES": spec.num_classes},
    }  # fmt: skip
    if any(map(bool, network.get("non_local", ()))):
        softmax = network["non_local_mode"] == "embedded_gaussian"
        sections["NONLOCAL"] = {"INSTANTIATION": "softmax" if softmax else "dot_product"}
    if spec.family == "slowfast":
        sections["SLOWFAST"] = {"ALPHA": network["resample_rate"], "FUSION_KERNEL_SZ": network["fusion_kernel"]}
    lines = []
    for section, values in sections.items():
        lines.append(f"{section}:")
        for key, value in values.items():
            if isinstance(value, list):
                lines += [f"  {key}:", *(f"  - {item!r}" for item in value)]
            else:
                lines.append(f"  {key}: {value}")
    return "\n".join(lines) + "\n"


def check(spec: ModelSpec, state: Mapping[str, Tensor], written: Path, target: str) -> None:
    """Read a file back. Raises ``CheckpointError`` when it is not the network of ``spec`` with these weights."""
    import torch

    from . import checkpoints, zoo

    try:
        # What no key tells stands in the config beside them; torchvision has one network of each kind.
        back = checkpoints.load(
            written, name=spec.network.get("arch", "r2plus1d_18") if target == "torchvision" else None
        )
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{written}: ")
        raise CheckpointError(f"{target} cannot hold {spec.name}: {reason}") from error
    if back.spec.family == spec.family:
        ours, other = (written_out(arguments(each)) for each in (spec, back.spec))
        different = [key for key in ours if key not in WITHOUT_EFFECT and ours[key] != other.get(key)]
        if different:
            says = ", ".join(f"{key} {other.get(key)} where {spec.name} has {ours[key]}" for key in different)
            raise CheckpointError(f"{target} computes another network from such weights: {says}")
        got = back.body.state_dict()
        wrong = [key for key, value in state.items() if not torch.equal(got[key], value)]
    else:  # GluonCV's R(2+1)D is torchvision's, under other keys
        net = zoo.Recognizer(zoo.hollow(spec), spec).eval()
        net.body.load_state_dict(dict(state), assign=True)
        x = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wrong = [] if torch.allclose(net(x), back(x), rtol=1e-4, atol=1e-5) else ["the logits"]
    if wrong:
        raise CheckpointError(f"{target} cannot hold {spec.name}: {', '.join(wrong[:5])} came back changed")


def written_out(network: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in one form: one value a block where a stage may have one for all its blocks, lists for tuples."""
    from .checkpoints.identify import plain
    from .nets.resnet3d import STAGES, per_block

    found = {key: plain(value) for key, value in network.items()}
    for key in ("inflate", "slow_inflate", "fast_inflate", "non_local"):
        depth = found.get("fast_depth") if key == "fast_inflate" else None
        if key in found:
            found[key] = per_block(found[key], STAGES[depth or found["depth"]][1])
    return found


if __name__ == "__main__":
    console.run(main)
