#!/bin/sh
# Measure on the GPU of this machine: benchmarks/gpu/run.sh [--out FOLDER] [--budget SECONDS] [--parts a,b] [--after FOLDER]
# What it writes goes to $OUT, or to --out; --dry-run needs no GPU. See README.md beside this file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/../../src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" "$here/kit.py" "$@"
