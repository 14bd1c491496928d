"""What does a choice cost? Train the same network on several copies of the data (or with several augmentations), with
several seeds, test all, and say which differences are larger than chance.

    python -m models.benchmark data NAME NETWORK --recipe R --variants 340x256,320p,256p
    python -m models.benchmark augment NAME NETWORK --recipe R --variants 256p --augments randaugment,mixup,cutmix

Each step is a command that can be typed, with a folder of its own below OUT. Stopped, the same command goes on.

    OUT/train/256p-s0/               models.train              OUT/report.md    what was found, as text and tables
    OUT/test/256p-s0/accurate/       evalkit.run               OUT/table.csv    the table alone
    OUT/test/256p-s0/on-320p/        the cross table           OUT/results.json everything that the text is made of
    .../finished.json                the step is done          OUT/report.html  the page of evalkit, first seed
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import manifests
from datakit import console, files
from datakit.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_SOME_FAILED, DataError, UsageError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    import numpy as np
    from numpy.typing import NDArray

    from datakit.manifest import Manifest
    from evalkit.seeds import SeedComparison

FINISHED = "finished.json"
MODES = ("efficient", "accurate")
PLAIN = "default"  # the arm of the augmentation benchmark that has none
LOADED_CLIPS = 96
PRELOADED = (  # what the steps import; not the commands themselves
    "pandas", "pyarrow.parquet", "torchvision", "evalkit.decode", "evalkit.infer", "evalkit.metrics",
    "evalkit.published", "evalkit.remarks", "models.checkpoints", "models.training.data", "models.training.loop",
)  # fmt: skip
USUAL_VARIANTS = "340x256,320p,256p"
USUAL_AUGMENTS = "randaugment,mixup,cutmix"
USUAL_HARM, USUAL_HARM_OF_SMALL, SMALL_PX = "harm-64p", "harm-16p", 112  # a small network sees no more than 64p shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the choices that are compared: a copy of the data, and what is done to its clips while training."""

    name: str
    variant: str
    augment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command, as arguments of ``python -m``; ``key`` is everything that its result depends on."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    key: str

    def finished(self) -> bool:
        try:
            found = json.loads((self.folder / FINISHED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found.get("key") == self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``arms`` are compared with each other; the first is the one that the controls are of.

    ``harm`` must be found worse than it; ``again`` are the seeds it is trained with a second time (A/A).
    """

    name: str
    network: str
    recipe: str
    arms: tuple[Arm, ...]
    harm: Arm | None
    seeds: tuple[int, ...]
    again: tuple[int, ...]
    data_root: Path
    out: Path
    split: str
    device: str
    dtype: str
    jobs: int
    cross: bool

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        return (*self.arms, *([self.harm] if self.harm else []))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(arm.variant for arm in self.all_arms))

    def data(self, variant: str) -> Path:
        return self.data_root / self.name / variant

    def tested(self, arm: Arm, seed: int, what: str) -> Path:
        return self.out / "test" / f"{arm.name}-s{seed}" / what


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m models.benchmark",
        description="Train the same network on several copies of the data (data) or with several augmentations "
        "(augment), test all of them, and say which differences are larger than chance. Run it again to go on.",
    )
    top.add_argument("what", choices=("data", "augment"), help="what is compared: variants, or augmentations")
    top.add_argument("name", metavar="NAME", help="the data set, below --data-root")
    top.add_argument("network", metavar="NETWORK", help="a network by name, for instance slowonly_tiny")
    top.add_argument("--recipe", help="a row of manifests/recipes.toml (default: the network's own)")
    top.add_argument("--seeds", type=int, default=3, metavar="N", help="networks of each kind (default 3)")
    top.add_argument(
        "--variants", metavar="A,B", help=f"copies of the data, the first is the control's (default: {USUAL_VARIANTS})"
    )
    top.add_argument("--augments", metavar="A,B", help=f"of manifests/augments.toml (default: {USUAL_AUGMENTS})")
    top.add_argument(
        "--harm", metavar="VARIANT",
        help=f"must be found worse (default: {USUAL_HARM}, below {SMALL_PX} pixels {USUAL_HARM_OF_SMALL})",
    )  # fmt: skip
    top.add_argument("--no-controls", action="store_true", help="neither the planted harm nor A/A")
    top.add_argument("--split", default="val", help="what is tested (default: val)")
    top.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="prepared sets (default: data)"
    )
    top.add_argument("--raw", type=Path, metavar="DIR", help="where videos are, for what is not prepared yet")
    top.add_argument("--labels", type=Path, metavar="CSV", help="own videos: path,label[,split]")
    top.add_argument("--annotations", type=Path, metavar="FILE|DIR", help="official list of a data set we know")
    top.add_argument("--out", type=Path, metavar="DIR", help="default: runs/WHAT-benchmark-NAME-NETWORK")
    top.add_argument("--jobs", type=int, metavar="N", help="networks trained side by side (default: cores, GPU: 1)")
    top.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    top.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of training and testing")
    top.add_argument("--dry-run", action="store_true", help="print the commands that are left, and do nothing")
    top.add_argument("--json", action="store_true", help="print the results as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    plan = planned(args)
    if args.dry_run:
        print("\n".join(f"python -m {' '.join(arguments)}" for arguments in to_prepare(plan, args)))
        if not to_prepare(plan, args):
            print("\n".join(f"python -m {' '.join(s.arguments)}" for c in chains(plan) for s in c if not s.finished()))
        return EXIT_DONE
    prepare(plan, args)
    tables = read_tables(plan)
    run_all(chains(plan), jobs=plan.jobs)
    found = results(plan, tables)
    write(plan, found)
    if args.json:
        console.print_json("benchmark", found)
    else:
        print(markdown(found))
        print(f"written: {plan.out / 'report.md'}, table.csv, results.json, report.html", file=sys.stderr)
    return EXIT_DONE


def planned(args: argparse.Namespace) -> Plan:
    """What is compared. Raises ``UsageError``."""
    from . import zoo

    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: type a number of at least 1")
    if args.what == "data" and args.augments:
        raise UsageError("--augments goes with: python -m models.benchmark augment")
    variants = listed(args.variants or (USUAL_VARIANTS if args.what == "data" else USUAL_VARIANTS.rpartition(",")[2]))
    if args.what == "data":
        arms = [Arm(name=variant, variant=variant) for variant in variants]
    else:
        if len(variants) != 1:
            raise UsageError(f"augmentations are compared on one copy of the data; type --variants {variants[0]}")
        chosen = listed(args.augments or USUAL_AUGMENTS)
        known = manifests.read("augments")
        for name in chosen:
            if name not in known:
                raise UsageError(f"no augmentation {name!r}; type --augments with some of: {','.join(known)}")
        arms = [Arm(name=name, variant=variants[0], augment=name) for name in chosen if name != PLAIN]
        arms.insert(0, Arm(name=PLAIN, variant=variants[0]))
    small = zoo.spec(args.network, num_classes=2).train_crop_px < SMALL_PX
    worst = args.harm or (USUAL_HARM_OF_SMALL if small else USUAL_HARM)
    harm = None if args.no_controls or worst in variants else Arm(name=worst, variant=worst)
    again = () if args.no_controls else tuple(range(args.seeds, 2 * args.seeds))
    return Plan(
        name=args.name,
        network=args.network,
        recipe=args.recipe or zoo.recipe_name(args.network),
        arms=tuple(arms),
        harm=harm,
        seeds=tuple(range(args.seeds)),
        again=again,
        data_root=args.data_root,
        out=args.out or Path("runs", f"{args.what}-benchmark-{args.name}-{args.network}"),
        split=args.split,
        device=args.device,
        dtype=args.dtype,
        jobs=args.jobs or usual_jobs(args.device),
        cross=args.what == "data",
    )


def listed(text: str) -> list[str]:
    found = [name for name in text.replace(",", " ").split() if name]
    if not found or len(set(found)) < len(found):
        raise UsageError(f"{text!r}: type different names with commas between them")
    return found


def usual_jobs(device: str) -> int:
    import torch

    return 1 if device != "cpu" and torch.cuda.is_available() else os.cpu_count() or 1


# --- the data --------------------------------------------------------------------------------------------------------


def to_prepare(plan: Plan, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """A command for each variant that is not there, not whole, or made by another definition.

    One variant a command, so that the journal knows what each of them took.
    """
    options = [
        (name, value) for name, value in (("raw", args.raw), ("labels", args.labels), ("annotations", args.annotations))
    ]
    given = [word for name, value in options if value for word in (f"--{name}", str(value))]
    root = ("--data-root", str(plan.data_root))
    return [
        ("datakit", "prepare", plan.name, "--variant", variant, *given, *root)
        for variant in plan.variants
        if not is_prepared(plan.data(variant))
    ]


def is_prepared(folder: Path) -> bool:
    """Whether a variant is whole and made as ``variants.toml`` says now; what no row describes is taken as it is."""
    from datakit import catalog, manifest

    if not (folder / "manifest.parquet").is_file():
        return False
    try:
        now = catalog.variant(folder.name).hash
    except UsageError:  # flow, or somebody else's copy
        return True
    lock = json.loads((folder / "manifest.lock").read_text(encoding="utf-8"))
    unfinished = {"pending", "lost", "retryable"} & {clip.status for clip in manifest.read(folder).clips}
    return lock.get("variant_hash", now) == now and not unfinished


def prepare(plan: Plan, args: argparse.Namespace) -> None:
    for arguments in to_prepare(plan, args):
        print(f"$ python -m {' '.join(arguments)}", file=sys.stderr, flush=True)
        code = subprocess.run([sys.executable, "-m", *arguments], stdout=sys.stderr, check=False).returncode
        if code not in (EXIT_DONE, EXIT_SOME_FAILED):  # a few broken videos are normal
            raise as_error(code, "preparing", "its message is above")


def read_tables(plan: Plan) -> dict[str, Manifest]:
    """The manifests, by variant. Raises ``DataError`` unless all of them list the same clips to test."""
    from datakit import manifest

    tables = {variant: manifest.read(plan.data(variant)) for variant in plan.variants}
    tested = {name: table.list_id(table.split(plan.split)) for name, table in tables.items()}
    if len(set(tested.values())) > 1:
        raise DataError(
            f"the variants of {plan.name} do not list the same {plan.split} clips ({tested}); "
            f"type: python -m datakit prepare {plan.name} --variant {' --variant '.join(plan.variants)}"
        )
    return tables


# --- training and testing --------------------------------------------------------------------------------------------


def chains(plan: Plan) -> list[list[Step]]:
    """For each network its steps, in order: train, test in both modes, test on the other variants.

    The first seed of all arms comes first: a benchmark that is stopped early is one of fewer seeds.
    """
    order = [(arm, seed) for seed in plan.seeds for arm in plan.all_arms]
    order += [(plan.baseline, seed) for seed in plan.again]
    media = {variant: media_of(plan, variant) for variant in plan.variants}
    return [chain(plan, arm, seed, media) for arm, seed in order]


def media_of(plan: Plan, variant: str) -> dict[str, Any]:
    """What a step's result depends on of a variant: its files."""
    from datakit import manifest

    table = manifest.read(plan.data(variant))
    return {
        "num_classes": len(table.classes),
        "trained_on": table.media_id(clip for clip in table.clips if clip.split != plan.split),
        "tested_on": table.media_id(table.split(plan.split)),
    }


def chain(plan: Plan, arm: Arm, seed: int, media: dict[str, dict[str, Any]]) -> list[Step]:
    network = f"{arm.name}-s{seed}"
    trained = plan.out / "train" / network
    device = ("--device", plan.device, "--dtype", plan.dtype)
    augment = ("--augment", arm.augment) if arm.augment else ()
    cores = max(1, (os.cpu_count() or 1) // plan.jobs)
    how = ("--recipe", plan.recipe, "--seed", str(seed), *augment, "--workers", str(cores))
    decoders = ("--workers", "0") if cores == 1 else ()  # decode in between: another process would take turns with it
    data = str(plan.data(arm.variant))
    arguments = ("models.train", plan.network, "--data", data, "--out", str(trained), *how, *device)
    key = step_key(plan, arm, seed, media[arm.variant], media[arm.variant], "train")
    steps = [Step(name=f"train {network}", folder=trained, arguments=arguments, key=key)]
    tests = [(mode, mode, arm.variant) for mode in MODES]
    if plan.cross and seed in plan.seeds:
        tests += [(f"on-{other}", "efficient", other) for other in plan.variants if other != arm.variant]
    for what, mode, variant in tests:
        folder = plan.tested(arm, seed, what)
        test = ("evalkit.run", "--mode", mode, str(trained / "ckpt.pth"), "--data", str(plan.data(variant)))
        arguments = (*test, "--split", plan.split, "--out", str(folder), *decoders, *device)
        key = step_key(plan, arm, seed, media[arm.variant], media[variant], mode)
        steps.append(Step(name=f"test {network} {what}", folder=folder, arguments=arguments, key=key))
    return steps


def step_key(plan: Plan, arm: Arm, seed: int, trained_on: dict[str, Any], tested_on: dict[str, Any], what: str) -> str:
    """Changes with whatever the step's result depends on: network, recipe, protocol, and the files."""
    from datakit import catalog

    from . import zoo
    from .training import recipe

    facts = {
        "network": zoo.spec(plan.network, num_classes=trained_on["num_classes"]).to_dict(),
        "recipe": asdict(recipe.get(plan.recipe)),
        "augment": manifests.read("augments")[arm.augment] if arm.augment else {},
        "seed": seed,
        "dtype": plan.dtype,
        "trained_on": trained_on["trained_on"],
        "tested_on": tested_on["tested_on"],
        "what": what,
        "protocols": "" if what == "train" else catalog.digest(manifests.read("protocols")),
    }
    return catalog.digest(facts)


def run_all(todo: Sequence[Sequence[Step]], *, jobs: int) -> None:
    """Run the chains, ``jobs`` side by side. Raises the error of the first step that fails; the others are ended then,
    and go on where they were with the next command. So it is when this process is told to end."""
    left = sum(not step.finished() for chain in todo for step in chain)
    if not left:
        return
    crew = Crew(total=left, threads=max(1, (os.cpu_count() or 1) // jobs))
    pool = ThreadPoolExecutor(jobs)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        waiting = [pool.submit(run_chain, steps, crew) for steps in todo]
        for future in as_completed(waiting):
            future.result()
    finally:
        crew.end()
        pool.shutdown(wait=True, cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


class Crew:
    """The commands that run now, and how many of ``total`` are done, which it says on stderr.

    Each is a process that begins as a copy of one that has imported everything already, where the system can do that:
    imports are most of a short test.
    """

    def __init__(self, *, total: int, threads: int) -> None:
        self.total = total
        self.done = 0
        self.threads = threads
        self.ended = False
        if sys.platform == "linux":
            self._start = multiprocessing.get_context("forkserver")
        else:
            self._start = multiprocessing.get_context("spawn")
        self._start.set_forkserver_preload(list(PRELOADED))
        self._running: set[BaseProcess] = set()
        self._lock = threading.Lock()

    def run(self, step: Step) -> int:
        """Run a command to its end; its output goes to ``log.txt`` of its folder. Returns its exit code."""
        child = self._start.Process(target=run_command, args=(step.arguments, step.folder / "log.txt"))
        with self._lock:
            if self.ended:
                return EXIT_INTERRUPTED
            with threads_of_openmp(self.threads):
                child.start()
            self._running.add(child)
        child.join()
        with self._lock:
            self._running.discard(child)
        return child.exitcode or 0

    def finished(self, step: Step, seconds: float) -> None:
        self.done += 1
        said = f"{step.name}: {console.duration(seconds)} ({self.done} of {self.total})"
        print(said, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Begin nothing more and end what runs: else it would write to the folders of the next command, too."""
        with self._lock:
            self.ended = True
            for child in self._running:
                child.terminate()


@contextmanager
def threads_of_openmp(number: int) -> Iterator[None]:
    """What is started within has so many threads, unless the caller's environment says another number."""
    given = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = given or str(number)
    yield
    if given is None:
        del os.environ["OMP_NUM_THREADS"]


def run_command(arguments: Sequence[str], log: Path) -> None:
    """Be ``python -m`` with these arguments, and end with the benchmark should that be killed: the next one would begin
    the same step beside this."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(EXIT_INTERRUPTED)


def run_chain(steps: Sequence[Step], crew: Crew) -> None:
    for step in steps:
        if crew.ended:
            return
        if not step.finished():
            crew.finished(step, run_step(step, crew))


def run_step(step: Step, crew: Crew) -> float:
    """Run one command and note that it is done; returns its seconds. Raises ``DataError`` with the command's code."""
    step.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code = crew.run(step)
    seconds = time.monotonic() - began
    if code not in (EXIT_DONE, EXIT_SOME_FAILED):
        log = step.folder / "log.txt"
        raise as_error(code, step.name, f"{last_line(log)}; all of it: {log}")
    done = {"key": step.key, "arguments": step.arguments, "seconds": round(seconds, 1)}
    files.write_text(step.folder / FINISHED, json.dumps(done, indent=1) + "\n")
    return seconds


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def as_error(code: int, name: str, said: str) -> BaseException:
    """What a child's end means for us."""
    if code in (EXIT_INTERRUPTED, -2):
        return KeyboardInterrupt()
    ended = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
    error = DataError(f"{name} {ended}: {said}. The same command goes on from here")
    error.exit_code = code if code > 0 else DataError.exit_code  # the step's own: usage, data, or a bug
    return error


# --- the numbers -----------------------------------------------------------------------------------------------------


def results(plan: Plan, tables: dict[str, Manifest]) -> dict[str, Any]:
    """Everything that is reported, as plain values."""
    from evalkit import seeds
    from evalkit.resample import LEVEL

    ids, units = clips_tested(plan)
    right = {arm.name: tested(plan, arm, plan.seeds, "accurate", 1, ids) for arm in plan.all_arms}
    compared = seeds.compare_all({arm.name: right[arm.name] for arm in plan.arms}, units=units)
    found: dict[str, Any] = {
        "set": plan.name,
        "split": plan.split,
        "network": plan.network,
        "recipe": plan.recipe,
        "seeds": list(plan.seeds),
        "clips": len(ids),
        "source_videos": None if units is None else int(units.max()) + 1,
        "rows": [row(plan, arm, tables[arm.variant], ids, units) for arm in plan.all_arms],
        "comparisons": [as_plain(one) for one in compared],
        "controls": {},
        "cross": cross_table(plan, ids, units) if plan.cross else [],
        "cautions": cautions(plan, tables),
        "seconds": sum(seconds_of(step) for steps in chains(plan) for step in steps),
    }
    if plan.again:
        again = tested(plan, plan.baseline, plan.again, "accurate", 1, ids)
        pair = (plan.baseline.name, f"{plan.baseline.name} again")
        (one,) = seeds.compare_all({pair[0]: right[pair[0]], pair[1]: again}, units=units)
        import numpy as np

        ways = seeds.halves(np.concatenate([right[pair[0]], again]), units)
        alarms = sum(p < LEVEL for p in ways)
        found["controls"]["a/a"] = as_plain(one) | {"halves": len(ways), "halves_differ": alarms}
    if plan.harm:
        pair = (plan.baseline.name, plan.harm.name)
        (one,) = seeds.compare_all({name: right[name] for name in pair}, units=units)
        found["controls"]["harm"] = as_plain(one) | {"found": one.differs and one.difference.value < 0}
    found["verdict"] = verdict(found)
    return found


def clips_tested(plan: Plan) -> tuple[list[str], NDArray[np.int64] | None]:
    """The ids of the clips, sorted, and the number of each one's source video where they are not independent."""
    from evalkit import groups, scores

    first = scores.load(plan.tested(plan.baseline, plan.seeds[0], "accurate"))
    ids = sorted({*first.ids, *(str(entry["id"]) for entry in first.missing)})
    return ids, groups.units(ids, groups.of(first))


def tested(plan: Plan, arm: Arm, seeds: Iterable[int], what: str, k: int, ids: Sequence[str]) -> NDArray[np.bool_]:
    """bool [seeds, clips]: the label is among the first k; a clip that was not scored is wrong."""
    import numpy as np

    from evalkit import metrics, scores

    table = []
    for seed in seeds:
        folder = plan.tested(arm, seed, what)
        names, _, ranks = metrics.outcomes(scores.load(folder))
        rank = dict(zip(names, ranks.tolist(), strict=True))
        if rank.keys() != set(ids):
            raise DataError(f"{folder} was tested on other clips than the rest; remove it and type the command again")
        table.append([rank[name] < k for name in ids])
    return np.array(table)


def row(plan: Plan, arm: Arm, table: Manifest, ids: Sequence[str], units: NDArray[np.int64] | None) -> dict[str, Any]:
    from evalkit import seeds

    numbers = {
        f"{mode}_top{k}": asdict(seeds.mean(tested(plan, arm, plan.seeds, mode, k, ids), units))
        for mode in MODES
        for k in (1, 5)
    }
    return {"name": arm.name, "variant": arm.variant, **numbers, **costs(plan, arm.variant, table)}


def costs(plan: Plan, variant: str, table: Manifest) -> dict[str, Any]:
    """What a variant takes: bytes, encode seconds, and how fast training clips are read from it."""
    num_bytes = sum(size_of(clip.path) for clip in table.clips if clip.path is not None)
    return {
        "num_clips": sum(clip.path is not None for clip in table.clips),
        "bytes": num_bytes,
        **encode_seconds(plan, variant),
        **loader(plan, variant, table),
    }


def size_of(path: Path) -> int:
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.iterdir())
    return path.stat().st_size


def encode_seconds(plan: Plan, variant: str) -> dict[str, Any]:
    """Seconds of the workers that made the variant, by the journal. Variants made in one pass have them in common."""
    from datakit.annotations import JOURNAL
    from datakit.journal import Journal
    from datakit.layout import stage_of

    path = plan.data_root / plan.name / JOURNAL
    if not path.is_file():
        return {"encode_s": None, "encoded_with": []}
    with Journal.read(path) as journal:
        took = {name: journal.outcomes(stage_of(name)) for name in plan.variants}
    seconds = {name: {id_: outcome.seconds for id_, outcome in rows.items()} for name, rows in took.items()}
    own = seconds[variant]
    together = [name for name in plan.variants if name != variant and own and seconds[name] == own]
    return {"encode_s": round(sum(own.values()), 1) if own else None, "encoded_with": together}


def loader(plan: Plan, variant: str, table: Manifest) -> dict[str, Any]:
    """Training clips a second by one thread, and a second of CPU, measured once and kept."""
    from . import zoo
    from .training import recipe
    from .training.data import TrainingClips

    kept = plan.out / "loader" / f"{variant}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    how = recipe.get(plan.recipe)
    spec = zoo.spec(plan.network, num_classes=len(table.classes))
    usable = [clip for clip in table.clips if clip.path is not None and clip.label_index >= 0 and clip.frames]
    clips = TrainingClips(usable[:: max(1, len(usable) // LOADED_CLIPS)], spec, how, seed=0, cache_bytes=0)
    wall, cpu, count = time.monotonic(), time.process_time(), 0
    for batch in clips.batches(0, num_workers=0):
        count += len(batch.labels)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    found = {"load_clips_per_s": round(count / wall, 1), "load_clips_per_cpu_s": round(count / cpu, 1)}
    files.write_text(kept, json.dumps(found) + "\n")
    return found


def cross_table(plan: Plan, ids: Sequence[str], units: NDArray[np.int64] | None) -> list[dict[str, Any]]:
    """Trained on one, tested on another: efficient top-1."""
    from evalkit import seeds

    cells = []
    for arm in plan.all_arms:
        for variant in plan.variants:
            what = "efficient" if variant == arm.variant else f"on-{variant}"
            estimate = seeds.mean(tested(plan, arm, plan.seeds, what, 1, ids), units)
            cells.append({"trained_on": arm.variant, "tested_on": variant, **asdict(estimate)})
    return cells


def cautions(plan: Plan, tables: dict[str, Manifest]) -> list[str]:
    """What a reader must know of the data before the numbers."""
    found = []
    counts = {
        name: sum(clip.path is not None for clip in table.clips if clip.split != plan.split)
        for name, table in tables.items()
    }
    if len(set(counts.values())) > 1:
        found.append(f"not all variants have the same number of training clips: {counts}")
    for name, table in tables.items():
        lost = sum(clip.path is None for clip in table.split(plan.split))
        if lost:
            found.append(f"{lost} of {len(table.split(plan.split))} {plan.split} clips have no file in {name}: wrong")
    if len(plan.seeds) == 1:
        found.append("one seed: the intervals are over clips alone, another seed may move the numbers by more")
    return found


def as_plain(one: SeedComparison) -> dict[str, Any]:
    return asdict(one) | {"differs": one.differs}


def seconds_of(step: Step) -> float:
    return float(json.loads((step.folder / FINISHED).read_text(encoding="utf-8"))["seconds"])


# --- what is said ----------------------------------------------------------------------------------------------------


def verdict(found: dict[str, Any]) -> list[str]:
    """Sentences: which differences are larger than chance, the smallest that could have been seen, the controls."""
    compared = found["comparisons"]
    lines = [better_and_worse(one) for one in compared if one["differs"]]
    same = [one for one in compared if not one["differs"]]
    if compared:
        smallest = 100 * max(one["smallest"] for one in same or compared)
        others = "other " if lines else ""
        if same:
            which = "; ".join(f"{one['names'][1]} against {one['names'][0]} {in_points(one)}" for one in same)
            if len(same) == 1:
                lines.append(f"The {others}difference is not larger than chance: {which}.")
            else:
                lines.append(f"None of the {others}{len(same)} differences is larger than chance: {which}.")
        size = f"{found['clips']} clips, {counted(len(found['seeds']), 'seed')}, {counted(len(compared), 'comparison')}"
        lines.append(f"One of {smallest:.1f} points would have been found in 8 of 10 such benchmarks ({size}, Holm).")
    controls = found["controls"]
    if same_again := controls.get("a/a"):
        ways = f"of the {same_again['halves']} ways to divide its networks into halves {same_again['halves_differ']}"
        good = not same_again["differs"]
        said = "no difference, as it must be" if good else "a difference where there is none: do not trust this table"
        lines.append(
            f"Control A/A, {same_again['names'][0]} with other seeds: {in_points(same_again)}: {said}; {ways} differ."
        )
    if harm := controls.get("harm"):
        said = "found" if harm["found"] else (
            "NOT found: this benchmark is too small to see even that, and what it does not see means nothing"
        )  # fmt: skip
        lines.append(f"Control harm, {harm['names'][1]} against {harm['names'][0]}: {in_points(harm)}: {said}.")
    return lines


def better_and_worse(one: dict[str, Any]) -> str:
    first, second = one["names"]
    if one["difference"]["value"] > 0:
        return f"{second} is better than {first} by {in_points(one)}."
    return f"{first} is better than {second} by {in_points(one, sign=-1)}."


def in_points(one: dict[str, Any], *, sign: int = 1) -> str:
    difference = one["difference"]
    low, high = sorted(100 * sign * difference[key] for key in ("low", "high"))
    value = 100 * sign * difference["value"]
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, p = {one['p_holm']:.2g})"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def cell(estimate: dict[str, Any]) -> str:
    return f"{100 * estimate['value']:.2f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def markdown(found: dict[str, Any]) -> str:
    """The report as text."""
    videos = f" of {found['source_videos']} source videos" if found["source_videos"] else ""
    lines = [
        f"# {found['set']}: {found['network']}, recipe {found['recipe']}, {counted(len(found['seeds']), 'seed')}",
        "",
        *(f"**{line}**" if number == 0 else line for number, line in enumerate(found["verdict"])),
        "",
        f"Tested on the {found['clips']} {found['split']} clips{videos}. Intervals (95 %) and tests resample clips and "
        "seeds; differences are paired over clips.",
        *(f"Caution: {text}." for text in found["cautions"]),
        "",
        "| resolution | top1 efficient | top5 efficient | top1 accurate | top5 accurate | MB | encode s "
        "| read clips/s (of CPU) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found["rows"]:
        numbers = [cell(one[f"{mode}_top{k}"]) for mode in MODES for k in (1, 5)]
        took = "–" if one["encode_s"] is None else f"{one['encode_s']:.0f}"
        if one["encoded_with"]:
            took += f" (one pass with {', '.join(one['encoded_with'])})"
        speed = f"{one['load_clips_per_s']} ({one['load_clips_per_cpu_s']})"
        cells = [one["name"], *numbers, f"{one['bytes'] / 1e6:.1f}", took, speed]
        lines.append(f"| {' | '.join(cells)} |")
    if found["cross"]:
        tested_on = list(dict.fromkeys(one["tested_on"] for one in found["cross"]))
        lines += ["", "Efficient top-1, trained on (rows), tested on (columns):", ""]
        lines += [f"| | {' | '.join(tested_on)} |", "|---" * (len(tested_on) + 1) + "|"]
        for name in dict.fromkeys(one["trained_on"] for one in found["cross"]):
            cells = [cell(one) for one in found["cross"] if one["trained_on"] == name]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if found["comparisons"]:
        lines += ["", "| pair | difference of accurate top-1 | p | p, Holm | seen from |", "|---|---|---|---|---|"]
        for one in found["comparisons"]:
            seen, names = f"{100 * one['smallest']:.1f}", f"{one['names'][1]} - {one['names'][0]}"
            lines.append(f"| {names} | {in_points(one)} | {one['p']:.2g} | {one['p_holm']:.2g} | {seen} |")
    lines += ["", f"All steps together took {console.duration(found['seconds'])}, one after the other."]
    return "\n".join(lines)


def table_csv(found: dict[str, Any]) -> str:
    """The table, a row an arm, fractions of 1."""
    numbers = [f"{mode}_top{k}" for mode in MODES for k in (1, 5)]
    rest = ["num_clips", "bytes", "encode_s", "load_clips_per_s", "load_clips_per_cpu_s"]
    parts = ("value", "low", "high", "se")
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["name", "variant", *(f"{key}_{part}" for key in numbers for part in parts), *rest])
    for one in found["rows"]:
        values = [one[key][part] for key in numbers for part in parts]
        out.writerow([one["name"], one["variant"], *values, *(one[key] for key in rest)])
    return text.getvalue()


def write(plan: Plan, found: dict[str, Any]) -> None:
    from evalkit import report

    files.write_text(plan.out / "results.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    files.write_text(plan.out / "table.csv", table_csv(found))
    files.write_text(plan.out / "report.md", markdown(found) + "\n")
    pages = [plan.tested(arm, plan.seeds[0], "accurate") for arm in plan.all_arms]
    report.write(pages, plan.out / "report.html", across_copies=True)


if __name__ == "__main__":
    console.run(main)
