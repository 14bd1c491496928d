"""python -m datakit verify"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import console
from ..errors import EXIT_DONE, EXIT_SOME_FAILED
from . import Commands, add_cluster, add_jobs, add_variants, command, prepared_variants, set_dir


def add(commands: Commands) -> None:
    verify = command(commands, "verify", "decode every file again and compare with the manifest; changes nothing")
    add_variants(verify)
    add_jobs(verify, "files decoded at once")
    add_cluster(verify)
    verify.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    import tempfile

    from .. import manifest, runner
    from ..verify import verify

    report = {}
    folder = set_dir(args)
    shared = folder if args.cluster else None  # the workers must see it; else nothing is written there
    with runner.on_cluster(args.cluster):
        for variant in prepared_variants(args):
            clips = [clip for clip in manifest.read(folder / variant).clips if clip.path is not None]
            with tempfile.TemporaryDirectory(prefix=".verify-", dir=shared) as notes:
                outcomes = verify(clips, args.jobs, Path(notes))
                checked = console.progress(outcomes, total=len(clips), what=f"verify {variant}")
                bad = sorted((one for one in checked if one.status != "ok"), key=lambda one: one.id)
            report[variant] = {"checked": len(clips), "ok": len(clips) - len(bad),
                               "bad": [{"id": o.id, "error": o.error, "reason": o.message} for o in bad]}  # fmt: skip
            if not args.json:
                print(f"{args.name}/{variant}: {len(clips)} files decoded, {len(clips) - len(bad)} as recorded")
                for outcome in bad:
                    print(f"  {outcome.id}  {outcome.error}: {outcome.message}")
    if args.json:
        console.print_json("datakit-verify", {"set": args.name, "variants": report})
    return EXIT_SOME_FAILED if any(one["bad"] for one in report.values()) else EXIT_DONE
