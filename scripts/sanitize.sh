#!/usr/bin/env bash
# Runs the tests of the native operators under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.
#
#   scripts/sanitize.sh [address] [thread] [-- PYTEST ARGUMENTS]
#
# Both by default. Each builds the extension into build/sanitize-NAME with GCC and puts it into a package of links there,
# which the tests then import; the installed extension stays as it is. Any report fails the run, also one of a child process.
# VENV names the environment to run in (.venv by default), CXX the compiler (g++ by default).
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD bin=$(realpath "${VENV:-.venv}")/bin cxx=${CXX:-g++}

names=()
while [ $# -gt 0 ]; do
  case "$1" in
    address|thread) names+=("$1"); shift ;;
    --) shift; break ;;
    *) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
[ ${#names[@]} -gt 0 ] || names=(address thread)
[ "$(uname)" = Linux ] || { echo "the sanitizers run on Linux only: skipped"; exit 0; }
"$cxx" --version | grep -q "Free Software Foundation" || { echo "$cxx is not GCC; name one with CXX=" >&2; exit 1; }

"$bin/python" -c 'import nanobind, cmake' 2>/dev/null || "$bin/python" -m pip install --quiet 'nanobind>=2.4,<4' cmake

# Builds the extension: build FOLDER SANITIZERS
build() {
  local folder=$1 sanitizers=$2
  # Debug: assertions are on, and nothing is stripped. The operators have their own -O3 all the same.
  "$bin/cmake" -S . -B "$folder/cmake" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER="$cxx" \
    -DPython_EXECUTABLE="$bin/python" -DHYBRID_SANITIZE="$sanitizers" >"$folder/cmake.log" ||
    { cat "$folder/cmake.log" >&2; return 1; }
  "$bin/cmake" --build "$folder/cmake" --target _native --parallel "$(nproc)"
}

# Lays out the package with that extension in place of the installed one: link FOLDER
link() {
  local site=$1/site
  rm -rf "$site"
  mkdir -p "$site/hybrid/ops"
  ln -s "$root/profiler" "$root/placement" "$site"
  ln -s "$root"/hybrid/* "$site/hybrid" 2>/dev/null || true  # all but `ops`, which is there
  ln -s "$root"/hybrid/ops/*.py "$root/hybrid/ops/kernels" "$1"/cmake/_native.*.so "$site/hybrid/ops"
  # An editable install finds its modules by an import hook before any path is looked at; this takes the hook's place.
  : >"$site/_editable_skbc_hybrid_inference.py"
}

library() { realpath "$("$cxx" -print-file-name="lib$1.so")"; }

# Runs a command in the package of links, with the sanitizer's library loaded first: under NAME FOLDER COMMAND...
under() {
  local name=$1 folder=$2 libraries fixed=()
  shift 2
  # Bus errors are left alone: the tests of the guard cause some and look at what then happens.
  local common="halt_on_error=1:log_path=$folder/report:exitcode=66:handle_sigbus=0"
  local -x PYTHONPATH=$folder/site OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
  if [ "$name" = thread ]; then
    libraries="$(library tsan)"
    # The interpreter and torch are not instrumented: what they do to their own memory is theirs.
    local -x TSAN_OPTIONS="$common:ignore_noninstrumented_modules=1:second_deadlock_stack=1"
    # Where addresses are drawn from more bits than the library knows, it ends at once.
    if setarch "$(uname -m)" -R true 2>/dev/null; then fixed=(setarch "$(uname -m)" -R); fi
  else
    # libstdc++ too: AddressSanitizer looks for its functions when it starts, and the interpreter has none.
    libraries="$(library asan) $(library ubsan) $(library stdc++)"
    # Leaks: the interpreter keeps most of what it has until the process ends.
    local -x ASAN_OPTIONS="$common:detect_leaks=0:detect_stack_use_after_return=1"
    local -x UBSAN_OPTIONS="print_stacktrace=1"  # it knows no log_path beside the other
  fi
  # From there, because `python -c` looks where it stands before all else.
  (cd "$folder/site" && ${fixed[@]+"${fixed[@]}"} env LD_PRELOAD="$libraries" "$@")
}

for name in "${names[@]}"; do
  folder=$root/build/sanitize-$name
  mkdir -p "$folder"
  sanitizers=$name chosen=()
  [ "$name" = address ] && sanitizers=address,undefined
  # ThreadSanitizer does not know threads that are started after a fork: it mistakes them for the parent's.
  [ "$name" = thread ] && chosen=(-k "not fork and not child")
  echo "== $sanitizers"
  build "$folder" "$sanitizers"
  link "$folder"
  rm -f "$folder"/report*
  under "$name" "$folder" "$bin/python" -c "import hybrid.ops._native as native
assert native.__file__.startswith('$folder/site/'), 'the tests would import ' + native.__file__"
  status=0
  # What a process writes before it is ended is seen only where pytest leaves its standard error alone.
  under "$name" "$folder" "$bin/python" -m pytest --rootdir "$root" -c "$root/pyproject.toml" -p no:cacheprovider \
    --capture=sys -m "not slow and not gpu" ${chosen[@]+"${chosen[@]}"} "$root/tests/hybrid/ops" "$@" || status=$?
  for report in "$folder"/report*; do
    if [ -s "$report" ]; then cat "$report" >&2; status=1; fi
  done
  [ $status -eq 0 ] || { echo "$sanitizers: failed" >&2; exit 1; }
done
