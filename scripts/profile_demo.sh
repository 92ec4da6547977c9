#!/usr/bin/env bash
# Makes the profile and the predictors that ship with the demo model, from its own texts: profile.jsonl is counted and
# trained on, calibrate.jsonl decides the thresholds. heldout.jsonl is not touched. Usage: scripts/profile_demo.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
hybrid="${HYBRID:-.venv/bin/hybrid}"
folder="${1:-build/demo-profiled}"
demo=hybrid/demo
rm -rf "$folder"
"$hybrid" pack "$demo" "$folder"
"$hybrid" profile "$folder" --text "$demo/profile.jsonl" --predictor-bytes 5% --keep 0.993
"$hybrid" calibrate "$folder" --text "$demo/calibrate.jsonl" --budget 0.1% --least-mass 0.993
mkdir -p "$demo/profiles" "$demo/predictors"
cp "$folder/profiles/default.safetensors" "$demo/profiles/default.safetensors"
cp "$folder/predictors/default.safetensors" "$demo/predictors/default.safetensors"
