#!/usr/bin/env bash
# Runs every program in benchmarks/, or the one that is named, with its arguments: scripts/bench.sh proxies --rounds 1
set -euo pipefail
cd "$(dirname "$0")/.."
shopt -s nullglob
found=(benchmarks/*.py)
if [ $# -gt 0 ]; then
  found=("benchmarks/$1.py")
  shift
fi
[ ${#found[@]} -gt 0 ] || { echo "There is no program in benchmarks/ yet." >&2; exit 1; }
for program in "${found[@]}"; do
  grep -q __main__ "$program" || continue # a part of another
  echo "== $program"
  "${PYTHON:-.venv/bin/python}" "$program" "$@"
done
