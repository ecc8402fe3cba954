#!/usr/bin/env bash
# Makes the environment that the peer's side of the benchmarks runs in. Running it again changes nothing.
#   scripts/peers/setup.sh [FOLDER]     default .venv-peers/kvpress
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.venv-peers/kvpress}
[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
# torch first: whatever depends on it would bring a CUDA build of several GB
"$folder/bin/python" -m pip install -q ${PIP_FLAGS:-} "$(grep '^torch==' constraints.txt)"
"$folder/bin/python" -m pip install -q ${PIP_FLAGS:-} -r scripts/peers/kvpress.txt
"$folder/bin/python" -c 'import kvpress' 2>/dev/null || { echo "kvpress cannot be imported in $folder" >&2; exit 1; }
echo "$folder/bin/python"
