"""Where the real files are: ``shared/`` beside the checkout, or ``SHARED=``. Tests skip without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests run side by side on few cores: OpenMP's threads, waiting for one another, would burn most of them. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are for the tests that ask for them, -m needs_cuda: what the others expect is of a processor."""
    if "needs_cuda" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "golden").is_dir():
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(f"REQUIRE_ALL is set and {folder} is not there")
        pytest.skip(f"needs the real files in {folder} (SHARED= points elsewhere)")
    return folder


@pytest.fixture(scope="session")
def videos(shared: Path) -> Path:
    return shared / "videos"


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"
