#!/usr/bin/env bash
# Make .venv from requirements.lock. Called by make; PYTHON names the interpreter to start from.
set -euo pipefail
cd "$(dirname "$0")/.."

usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
        >/dev/null 2>&1
}

found=
for python in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if usable "$python"; then
        found=$python
        break
    fi
done
if [ -z "$found" ]; then
    echo "No usable Python (tried: ${PYTHON:-python3.11 python3.12 python3 python}): version 3.11" \
        "or 3.12 with its venv module is needed; name one with make PYTHON=/path/to/python3.11." >&2
    exit 1
fi

if [ ! -x .venv/bin/python ] || ! usable .venv/bin/python; then
    echo "== making .venv with $("$found" --version)"
    rm -rf .venv
    "$found" -m venv .venv
fi
total=$(grep -c == requirements.lock)
echo "== installing $total pinned packages into .venv (some minutes)"
# Byte code is made of what is imported, below and later: half of a minute less than of everything.
.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-compile \
    -r requirements.lock |
    awk -v total="$total" '
        /^(Collecting|Processing)/ {
            sub(/.*\//, "", $2); printf "   %d/%d %s\n", ++n, total, $2; fflush() }
        /^Installing collected/ { print "   unpacking all of them"; fflush() }'
# setuptools is among the pins, so rrlib itself needs no build environment of its own.
.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps \
    --no-build-isolation -e .
echo "== first imports (byte code, font cache)"
.venv/bin/python -W ignore -c '
import diffusers, gymnasium_robotics, h5py, matplotlib.pyplot, minari, mujoco, scipy, sklearn, torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet1DModel
'
echo "== .venv is ready"
