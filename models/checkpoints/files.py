"""A checkpoint file as plain values and tensors, without running what is in it.

``torch.load(weights_only=True)`` builds tensors and containers only. Training programs add numpy numbers and objects of
mmcv or mmengine to ``meta``; for these, and nothing else, stand-ins are offered that keep what they are given and do
nothing. Any other object is refused by name.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datakit.errors import CheckpointError

from . import pickles

# Where the weights may be, first match wins: averaged weights before the raw ones beside them. In mmengine's files the
# averaged weights are under "state_dict" ("ema_state_dict" holds what they replaced), so that name is not here.
# "blobs" is Caffe2's.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state", "model", "blobs")

INERT = (
    "argparse.Namespace", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta",
    "decimal.Decimal", "fractions.Fraction", "numpy.dtype", "numpy.ndarray", "uuid.UUID", "typing.Any",
    "builtins.bool", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list",
    "builtins.range", "builtins.slice", "builtins.str", "builtins.tuple",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode",
    *(f"{module}.{kind}" for module in ("pathlib", "pathlib._local")  # the second in Python 3.13 alone
      for kind in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
    "mmcv.utils.config.Config", "mmengine.config.config.Config",
)  # fmt: skip
INERT_TABLES = (
    "addict.addict.Dict", "fvcore.common.config.CfgNode", "yacs.config.CfgNode",
    "mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict",
    "lightning.fabric.utilities.data.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)  # fmt: skip
# What torch makes by itself, besides tensors.
PLAIN = (
    "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set", "collections.Counter",
    "collections.OrderedDict",
)  # fmt: skip
# What reading a file that is cut, or was never a checkpoint, may raise.
UNREADABLE = (
    RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, struct.error, ImportError, AttributeError,
    OverflowError, MemoryError, AssertionError,
)  # fmt: skip
# How torch names what it will not build, in its different messages.
UNSAFE = re.compile(r"(?:GLOBAL|class)\W+([\w.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """``state``: the weights, prefixes of wrappers removed; ``top``: everything at the file's top level;
    ``how``: where in the file the weights were; ``config_text``: the training config, when there is one."""

    state: dict[str, Tensor]
    top: Mapping[str, Any]
    how: str
    config_text: str | None


def read(path: Path, *, trust: bool = False) -> File:
    """Raises ``CheckpointError``: not there, not a checkpoint, or holding objects that could run code."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        loaded: Any = read_safetensors(path)
    else:
        loaded = read_pickle(path) if pickles.is_plain(path) else read_torch(path, trust=trust)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a table of weights")
    state, how = weights_in(loaded)
    if not state:
        raise CheckpointError(f"{path}: no weights in it (looked for {', '.join(WRAPPERS)} and at the top level)")
    return File(state=state, top=loaded, how=how, config_text=config_in(loaded))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs a package; type: pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_pickle(path: Path) -> Any:
    try:
        return pickles.read(path)
    except pickle.UnpicklingError as error:
        found = UNSAFE.search(str(error))
        what = f"holds the object {found[1]}, no array, number or text" if found else first_line(error)
        raise CheckpointError(f"{path}: not read: {what}") from error
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: not a checkpoint that can be read ({first_line(error)})") from error


def read_torch(path: Path, *, trust: bool) -> Any:
    try:
        with torch.serialization.safe_globals(stand_ins()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of a file is said below
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        found = UNSAFE.search(str(error)) or refused_in(path)
        if found is None:
            raise CheckpointError(
                f"{path}: not a checkpoint that can be read: damaged, or not pickled as torch.save does unless told "
                "otherwise (pickle_protocol=2)"
            ) from error
        what = found[1] if "." in found[1] else f"builtins.{found[1]}"  # torch leaves that out
        raise CheckpointError(
            f"{path}: holds the object {what}, no tensor or plain value: making it may run any program. "
            "If you know who wrote it and let it run its code, type: models.load(..., trust=True), --trust-checkpoint"
        ) from error
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: not a checkpoint that can be read ({first_line(error)})") from error


def refused_in(path: Path) -> re.Match[str] | None:
    """The first object of a file that is not allowed, where torch does not say which."""
    try:
        pickles.name_refused(path, {*PLAIN, *(name for _, name in stand_ins())})
    except pickle.UnpicklingError as error:
        return UNSAFE.search(str(error))
    except UNREADABLE:
        pass
    return None


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def weights_in(top: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """(the weights without ``module.`` prefixes, where they were)."""
    for name in WRAPPERS:
        inner = top.get(name)
        if isinstance(inner, Mapping):
            state, _ = weights_in(inner)
            if state:
                return state, name
    state = {key: value for key, value in top.items() if isinstance(value, Tensor) and key != "n_averaged"}
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state, "top level"


def config_in(top: Mapping[str, Any]) -> str | None:
    """mmaction2's config text: ``meta.config`` (0.x) or ``meta.cfg`` (1.x)."""
    meta = top.get("meta")
    if isinstance(meta, Mapping):
        for key in ("cfg", "config"):
            if isinstance(meta.get(key), str):
                return str(meta[key])
    return None


class Inert:
    """Takes the place of an object: keeps its state, has no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class History(Inert):
    """For mmengine's HistoryBuffer, which brings its methods along, written as getattr(HistoryBuffer, name)."""


def inert_getattr(owner: Any, name: Any) -> Inert:
    if owner is not History:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return Inert(name)


def inert_list(*_: Any) -> list[Any]:
    return []


def inert_table(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def inert_scalar(dtype: Any, raw: Any = None) -> Any:
    """numpy's way to write a number: kept as its type and bytes, for nobody reads them."""
    return Inert(dtype, raw)


def inert_array(*arguments: Any) -> Inert:
    return Inert(*arguments)


def stand_ins() -> list[Any]:
    """(stand-in, full name of what it stands for), as ``torch.serialization.safe_globals`` takes them."""
    pairs: list[Any] = []
    for core in ("numpy.core", "numpy._core"):
        pairs += [(inert_scalar, f"{core}.multiarray.scalar"), (inert_array, f"{core}.multiarray._reconstruct")]
    pairs += [(Inert, name) for name in INERT]
    pairs += [(History, "mmengine.logging.history_buffer.HistoryBuffer"), (inert_getattr, "builtins.getattr")]
    pairs += [(inert_list, "collections.deque"), (inert_table, "collections.defaultdict")]
    pairs += [(OrderedDict, name) for name in INERT_TABLES]  # the one subclass of dict that torch fills
    return pairs
