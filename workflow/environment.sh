#!/usr/bin/env bash
# Make .venv from requirements.lock. Called by make; PYTHON names the interpreter to start from.
set -euo pipefail
unset CDPATH # with it, cd goes to a folder of the same name elsewhere
cd -- "$(dirname -- "$0")/.."
# So is what the shell tells Python: a path, a home, not to write byte code.
for name in "${!PYTHON@}"; do
    [ "$name" = PYTHON ] || unset "$name"
done
# pip's own settings (index, certificates, cache) stay; where it installs is decided here.
unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_NO_DEPS PIP_DRY_RUN PIP_REQUIRE_HASHES
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "$*" >&2
    exit 1
}

usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
        >/dev/null 2>&1
}

for tool in git awk; do
    command -v "$tool" >/dev/null || fail "$tool is needed and not installed."
done
case $PWD in
*:*) fail "Folder '$PWD' has a colon in its name: no Python environment can be made in it." ;;
esac

if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
else
    candidates=(python3.11 python3.12 python3 python)
fi
found=
for python in "${candidates[@]}"; do
    if usable "$python"; then
        found=$python
        break
    fi
done
[ -n "$found" ] || fail "No usable Python (tried: ${candidates[*]}): version 3.11" \
    "or 3.12 with its venv module is needed; name one with make PYTHON=/path/to/python3.11."

if [ -e .venv/pyvenv.cfg ] && ! grep -q -- '-m venv ' .venv/pyvenv.cfg; then
    fail "Folder .venv was made by another program: move it away, and the same command makes its own."
fi
# An environment names its folder in every script: moved or copied, it would run the first one's.
if ! grep -qsF -- "-m venv $(pwd -P)/.venv" .venv/pyvenv.cfg || ! usable .venv/bin/python; then
    echo "== making .venv with $("$found" --version)"
    rm -rf .venv
    "$found" -m venv .venv
fi
total=$(grep -c == requirements.lock)
echo "== installing $total pinned packages into .venv (some minutes)"
# Byte code is made of what is imported, below and later: half of a minute less than of everything.
.venv/bin/python -m pip install --progress-bar off --no-compile -r requirements.lock |
    awk -v total="$total" '
        /^(Collecting|Processing)/ {
            sub(/.*\//, "", $2); printf "   %d/%d %s\n", ++n, total, $2; fflush() }
        /^Installing collected/ { print "   unpacking all of them"; fflush() }'
# setuptools is among the pins, so rrlib itself needs no build environment of its own.
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
echo "== first imports (byte code, font cache)"
.venv/bin/python -W ignore -c '
import diffusers, gymnasium_robotics, h5py, matplotlib.pyplot, minari, mujoco, scipy, sklearn, torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet1DModel
'
echo "== .venv is ready"
