"""My checkpoint is one point off: why?

    python -m examples.one_point_off [MINE THEIRS]

Says whether the two numbers may be compared and differ beyond chance, and takes the difference apart: clips that are
missing, clips of the list, views, crops, aggregation, and what is left over for what no file can undo.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from datakit import console
from datakit.errors import NotComparable
from evalkit import compare, remarks, scores, why

from . import made


def main(arguments: list[str] | None = None) -> int:
    dirs = [Path(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = (scores.load(path) for path in dirs or generated(Path(folder)))
    names = ("mine", "theirs")
    try:
        print(compare.describe(compare.compare(mine, theirs, names=names)))
    except NotComparable as error:
        print(f"As they stand: {error}\n\nOn the clips that both scored:")
        print(compare.describe(compare.compare(mine, theirs, names=names, common=True, across_copies=True)))
    print(f"\n{why.describe(why.why(mine, theirs, names=names))}")
    for name, side in zip(names, (mine, theirs), strict=True):
        for line in remarks.lines(side):
            print(f"{name}: {line}")
    return 0


def generated(folder: Path) -> list[Path]:
    """The same network: mine lacks 15 of the clips and looks at one view of a video, theirs at 30."""
    ids = [f"clip{number:05d}" for number in range(1200)]
    setting = {"set": "made-val", "media": "320p-0123456789"}
    theirs = made.scores(ids, mode="accurate", **setting)
    whole = made.scores(ids, mode="efficient", keep_views=False, **setting)
    absent = [
        {"id": clip_id, "label": name, "reason": "the file ends early"}
        for clip_id, name in zip(ids[:15], whole.label_names(), strict=False)
    ]
    mine = replace(whole.select(list(range(15, len(ids)))), missing=absent)
    return made.save(folder, mine=mine, theirs=theirs)


if __name__ == "__main__":
    console.run(lambda _: main())
