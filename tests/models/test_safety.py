"""Files that want to run something. An attack would leave a file behind; none does, and the message names it."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import io
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from datakit.errors import CheckpointError
from models.checkpoints import files


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """What an attack would make; it must not be there afterwards."""
    path = tmp_path / "trapped"
    yield path
    assert not path.exists()


class Call:
    """Pickled as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


# What is called -> how the message names it.
ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (lambda trap: Call(os.system, f"touch {trap}"), rf"{os.name}\.system"),
    "subprocess": (lambda trap: Call(subprocess.Popen, ["touch", str(trap)]), r"(subprocess|commands)\.Popen"),
    "eval": (lambda trap: Call(eval, f"open({str(trap)!r}, 'w')"), r"(builtins|__builtin__)\.eval"),
    "exec": (lambda trap: Call(exec, f"open({str(trap)!r}, 'w')"), r"(builtins|__builtin__)\.exec"),
    "open": (lambda trap: Call(open, str(trap), "w"), r"\w+\.open"),
    "touch": (
        lambda trap: Call(pathlib.Path.touch, trap),
        r"(builtins|__builtin__)\.getattr|pathlib(\._local)?\.Path\.touch",
    ),
    "import": (lambda trap: Call(__import__, "antigravity"), r"(builtins|__builtin__)\.__import__"),
    "getattr": (lambda trap: Call(getattr, os, "system"), r"(builtins|__builtin__)\.getattr|module"),
    "torch.load": (lambda trap: Call(torch.load, str(trap)), r"torch\.serialization\.load"),
    "torch.hub": (lambda trap: Call(torch.hub.load, str(trap)), r"torch\.hub\.load"),
    "code": (lambda trap: Call(types.FunctionType, "x"), r"(builtins|__builtin__|types)\.(function|FunctionType)"),
    "numpy.load": (lambda trap: Call(np.load, str(trap)), r"numpy\.load|numpy\.lib\.\w+\.load"),
}
# Where it hides.
PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda evil: evil,
    "weights": lambda evil: {"state_dict": {"backbone.conv1.conv.weight": evil}},
    "meta": lambda evil: {"meta": {"hook_msgs": [(1, {"x": evil})]}, "state_dict": {"a.weight": torch.zeros(2)}},
    "optimizer": lambda evil: {"model_state": {"a": torch.zeros(2)}, "optimizer_state": {"param_groups": [evil]}},
    "namespace": lambda evil: {"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(lr=evil)},
    "array": lambda evil: {"blobs": {"conv1_w": np.array([evil], dtype=object)}},
    "key": lambda evil: {"state_dict": collections.OrderedDict({"a": torch.zeros(2)}), "epoch": (evil,)},
}
# How it is written, and under which ending.
FORMS: dict[str, tuple[str, Callable[[Any, Path], None]]] = {
    "zip": ("x.pth", lambda value, path: torch.save(value, path)),
    "zip, pickle 4": ("x.pth", lambda value, path: torch.save(value, path, pickle_protocol=4)),
    "legacy, pickle 5": (
        "x.pth",
        lambda value, path: torch.save(value, path, pickle_protocol=5, _use_new_zipfile_serialization=False),
    ),
    "legacy": ("x.pyth", lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False)),
    "pickle 0": ("x.pkl", lambda value, path: path.write_bytes(pickle.dumps(value, 0)) and None),
    "pickle 2": ("x.pkl", lambda value, path: path.write_bytes(pickle.dumps(value, 2)) and None),
    "pickle 5": ("x.pth", lambda value, path: path.write_bytes(pickle.dumps(value, 5)) and None),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", FORMS)
