"""Which copy of the videos should I keep?

    python -m examples.which_preprocessing [DIR DIR...]

The same checkpoint tested on several copies, such as 256p, 320p and 340x256: all pairs with Holm's correction, and what
the smallest copy could cost at worst. Writes preprocessing.html, and preprocessing.md for a README.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from datakit import console, files
from evalkit import compare, metrics, report, scores, table

from . import made


def main(arguments: list[str] | None = None) -> int:
    dirs = [Path(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    with tempfile.TemporaryDirectory() as folder:
        dirs = dirs or generated(Path(folder))
        sets = [scores.load(path) for path in dirs]
        report.write(dirs, "preprocessing.html", across_copies=True)
        files.write_text(Path("preprocessing.md"), table.markdown(table.rows(table.load(dirs))))
    names = report.page.names(dirs)
    tops = {name: metrics.summary(one)["top1"] for name, one in zip(names, sets, strict=True)}
    best = max(tops, key=lambda name: tops[name])
    print("\n".join(f"{name:12} top-1 {100 * top1:.2f}" for name, top1 in tops.items()))
    for pair in compare.compare_all(sets, names, across_copies=True):
        print(pair.verdict)
        if best in pair.names:
            other = next(name for name in pair.names if name != best)
            loss = pair.high if pair.names[1] == best else -pair.low
            print(f"  keeping {other} alone costs at most {100 * loss:.2f} points")
    print("written: preprocessing.html, preprocessing.md")
    return 0


def generated(folder: Path) -> list[Path]:
    """One network on three copies: fixed 340x256 is a little worse, the other two are alike."""
    ids = [f"clip{number:05d}" for number in range(900)]
    skills = {"256p": 2.2, "320p": 2.2, "340x256": 1.95}
    sets = {
        name: made.scores(ids, skill=skill, copy=number, set="made-val", media=f"{name}-{number:010d}")
        for number, (name, skill) in enumerate(skills.items())
    }
    return made.save(folder, **sets)


if __name__ == "__main__":
    console.run(lambda _: main())
