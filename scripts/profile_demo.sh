#!/usr/bin/env bash
# Makes the profile and the predictors that ship with the demo model, from profile.jsonl; calibrate.jsonl and heldout.jsonl
# are not touched. Usage: scripts/profile_demo.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
hybrid="${HYBRID:-.venv/bin/hybrid}"
folder="${1:-build/demo-profiled}"
demo=hybrid/demo
rm -rf "$folder"
"$hybrid" pack "$demo" "$folder"
"$hybrid" profile "$folder" --text "$demo/profile.jsonl" --predictor-bytes 4.9% --keep 0.993
mkdir -p "$demo/profiles" "$demo/predictors"
cp "$folder/profiles/default.safetensors" "$demo/profiles/default.safetensors"
cp "$folder/predictors/default.safetensors" "$demo/predictors/default.safetensors"
