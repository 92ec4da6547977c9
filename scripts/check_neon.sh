#!/usr/bin/env bash
# Checks the native operators' kernels: every instruction set against the portable one. Exits with 0 where all agree.
#
#   scripts/check_neon.sh [arm64] [host]
#
# `arm64` cross-compiles them and runs them under qemu, on a processor with the dot product instructions and on one
# without; it is what happens when nothing is named. `host` builds for this machine and runs what its processor has.
# Needs cmake and, for arm64, a cross compiler and qemu's user mode.
set -euo pipefail
cd "$(dirname "$0")/.."

need() {  # need TOOL PACKAGE
  command -v "$1" >/dev/null && return 0
  echo "check_neon.sh: $1 is missing; on Debian or Ubuntu: apt-get install $2" >&2
  exit 2
}

build() {  # build FOLDER [CMAKE OPTION...]
  local folder=build/$1
  shift
  cmake -S . -B "$folder" -DHYBRID_CHECK_KERNELS=ON "$@" >/dev/null
  cmake --build "$folder" --parallel "$(nproc)"
}

check_host() {
  build check-host
  build/check-host/scripts/native/check_kernels
}

check_arm64() {
  need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
  local qemu
  qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
  [ -n "$qemu" ] || need qemu-aarch64-static qemu-user-static
  build check-arm64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
  "$qemu" -cpu max build/check-arm64/scripts/native/check_kernels portable neon
  echo "without dot product instructions:"
  "$qemu" -cpu cortex-a53 build/check-arm64/scripts/native/check_kernels portable
}

need cmake cmake
[ $# -gt 0 ] || set -- arm64
for target in "$@"; do
  case "$target" in
    arm64|host) "check_$target" ;;
    *) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
