"""Files into networks: read without running code, renamed to our keys, every key accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datakit.errors import CheckpointError
from datakit.files import replacing

from .. import zoo
from . import caffe2, files, gluoncv, identify, mmaction2, published, pyslowfast, pytorchvideo, torchvision

FORMAT = "actionkit/1"
# Each has: recognises, whether a state is its framework's; families, of which a network may be; arguments, what keys
# and shapes tell of it and what its program always has; names, their keys to ours; adapt, a state with our keys;
# facts, what a config inside the file says; origin, which program wrote it; WORDS, what to read for what in file names;
# PRIORS, the clip of each family that is assumed aloud; MUST_BE_NAMED, families that the file name must speak of then;
# ASSUMED, which of the arguments not all its networks have, so that they are said aloud.
ADAPTERS = (mmaction2, torchvision, pyslowfast, caffe2, pytorchvideo, gluoncv)


def load(path: str | Path, name: str | None = None, trust: bool = False) -> zoo.Recognizer:
    """A network in evaluation mode from a checkpoint of ours or of one of ``ADAPTERS``.

    ``name``: one of ``models.list()`` or what its origin calls it, for a file that does not say what it is. ``trust``:
    let a pickle run its code.
    Raises ``CheckpointError``: not safe to read, unknown keys, missing keys, or no way to know which network it is.
    """
    path = Path(path)
    file = files.read(path, trust=trust)
    digests = (sha8(path), sha1_8(path))
    if file.top.get("format") == FORMAT:
        spec = our_spec(path, file.top, name)
        state = file.state
    else:
        adapter = next((adapter for adapter in ADAPTERS if adapter.recognises(file.state)), None)
        if adapter is None:
            keys = ", ".join([*file.state][:4])
            raise CheckpointError(f"{path}: no framework known here has such keys ({keys}, ...)")
        state = adapter.adapt(file.state)
        if not adapter.families(file.state) and name is None:
            keys = ", ".join([*file.state][:4])
            origin, _ = adapter.origin(file.top, path.name)
            published.refuse_elsewhere(path, origin, digests)
            raise CheckpointError(
                f"{path}: not a network that is built here, though {origin} ({keys}, ...); see models.list()"
            )
        spec = identify.foreign_spec(path, state, file, name=name, adapter=adapter, digests=digests)
    known = spec.known | {"weights": file.how}
    return assemble(path, dataclasses.replace(spec, weights=digests[0], known=known), state)


def save(path: str | Path, net: zoo.Recognizer, **extra: Any) -> None:
    """Write our own format: plain dicts and tensors, which load with ``weights_only=True``.

    ``extra``: more plain values beside the weights (epoch, metrics, ...).
    """
    state = {key: value.detach().cpu() for key, value in net.body.state_dict().items()}
    with replacing(path) as part:
        torch.save({"format": FORMAT, "spec": net.spec.to_dict(), "state_dict": state, **extra}, part)


def our_spec(path: Path, top: Mapping[str, Any], name: str | None) -> zoo.ModelSpec:
    try:
        spec = zoo.ModelSpec.from_dict(top["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its spec cannot be read ({error})") from error
    if name not in (None, spec.name):
        raise CheckpointError(f"{path}: holds {spec.name}, not {name}; leave the name out")
    return spec


def assemble(path: Path, spec: zoo.ModelSpec, state: Mapping[str, Tensor]) -> zoo.Recognizer:
    """The network of ``spec`` with exactly the weights of ``state``, in evaluation mode."""
    try:
        body = zoo.hollow(spec)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {spec.name} cannot be built ({error})") from error
    wrong = identify.mismatches(zoo.shapes(body), state)
    if wrong:
        raise CheckpointError(f"{path}: does not fit {spec.name}: {wrong}")
    # What may be absent is how many batches a batch norm has seen, which no result needs.
    whole = {key: state.get(key, torch.zeros((), dtype=torch.int64)) for key in body.state_dict()}
    whole = {key: value.float() if value.is_floating_point() else value for key, value in whole.items()}
    body.load_state_dict(whole, assign=True)
    return zoo.Recognizer(body, spec).eval()


def sha8(path: Path) -> str:
    """First 8 digits of the file's sha256: what mmaction2 writes at the end of a published file's name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def sha1_8(path: Path) -> str:
    """First 8 digits of the file's sha1: what GluonCV writes there."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()[:8]
