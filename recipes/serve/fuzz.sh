#!/usr/bin/env bash
# 10,000 requests drawn from the server's schema; three minutes. Usage: fuzz.sh [NUMBER]
set -euo pipefail
cd "$(dirname "$0")/../.."
UNMASK_FUZZ=${1:-10000} OMP_NUM_THREADS=1 python -m pytest -n0 -q -s tests/test_serve_fuzz.py
