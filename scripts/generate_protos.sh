#!/usr/bin/env bash
# Regenerates src/headrace/rpc/v1 from protos/. With --check: fails if what is committed differs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=src
[ "${1:-}" = --check ] && { out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; }
bin=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
# The virtual path makes generated imports equal to the package's own layout, so nothing has to be rewritten.
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -Iheadrace/rpc/v1=protos/headrace/v1 \
  --python_out="$out" --mypy_out="quiet:$out" \
  --grpc_python_out="$out" --mypy_grpc_out="quiet,only_async:$out" \
  headrace/rpc/v1/types.proto headrace/rpc/v1/node.proto headrace/rpc/v1/head.proto headrace/rpc/v1/replica.proto \
  headrace/rpc/v1/join.proto
if [ "$out" != src ]; then
  diff -r -x __init__.py -x __pycache__ "$out/headrace/rpc/v1" src/headrace/rpc/v1 \
    && echo "generated code is up to date" \
    || { echo "src/headrace/rpc/v1 differs from protos/: run 'make protos' and commit" >&2; exit 1; }
fi
