#!/usr/bin/env bash
# Runs every program in benchmarks/, or the one that is named: scripts/bench.sh proxy_cpu
set -euo pipefail
cd "$(dirname "$0")/.."
shopt -s nullglob
found=(benchmarks/*.py)
[ $# -eq 0 ] || found=("benchmarks/$1.py")
[ ${#found[@]} -gt 0 ] || { echo "There is no program in benchmarks/ yet." >&2; exit 1; }
for program in "${found[@]}"; do
  echo "== $program"
  "${PYTHON:-.venv/bin/python}" "$program"
done
