#!/bin/sh
# setup.sh VENV              make the environment with the tested versions
# setup.sh --existing VENV   look whether an environment of yours has what is needed; change nothing in it
set -eu
cd "$(dirname "$0")/.."

die() { printf '%s\n' "$@" >&2; exit 4; }

if [ "$1" = --existing ]; then
  venv=$2
  [ -x "$venv/bin/python" ] || die "VENV=$venv: there is no $venv/bin/python." "Leave VENV= out and .venv is made, or make it yourself: python3 -m venv $venv"
  "$venv/bin/python" - <<'PYTHON' || die "Type: '$venv/bin/python' -m pip install -c constraints.txt -e '.[dev]'"
import importlib.util, sys
needed = "torch torchvision ffmpeg av joblib pandas sklearn yt_dlp imageio_ffmpeg numpy pyarrow tqdm jinja2 scipy pytest xdist".split()
lacking = [name for name in needed if importlib.util.find_spec(name) is None]
if lacking:
    sys.exit(f"this environment lacks: {' '.join(lacking)}")
PYTHON
  exit 0
fi
venv=$1

# --- what newcomers lack, before anything long ---
python=
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || die "Python 3.11, 3.12 or 3.13 is needed; python3 here is: $(python3 --version 2>&1 || echo 'not there')." \
  "Debian, Ubuntu: sudo apt install python3.12 python3.12-venv     macOS: brew install python@3.12     or point at one: make setup PYTHON=/path/to/python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python has no venv." \
  "Debian, Ubuntu: sudo apt install $(basename "$(readlink -f "$(command -v "$python")")")-venv"
needed_mb=9000
free_mb() { df -Pk "$1" | awk 'NR==2 {print int($4/1024)}'; }
[ -d "$venv/lib" ] && needed_mb=2500  # an interrupted or older one: most of it is there
if [ "$(free_mb .)" -lt $needed_mb ]; then
  die "$(free_mb .) MB are free here, the environment needs $needed_mb MB (torch with CUDA is most of it)." \
    "Make room, or keep it elsewhere: python3 -m venv /big/disk/venv; /big/disk/venv/bin/python -m pip install -c constraints.txt -e '.[dev]'; make test VENV=/big/disk/venv"
fi

echo "making $venv with $("$python" --version): about 3 minutes and 7 GB, once" >&2
# An interrupted one may lack pip; made again over itself it has it.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
# The plain wheels from the package index: the CUDA build of torch runs on a CPU as well, and torchvision fits it.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
  || die "The installation stopped (see above); with a network type the same command again, it goes on."
touch "$venv/.ready"
