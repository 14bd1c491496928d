"""The processes of torchrun that share one test: who takes which clips, and how the first one hears of the rest.

    torchrun --nproc-per-node 4 -m evalkit.run ...

Only short messages go between them, by gloo, whatever the networks run on; scores go through files of ``--out``, which
all of them must see. So a run that is stopped goes on with any number of processes.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # one share may take much longer than another


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """``rank`` of ``size`` processes; on this machine number ``local`` of ``local_size``."""

    rank: int
    size: int
    local: int
    local_size: int

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``size``-th item: the same for all processes that hold the same items, none twice, none left out."""
        return list(items[self.rank :: self.size])

    def told(self, message: Any) -> Any:
        """The first process's ``message``, in all of them."""
        if self.size == 1:
            return message
        import torch.distributed as dist

        box = [message]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collected(self, message: T) -> list[T]:
        """Everybody's messages in the first process, an empty list in the others. Waits until all have come."""
        if self.size == 1:
            return [message]
        import torch.distributed as dist

        box: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(message, box, dst=0)
        return box or []


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started; the only one when it did not."""
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    ranks = Ranks(**{field: int(os.environ.get(name, "size" in field)) for field, name in names.items()})
    if ranks.size == 1:
        yield ranks
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
