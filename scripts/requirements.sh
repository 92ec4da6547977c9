#!/bin/sh
# Says in one line what is missing to build the native extension, with the command that installs it here.
#
#   scripts/requirements.sh [PYTHON]           looks for all of it; exits with 1 where something is missing
#   scripts/requirements.sh --need WHAT...     the line for what was found missing: compiler, headers, venv
#
# Needed are Python 3.10 or later with venv and headers, and a C++17 compiler; CMake and Ninja come from pip. `make`
# asks before anything is downloaded, and CMakeLists.txt asks for the line where it finds less than it needs.
set -eu

version=$("${PYTHON:-python3}" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3)

# The package that brings WHAT, by this system's package manager: package WHAT
package() {
  case "$manager:$1" in
    apt-get:compiler) echo g++ ;;
    apt-get:headers) echo "python$version-dev" ;;
    apt-get:venv) echo "python$version-venv" ;;
    apt-get:python) echo "python3 python3-venv python3-dev" ;;
    dnf:compiler) echo gcc-c++ ;;
    dnf:headers) echo "python$([ "$version" = "$system" ] && echo 3 || echo "$version")-devel" ;;
    zypper:compiler) echo gcc-c++ ;;
    zypper:headers) echo "python$(echo "$version" | tr -d .)-devel" ;;
    pacman:compiler) echo gcc ;;
    dnf:python | zypper:python) echo python3 ;;
    *) echo python ;;  # what brings Python brings its headers and venv
  esac
}

# One line: what is missing, and how to get it. say_missing WHAT...
say_missing() {
  manager=
  for name in apt-get dnf zypper pacman brew; do
    if command -v "$name" >/dev/null 2>&1; then manager=$name; break; fi
  done
  system=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
  missing="" packages="" more=""
  for what in "$@"; do
    case "$what" in
      compiler) words="a C++17 compiler" ;;
      headers) words="the headers of Python $version" ;;
      venv) words="Python's module venv" ;;
      python) words="Python 3.10 or later" ;;
      *) echo "requirements.sh: $what is not known" >&2; exit 2 ;;
    esac
    missing="$missing${missing:+, }$words"
    if [ "$what" = compiler ] && [ "$(uname)" = Darwin ]; then more="xcode-select --install"; continue; fi
    packages="$packages $(package "$what")"
  done
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo "
  case "$manager" in
    apt-get | dnf | zypper) command="$sudo$manager install$packages" ;;
    pacman) command="${sudo}pacman -S$packages" ;;
    brew) command="brew install$packages" ;;
    *) command="this system's packages, which Debian calls g++, python3-dev and python3-venv" ;;
  esac
  [ -n "$packages" ] || command=""
  echo "hybrid: $missing missing; install with: $command${command:+${more:+ and }}$more"
}

if [ "${1:-}" = --need ]; then
  shift
  say_missing "$@"
  exit 0
fi

python=${1:-${PYTHON:-python3}}
missing=""
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing venv"
  "$python" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing="$missing headers"
else
  missing="$missing python"
fi
# What CMake takes: CXX, else one of the usual names.
found=""
for name in ${CXX:-c++ g++ clang++}; do
  if command -v "$name" >/dev/null 2>&1; then found=$name; break; fi
done
[ -n "$found" ] || missing="$missing compiler"
[ -z "$missing" ] && exit 0
# shellcheck disable=SC2086 - words
say_missing $missing >&2
exit 1