def test_calls_are_refused_by_name(attack: str, form: str, trap: Path, tmp_path: Path) -> None:
    make, named = ATTACKS[attack]
    name, write = FORMS[form]
    try:
        write({"state_dict": {"a": make(trap)}}, tmp_path / name)
    except (TypeError, AttributeError, pickle.PicklingError):
        pytest.skip("cannot be pickled in this form")
    with pytest.raises(CheckpointError, match=rf"x\.\w+: .*({named})"):
        models.load(tmp_path / name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_wherever_they_hide(place: str, form: str, trap: Path, tmp_path: Path) -> None:
    name, write = FORMS[form]
    write(PLACES[place](Call(os.system, f"touch {trap}")), tmp_path / name)
    # A plain pickle may hold no torch tensors either; whatever comes first is named.
    with pytest.raises(CheckpointError, match=rf"x\.\w+: .*({os.name}\.system|torch\._utils\._rebuild_tensor_v2)"):
        models.load(tmp_path / name)


def test_a_stand_in_is_no_way_round(trap: Path, tmp_path: Path) -> None:
    """The state of an allowed object is data, and what is in it is looked at like everything else."""
    evil = Call(os.system, f"touch {trap}")
    torch.save(
        {"model": {"a": torch.zeros(2)}, "args": Call(argparse.Namespace, state={"x": evil})}, tmp_path / "x.pth"
    )
    with pytest.raises(CheckpointError, match=rf"{os.name}\.system"):
        models.load(tmp_path / "x.pth")


def test_only_with_trust(trap: Path, tmp_path: Path) -> None:
    """It is the caller who lets a file run its code, and then it does."""
    ran = tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Call(os.mkdir, str(ran))}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"type: models\.load\(\.\.\., trust=True\), --trust-checkpoint"):
        models.load(tmp_path / "x.pth")
    assert not ran.exists()
    with pytest.raises(CheckpointError, match="no framework known here"):
        models.load(tmp_path / "x.pth", trust=True)
    assert ran.exists()


def test_tar_files_of_the_first_torch(trap: Path, tmp_path: Path) -> None:
    """They hold a pickle, and members whose names lead out of the folder; nothing of them is unpacked."""
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w") as archive:
        parts = {
            "storages": pickle.dumps(0),
            "tensors": pickle.dumps(Call(os.system, f"touch {trap}")),
            "pickle": pickle.dumps(Call(os.system, f"touch {trap}")),
            f"../{trap.name}": b"out",
            str(trap): b"out",
        }
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(CheckpointError, match=r"x\.pth: not a checkpoint that can be read"):
        models.load(path)


def test_members_that_lead_out_of_a_zip(trap: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"../{trap.name}", "out")
        archive.writestr(f"x/data/../../{trap.name}", "out")
    with pytest.raises(CheckpointError, match=r"x\.pth: (no framework known here|not a checkpoint)"):
        models.load(path)


def test_names_that_are_put_together_on_the_stack(trap: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x01x\x85R.")
        archive.writestr("x/version", "3")
    with pytest.raises(CheckpointError, match=r"holds the object posix\.system"):
        models.load(path)


def test_a_protocol_that_torch_does_not_read_is_said(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"pickle_protocol=2"):
        models.load(tmp_path / "x.pth")


def test_a_pickle_in_a_zip_of_another_name(trap: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Call(os.system, f"touch {trap}"), 2))
        archive.writestr("archive/version", "3")
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*({os.name}\.system|not a checkpoint)"):
        models.load(path)


def test_a_program_of_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr("x/constants.pkl", pickle.dumps((), 2))
        archive.writestr("x/code/__torch__.py", "class X(Module): pass")
        archive.writestr("x/version", "3")
    with pytest.raises(CheckpointError, match=r"x\.pt: "):
        models.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"\x80\x02", b"PK\x03\x04", b"<html>404</html>", b"\x80\x02}q\x00.", b"\x80\x05\x95" + b"\xff" * 12,
     b"\x80\x02]" + b"(" * 5000, struct.pack("<Q", 1 << 62) + b"{}"],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["pth", "pkl", "safetensors"])
def test_files_that_are_none(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.{ending}: "):
        models.load(path)


def test_cut_anywhere(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(64)}}, whole)
    plain = pickle.dumps({"blobs": {"conv1_w": np.zeros(64)}}, 4)
    for content, name in ((whole.getvalue(), "x.pth"), (plain, "x.pkl")):
        for share in np.linspace(0.02, 0.98, 25):
            (tmp_path / name).write_bytes(content[: int(share * len(content))])
            with pytest.raises(CheckpointError):
                models.load(tmp_path / name)


# --- what is inert loads ----------------------------------------------------------------------------------------------


