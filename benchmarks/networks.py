"""Every golden network against the logits of the program it comes from; then in bf16 and with channels last.

    python benchmarks/networks.py --golden DIR [--device cuda] [--only 'slow*'] [--variants bf16,channels-last]

DIR holds mmaction2/models and others: keys and shapes of the original networks, the rule that makes their weights from
these, an input, the logits. The weights go through a file and models.load, as a user's would. Prints a table:

    network    its golden name and what models.load takes it for
    fp32       max|difference| / max|logit|; the gate is 2e-5 for mmaction2's networks and 1e-4 for the others, which
               differ by 1e-5 between two CPU backends of their own
    variants   the same against our fp32 logits, and whether the highest logit is the same one

Exit code 1 when a network is above its gate. On a GPU fp32 means fp32: TF32 is off.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import models

GATES = {"mmaction2": 2e-5, "others": 1e-4}
# Golden network -> the file name that people have it under, where the golden's own does not tell.
FILES = {
    "psf_slow_4x16_r50": "SLOW_4x16_R50.pyth",
    "psf_slow_nln_8x8_r50": "SLOW_NLN_8x8_R50.pyth",
    "psf_slowfast_4x16_r50": "SLOWFAST_4x16_R50.pyth",
    "psf_i3d_8x8_r50": "I3D_8x8_R50.pyth",
    "psf_i3d_nln_8x8_r50": "I3D_NLN_8x8_R50.pyth",
    "psf_c2d_8x8_r50": "C2D_8x8_R50.pyth",
    "ptv_slow_r50": "SLOW_8x8_R50.pyth",
    "ptv_slowfast_r50": "SLOWFAST_8x8_R50.pyth",
    "ptv_i3d_r50": "I3D_8x8_R50.pyth",
    "ptv_csn_r101": "CSN_32x2_R101.pyth",
    "gcv_resnet50_v1b_tsn": "resnet50_v1b_kinetics400.pth",
    "gcv_ircsn_v2_resnet152": "ircsn_v2_resnet152_f32s2_kinetics400.pth",
}
# And the name to type, where no file name of the original speaks of it either.
NAMES = {"slowonly_r50_nl_eg_8x8": "slowonly_r50_nl_8x8", "i3d_r50_nl_dot_32x2": "i3d_r50_nl_dot_product_32x2"}
VARIANTS = ("bf16", "channels-last", "bf16+channels-last")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    name: str
    group: str
    state: dict[str, Tensor]
    x: Tensor
    logits: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="golden networks of such names")
    parser.add_argument("--variants", default="", help=f"of {', '.join(VARIANTS)}; or all")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the table there too")
    args = parser.parse_args(arguments)
    variants = VARIANTS if args.variants == "all" else tuple(filter(None, args.variants.split(",")))
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"--variants {', '.join(unknown)}: there are {', '.join(VARIANTS)}")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    head = ["network", "taken for", "fp32", *(column for name in variants for column in (name, "top-1"))]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    rows = []
    for golden in goldens(args.golden, args.only):
        row = compared(golden, variants, args.device)
        cells = [row["network"], row["taken_for"], f"{row['fp32']:.1e}{'' if row['good'] else ' TOO LARGE'}"]
        for name in variants:
            cells += [f"{row[name]['difference']:.1e}", "same" if row[name]["same_top1"] else "OTHER"]
        print("| " + " | ".join(cells) + " |", flush=True)
        rows.append(row)
    worst = max((row["fp32"] for row in rows), default=0.0)
    print(f"\n{len(rows)} networks on {args.device}, torch {torch.__version__}; largest difference in fp32 {worst:.1e}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["good"] for row in rows) else 1


def goldens(root: Path, pattern: str) -> Iterator[Golden]:
    """One at a time: the larger ones take half a gigabyte."""
    rule = imported(root / "mmaction2" / "models" / "golden_rule.py")
    for path in sorted((root / "mmaction2" / "models").glob("*.npz")):
        if path.stem == "views" or not fnmatch.fnmatchcase(path.stem, pattern):
            continue
        listed = json.loads(path.with_suffix(".json").read_text())
        state = {key: torch.from_numpy(np.asarray(rule.tensor(key, shape))) for key, shape, _ in listed["state_dict"]}
        x = torch.from_numpy(rule.input_tensor(listed["input_shape"]))
        # [views, channels, frames, H, W] of 3D networks, [1, segments, channels, H, W] of 2D ones
        x = x.flatten(0, 1) if x.ndim == 6 else x.transpose(1, 2)
        logits = torch.from_numpy(np.load(path)["logits"])
        yield Golden(name=path.stem, group="mmaction2", state=state, x=x, logits=logits)
    rule = imported(root / "others" / "weights_rule.py")
    for path in sorted((root / "others" / "models").glob("*.json")):
        if not fnmatch.fnmatchcase(path.stem, pattern):
            continue
        listed = json.loads(path.read_text())
        scales = listed.get("scale_keys_after_rule", {})
        state = {
            key: torch.from_numpy(rule.tensor_for(key, shape)) * scales.get(key, 1) for key, shape, _ in listed["keys"]
        }
        x = torch.from_numpy(rule.input_for(listed["input_shape"]))
        logits = torch.tensor(listed["logits_f32"]).reshape(listed["logits_shape"])
        yield Golden(name=path.stem, group="others", state=state, x=x, logits=logits)


def imported(path: Path) -> Any:
    location = importlib.util.spec_from_file_location(path.stem, path)
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


def compared(golden: Golden, variants: Sequence[str], device: str) -> dict[str, Any]:
    net = loaded(golden).to(device)
    x = golden.x.to(device)
    began = time.perf_counter()
    with torch.inference_mode():
        ours = net(x).float().cpu()
        found = difference(ours, golden.logits)
        row: dict[str, Any] = {
            "network": golden.name,
            "taken_for": f"{net.spec.name}, {net.spec.origin}",
            "fp32": found,
            "good": found < GATES[golden.group],
            "seconds": time.perf_counter() - began,
        }
        for name in variants:
            dense = torch.channels_last_3d if "channels-last" in name else torch.contiguous_format
            each, clip = net.to(memory_format=dense), x.contiguous(memory_format=dense)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled="bf16" in name):
                logits = each(clip).float().cpu()
            same = bool((logits.argmax(dim=1) == ours.argmax(dim=1)).all())
            row[name] = {"difference": difference(logits, ours), "same_top1": same}
    return row


def loaded(golden: Golden) -> models.Recognizer:
    name = golden.name.removeprefix("gcv_").removeprefix("tv_")
    file_name = FILES.get(golden.name, f"{name}.pth" if golden.group == "others" else f"{name}x1.pth")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file_name)
        torch.save(golden.state, path)
        return models.load(path, name=NAMES.get(golden.name))


def difference(ours: Tensor, golden: Tensor) -> float:
    return float((ours - golden).abs().max() / golden.abs().max())


if __name__ == "__main__":
    sys.exit(main())
