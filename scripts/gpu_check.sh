#!/usr/bin/env bash
# Checks and measures this project on a machine with a CUDA GPU, without a network.
#
#   scripts/gpu_check.sh [--out DIR] [--wheels DIR] [--work DIR] [--second-device cuda|cpu] [tests] [build-model] [measure]
#
# Needs Python 3.12 or so with torch (CUDA), nanobind, scikit-build-core and cmake installed; what else is missing is taken from the
# wheels in --wheels. Stages run in the order given, all three by default; each has its own time limit (seconds, in TESTS_LIMIT,
# BUILD_LIMIT, MEASURE_LIMIT) and can be called alone. --out receives JSON after every row, in at most eight files; --work holds
# the models, 45 GB for both 7B shapes and one checkpoint of them, and what is installed.
#
#   tests        the tests that need a GPU
#   build-model  MODELS (default "mistral-7b,llama-7b"), drawn on the GPU: scripts/gpu_build.py. About two minutes.
#   measure      scripts/gpu_measure.py with MEASURE_OPTIONS, such as "--only operators,hardware" or "--budgets 0.5": operators
#                take about a minute, the machine's figures half a minute, and a budget one to two minutes of each model
#
# --second-device cpu rehearses everything without a GPU; MODEL_SHAPE holds options of scripts/make_synthetic.py for one small model:
#   MODEL_SHAPE="--hidden 512 --layers 6 --ffn 2048 --heads 8 --kv-heads 2" scripts/gpu_check.sh --second-device cpu
set -uo pipefail
cd "$(dirname "$0")/.."

out=build/gpu wheels="" work=build/gpu-work device=cuda stages=()
usage() { sed -n '2,19p' "$0" | sed 's/^# \{0,1\}//'; }
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

run_tests() {
  python3 -P -m pytest -q -m gpu --timeout 300 --junitxml "$out/tests.xml" tests
  rc=$?
  [ "$rc" -eq 5 ] && [ "$device" = cpu ] && rc=0  # without a GPU there is nothing to collect
  return $rc
}
build_model() {
  python3 scripts/gpu_build.py "$work/models" --out "$out/build.json" --device "$device" \
    --models "${MODELS:-mistral-7b,llama-7b}" ${MODEL_SHAPE:+--shape "$MODEL_SHAPE"}
}
measure() {
  found=()
  for folder in "$work"/models/*; do [ -e "$folder/model.json" ] && found+=("$folder"); done
  [ ${#found[@]} -gt 0 ] || { echo "gpu_check: no model in $work/models; run the stage build-model first" >&2; return 1; }
  # shellcheck disable=SC2086 - options are words
  python3 scripts/gpu_measure.py "${found[@]}" --out "$out" --second-device "$device" ${MEASURE_OPTIONS:-}
}

status=0
install || { echo "gpu_check: the project could not be installed from $PWD" >&2; exit 1; }
export PYTHONPATH=$site HYBRID_CACHE=$work/cache PYTHONUNBUFFERED=1
for stage in "${stages[@]}"; do
  case "$stage" in
    tests) limit=${TESTS_LIMIT:-300} call=run_tests ;;
    build-model) limit=${BUILD_LIMIT:-420} call=build_model ;;
    measure) limit=${MEASURE_LIMIT:-560} call=measure ;;
  esac
  began=$SECONDS
  # A subshell of its own process group, so that the limit ends all of it.
  export -f run_tests build_model measure; export out work device
  timeout --kill-after=10 "$limit" bash -c "$call"; rc=$?
  printf '{"stage": "%s", "exit_status": %d, "seconds": %d, "limit": %d}\n' "$stage" "$rc" $((SECONDS - began)) "$limit" | tee -a "$out/stages.jsonl"
  [ "$rc" -eq 0 ] || status=1
done
exit $status
