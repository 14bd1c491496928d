"""python -m datakit doctor: is everything here that the work needs?"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .. import console
from ..errors import EXIT_DONE, ToolMissing, UsageError
from . import Commands, command


def add(commands: Commands) -> None:
    doctor = command(
        commands, "doctor", "tools and their age, ffmpeg tried out, the disk; with NAME: what that set needs",
        needs_name=False,
    )  # fmt: skip
    doctor.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="VARIANT",
        help="of NAME (repeatable; default: its usual ones)",
    )
    doctor.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    import manifests

    from .. import catalog
    from ..doctor import Finding, examine

    dataset = catalog.dataset(args.name) if args.name else None
    if args.name and dataset is None:
        raise UsageError(f"no manifest describes {args.name}; type one of: {', '.join(manifests.names('datasets'))}")
    names = args.variant or (dataset.variants if dataset else ())
    findings: list[Finding] = []
    for finding in examine(args.data_root, dataset, [catalog.variant(name) for name in names]):
        findings.append(finding)
        if not args.json:
            print(f"{finding.verdict if finding.verdict != 'ok' else '':8} {finding.what}: {finding.found}", flush=True)
            if finding.advice:
                print(f"{'':8}   {finding.advice}")
    if args.json:
        console.print_json("datakit-doctor", {"findings": [asdict(one) for one in findings]})
    broken = [one.what for one in findings if one.verdict == "broken"]
    if broken and not args.json:
        print(f"not fit for work: {', '.join(broken)}")
    return ToolMissing.exit_code if broken else EXIT_DONE
