#!/usr/bin/env bash
# The law of the server, and what serving costs, on the bundled model; quarter of an hour on two free cores.
# Usage: load.sh FOLDER [more options of load.py]
set -euo pipefail
folder=${1:?"usage: load.sh FOLDER [more options of load.py]"}
shift
here=$(dirname "$0")
mkdir -p "$folder"
export OMP_NUM_THREADS=1
source "$here/server.sh"
serve
python "$here/law.py" "$port" --requests "${LAW:-1000}" | tee "$folder/law.txt"
python "$here/load.py" "$port" --output "$folder/load.json" "$@"
