"""mmaction2's own reading of 10 x 3 views, for benchmarks/evaluate.py --peers, which runs this in another environment.

Needs mmaction2 1.2.0, mmcv-lite 2.1, mmengine 0.10, decord 0.6 and av, and nothing of this suite. Of mmaction2 only the
transforms are loaded: the package itself asks for a compiled mmcv. One request a line on stdin, one answer on stdout:

    {"path", "decoder": "decord" | "pyav", "clip_len", "frame_interval", "num_clips", "save"}
    {"cpu_s", "peak_mib": above what the process held before}

``save``: where the views go as .npy, uint8 [30, C, T, 256, 256]; ``null`` for nowhere.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import mmaction
import numpy as np

ROOT = Path(mmaction.__file__).parent


def transforms(name: str) -> Any:
    """``mmaction.datasets.transforms.NAME`` without what the packages around it import."""
    for package in ("datasets", "datasets/transforms"):
        module = types.ModuleType("mmaction." + package.replace("/", "."))
        module.__path__ = [str(ROOT / package)]
        sys.modules.setdefault(module.__name__, module)
    return importlib.import_module(f"mmaction.datasets.transforms.{name}")


def pipeline(request: dict[str, Any]) -> list[Any]:
    loading, processing, formatting = (transforms(name) for name in ("loading", "processing", "formatting"))
    two_dimensional = request["clip_len"] == 1
    sample = loading.SampleFrames(
        clip_len=request["clip_len"],
        frame_interval=request["frame_interval"],
        num_clips=request["num_clips"],
        test_mode=True,
    )
    first, last = {
        "decord": (loading.DecordInit, loading.DecordDecode),
        "pyav": (loading.PyAVInit, loading.PyAVDecode),
    }[request["decoder"]]
    return [
        first(),
        sample,
        last(),
        processing.Resize(scale=(-1, 256)),
        processing.ThreeCrop(crop_size=256),
        formatting.FormatShape(input_format="NCHW" if two_dimensional else "NCTHW"),
    ]


def read(steps: list[Any], path: str) -> np.ndarray:
    results: dict[str, Any] = {"filename": path, "start_index": 0, "modality": "RGB", "label": 0}
    for step in steps:
        results = step(results)
    return results["inputs"] if "inputs" in results else results["imgs"]


def resident_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def main() -> None:
    import cv2

    cv2.setNumThreads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # mmengine logs to stdout
    for line in sys.stdin:
        request = json.loads(line)
        steps = pipeline(request)
        before = resident_kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        start = time.process_time()
        views = read(steps, request["path"])
        cpu_s = time.process_time() - start
        peak_mib = (resident_kib("VmHWM") - before) / 1024
        if request["save"]:
            np.save(request["save"], views)
        del views
        print(json.dumps({"cpu_s": cpu_s, "peak_mib": peak_mib}), file=answers, flush=True)


if __name__ == "__main__":
    main()
