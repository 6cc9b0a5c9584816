#!/usr/bin/env bash
# The law of the server for ten minutes. Usage: soak.sh FOLDER
set -euo pipefail
folder=${1:?"usage: soak.sh FOLDER"}
here=$(dirname "$0")
mkdir -p "$folder"
export OMP_NUM_THREADS=1
source "$here/server.sh"
serve
python "$here/law.py" "$port" --seconds "${SECONDS_OF_SOAK:-600}" | tee "$folder/soak.txt"
