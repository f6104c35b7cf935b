#!/usr/bin/env bash
# Runs every program in benchmarks/, or the one that is named, with its arguments: scripts/bench.sh proxies --rounds 1
# Figures and plots go to results/. One that fails does not keep the others from running.
set -euo pipefail
cd "$(dirname "$0")/.."
shopt -s nullglob
found=(benchmarks/*.py)
if [ $# -gt 0 ]; then
  found=("benchmarks/$1.py")
  shift
fi
[ ${#found[@]} -gt 0 ] || { echo "There is no program in benchmarks/ yet." >&2; exit 1; }
failed=()
for program in "${found[@]}"; do
  [ -e "$program" ] || { echo "There is no $program." >&2; exit 1; }
  grep -q __main__ "$program" || continue # a part of another
  if [ "$program" = benchmarks/moved_streams.py ] && [ $# -eq 0 ]; then
    echo "== $program is skipped: it needs a real model (--model FOLDER, in OpenVINO's format)"
    continue
  fi
  case $program in
    benchmarks/proxies.py) plots=(--plots results) ;;
    benchmarks/control_scale.py) plots=(--plot results/control_scale.png) ;;
    *) plots=() ;;
  esac
  began=$SECONDS
  echo "== $program"
  "${PYTHON:-.venv/bin/python}" "$program" "${plots[@]}" "$@" || failed+=("$program")
  echo "== $program took $((SECONDS - began)) s"
done
[ ${#failed[@]} -eq 0 ] || { echo "Failed: ${failed[*]}" >&2; exit 1; }
