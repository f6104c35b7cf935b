#!/usr/bin/env bash
# Lists what Headrace installs on a machine without a GPU, as CycloneDX in JSON: scripts/sbom.sh FILE
#
# It is made from the lock, so that it is the same on every machine, to the byte.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$(dirname "$1")"
# A lock says what is installed, not what needs what: the tool warns of that.
"${PYTHON:-.venv/bin/python}" -W ignore::UserWarning -m cyclonedx_py requirements requirements/requirements-scheduler-cpu.txt \
  --pyproject pyproject.toml --mc-type application --sv 1.6 --output-reproducible --validate --output-file "$1"
