#!/usr/bin/env bash
# Checks and measures this project on a machine with a CUDA GPU, without a network.
#
#   scripts/gpu_check.sh [--out DIR] [--wheels DIR] [--work DIR] [--second-device cuda|cpu] [tests] [build-model] [measure]
#
# Needs Python 3.12 or so with torch (CUDA), nanobind, scikit-build-core and cmake installed; what else is missing is taken from the
# wheels in --wheels. Stages run in the order given, all three by default; each has its own time limit (seconds, in TESTS_LIMIT,
# BUILD_LIMIT, MEASURE_LIMIT) and can be called alone. --out receives JSON after every row, --work holds the model.
# --second-device cpu rehearses it without a GPU; MODEL_SHAPE holds other options for scripts/make_synthetic.py.
set -uo pipefail
cd "$(dirname "$0")/.."

out=build/gpu wheels="" work=build/gpu-work device=cuda stages=()
shape=${MODEL_SHAPE:---hidden 2048 --layers 16 --ffn 8192 --heads 16 --kv-heads 4 --rank 128}
usage() { sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//'; }
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$2; shift 2 ;;
    --wheels) wheels=$2; shift 2 ;;
    --work) work=$2; shift 2 ;;
    --second-device) device=$2; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    tests|build-model|measure) stages+=("$1"); shift ;;
    *) usage >&2; exit 2 ;;
  esac
done
[ ${#stages[@]} -gt 0 ] || stages=(tests build-model measure)
mkdir -p "$out" "$work"
out=$(realpath "$out") work=$(realpath "$work")
site=$work/site

# Installs the offline wheels and this project (extension included) into a folder of its own, once.
install() {
  [ -e "$site/.installed" ] && return 0
  mkdir -p "$site"
  if [ -n "$wheels" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || return 1
  fi
  PYTHONPATH=$site python3 -m pip install -q --no-index --no-deps --no-build-isolation --upgrade --target "$site" . || return 1
  touch "$site/.installed"
}

run_tests() { python3 -P -m pytest -q -m gpu --timeout 300 --junitxml "$out/tests.xml" tests; }
build_model() {
  [ -e "$work/model/model.json" ] && return 0
  rm -rf "$work/source" "$work/model"
  python3 scripts/make_synthetic.py "$work/source" $shape &&
    python3 -P -m hybrid.cli pack "$work/source" "$work/model" --json > "$out/pack.json" &&
    python3 -P -m hybrid.cli profile "$work/model" --text hybrid/demo/profile.jsonl --tokens 20000 --json > "$out/profile.json"
}
measure() { python3 -P scripts/gpu_measure.py "$work/model" --text hybrid/demo/heldout.jsonl --out "$out/measure.json" --second-device "$device"; }

status=0
install || { echo "gpu_check: the project could not be installed from $PWD" >&2; exit 1; }
export PYTHONPATH=$site HYBRID_CACHE=$work/cache
for stage in "${stages[@]}"; do
  case "$stage" in
    tests) limit=${TESTS_LIMIT:-300} call=run_tests ;;
    build-model) limit=${BUILD_LIMIT:-420} call=build_model ;;
    measure) limit=${MEASURE_LIMIT:-420} call=measure ;;
  esac
  began=$SECONDS
  # A subshell of its own process group, so that the limit ends all of it.
  export -f run_tests build_model measure; export out work device shape
  timeout --kill-after=10 "$limit" bash -c "$call"; rc=$?
  printf '{"stage": "%s", "exit_status": %d, "seconds": %d, "limit": %d}\n' "$stage" "$rc" $((SECONDS - began)) "$limit" | tee "$out/stage-$stage.json"
  [ "$rc" -eq 0 ] || status=1
done
exit $status