def foreign_class(module: str, name: str, *, table: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class that pickles under the name of one that is not installed here."""
    base = dict if table else object
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        if full not in sys.modules:
            monkeypatch.setitem(sys.modules, full, types.ModuleType(full))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


INERT = [
    ("mmcv.utils.config", "ConfigDict", True),
    ("mmcv.utils.config", "Config", False),
    ("mmengine.config.config", "ConfigDict", True),
    ("mmengine.logging.history_buffer", "HistoryBuffer", False),
    ("addict.addict", "Dict", True),
    ("fvcore.common.config", "CfgNode", True),
    ("yacs.config", "CfgNode", True),
    ("pytorch_lightning.utilities.parsing", "AttributeDict", True),
    ("pathlib._local", "PureWindowsPath", False),  # a path, as Python 3.13 writes it
]


@pytest.mark.parametrize(("module", "name", "table"), INERT)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_training_programs_are_kept_as_data(
    module: str, name: str, table: bool, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        made = foreign_class(module, name, table=table, monkeypatch=patch)()
        if table:
            made["lr"] = np.float64(0.1)
        else:
            made.history = np.arange(5.0)
        numbers = {"lr": np.float64(0.1), "iter": np.int64(3), "done": np.bool_(True), "loss": np.float32(2)}
        meta = {"x": made, "at": pathlib.PurePosixPath("a/b"), "numbers": numbers, "array": np.eye(2)}
        state = models.create("slowonly_tiny", num_classes=3).body.state_dict()
        spec = models.create("slowonly_tiny", num_classes=3).spec
        top = {"format": "actionkit/1", "spec": spec.to_dict(), "state_dict": state, "meta": meta}
        torch.save(top, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    net = models.load(tmp_path / "x.pth")
    assert net.spec.name == "slowonly_tiny"
    assert torch.equal(net.body.head.weight, state["head.weight"])


@pytest.mark.parametrize(
    "value",
    [collections.deque([1, 2], 3), collections.defaultdict(list, a=[1]), frozenset("ab"), {"ab"}, range(3), slice(1),
     datetime.date(2020, 1, 1), datetime.timedelta(1), decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1j, int],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_values_of_the_standard_library(value: Any, zipped: bool, tmp_path: Path) -> None:
    top = {"state_dict": {"a.weight": torch.ones(2)}, "meta": {"x": [value]}}
    torch.save(top, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(files.read(tmp_path / "x.pth").state["a.weight"], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_history_of_mmengine_brings_its_methods_along(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every checkpoint that its runner writes has it: message_hub, log_scalars."""

    def mean(self: Any) -> None:
        raise AssertionError

    mean.__module__, mean.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer.mean"
    with monkeypatch.context() as patch:
        kind = foreign_class("mmengine.logging.history_buffer", "HistoryBuffer", table=False, monkeypatch=patch)
        kind.mean = mean
        made = kind()
        made._log_history, made._statistics_methods = np.arange(5.0), {"mean": mean}
        net = models.create("slowonly_tiny", num_classes=3)
        top = {"format": "actionkit/1", "spec": net.spec.to_dict(), "state_dict": net.body.state_dict()}
        top["message_hub"] = {"log_scalars": collections.OrderedDict({"train/loss": made})}
        torch.save(top, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert models.load(tmp_path / "x.pth").spec.name == "slowonly_tiny"


@pytest.mark.parametrize("owner", [pathlib.Path, argparse.Namespace, np.ndarray])
def test_methods_of_other_stand_ins_are_no_way_round(owner: Any, trap: Path, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "x": Call(getattr, owner, "__init__")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds the object builtins\.getattr"):
        models.load(tmp_path / "x.pth")


def test_other_objects_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        made = foreign_class("somebody.runner", "Hook", table=False, monkeypatch=patch)()
        torch.save({"state_dict": {"a": torch.zeros(2)}, "meta": made}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=re.escape("x.pth: holds the object somebody.runner.Hook")):
        models.load(tmp_path / "x.pth")


def test_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.manual_seed(0)
    net = models.create("slowonly_r50_8x8", num_classes=3)
    from models import convert

    state = convert.theirs(net.body.state_dict(), net.body, net.spec, "mmaction2")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "slowonly_r50_8x8x1.safetensors")
    loaded = models.load(tmp_path / "slowonly_r50_8x8x1.safetensors")
    assert loaded.spec.name == "slowonly_r50_8x8"
    assert torch.equal(loaded.body.head.weight, net.body.head.weight)
