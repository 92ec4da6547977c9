#!/usr/bin/env bash
# Runs the whole program on an emulated arm64 processor: scripts/check_arm64.sh [FOLDER]
#
# FOLDER (build/arm64) receives a minimal Debian for arm64 without its configuration, torch and the other dependencies, and
# the extension, cross-compiled. Then the demo's text is completed with the operators for NEON and with the portable ones;
# texts are compared with this machine's. Needs root, g++-aarch64-linux-gnu, qemu-user-static, debootstrap, cmake, ninja
# and uv (pip install uv). Emulated speed says nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/arm64}") bin=$(realpath "${VENV:-.venv}")/bin
root=$folder/root site=$folder/site package=$folder/package
for tool in aarch64-linux-gnu-g++ qemu-aarch64-static debootstrap cmake ninja uv; do
  command -v "$tool" >/dev/null || { echo "check_arm64.sh: $tool is missing" >&2; exit 2; }
done
mkdir -p "$folder" "$package"

if [ ! -e "$root/usr/bin/python3.11" ]; then
  # Unpacked only: what packages would do when they are configured is for a system that boots.
  debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libpython3.11-dev,libgomp1,libstdc++6 bookworm "$root"
  for file in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$file" "$root"; done
fi
# 2.8 is the last torch for arm64 on PyPI that has a build of 100 MB without CUDA's packages.
[ -e "$site/torch" ] || "$bin/python" -c 'import re, sys
from pathlib import Path
text = re.search(r"^dependencies = \[(.*?)^\]", Path("pyproject.toml").read_text(), re.S | re.M)[1]
print("torch==2.8.*\n" + "\n".join(re.findall(r"\"(.+?)\"", text)))' |
  uv pip install --quiet --python-platform aarch64-manylinux_2_34 --python-version 3.11 --only-binary :all: --target "$site" -r -

cmake -G Ninja -S . -B "$folder/cmake" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-idirafter $root/usr/include" -DPython_EXECUTABLE="$bin/python" \
  -DPython_INCLUDE_DIR="$root/usr/include/python3.11" -DNB_SUFFIX=.cpython-311-aarch64-linux-gnu.so >/dev/null
cmake --build "$folder/cmake" --parallel "$(nproc)"
rm -rf "${package:?}"/*
cp -r hybrid placement profiler "$package"
rm -f "$package"/hybrid/ops/_native.*.so
cp "$folder"/cmake/_native.*.so "$package/hybrid/ops"

emulated() {  # emulated ISA: the demo's text under it
  HYBRID_ISA=$1 PYTHONHOME=$root/usr PYTHONPATH=$package:$site PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 HYBRID_CACHE=$folder/cache \
    qemu-aarch64-static -cpu max -L "$root" "$root/usr/bin/python3.11" -m hybrid.cli run demo "def parse_args(" -n 32 --mode exact
}
"$bin/hybrid" run demo "def parse_args(" -n 32 --mode exact >"$folder/here.txt"
for isa in neon portable; do
  emulated "$isa" >"$folder/$isa.txt"
  cmp "$folder/here.txt" "$folder/$isa.txt" && echo "arm64, $isa: the same text as here"
done
