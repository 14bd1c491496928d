"""What kind of disk a folder is on, and how much room it has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

# Where SQLite's locks and its shared memory cannot be trusted (https://sqlite.org/wal.html: "does not work over a
# network file system"): the file is on another machine, or many machines write to it.
_NETWORK = frozenset(
    (
        *("9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs"),
        *("webdav", "wekafs"),
    )
)
_LOCAL_FUSE = frozenset(
    ("fuseblk", "fuse.ntfs-3g", "fuse.exfat", "fuse.ext4", "fuse.mergerfs", "fuse.bindfs", "fuse.fuse-overlayfs")
)


def file_system(path: Path) -> str:
    """The type of the file system that ``path`` (or the nearest folder above it that exists) is on, such as "ext4" or
    "nfs4"; empty where the system does not say."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if sys.platform == "linux":
        return of_mounts(there.resolve(), Path("/proc/self/mounts").read_text(errors="surrogateescape"))
    done = subprocess.run(["mount"], capture_output=True, text=True, check=False)
    lines = re.findall(r"^(.+?) on (.+?) \((\w+)", done.stdout, flags=re.MULTILINE)  # macOS, BSD
    return of_mounts(
        there.resolve(), "".join(f"{d} {p.replace(' ', chr(92) + '040')} {kind}\n" for d, p, kind in lines)
    )


def of_mounts(path: Path, mounts: str) -> str:
    """The type that ``/proc/mounts`` names for the longest mount point above ``path``; the last of equal ones."""
    best, found = -1, ""
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[1]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), words[2]
    return found


def is_network(kind: str) -> bool:
    """Whether a file system of this type is on another machine."""
    return kind in _NETWORK or (kind.startswith("fuse") and kind not in _LOCAL_FUSE)


def free_bytes(path: Path) -> int:
    """Free room where ``path`` is or will be."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
