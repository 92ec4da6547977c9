#!/usr/bin/env bash
# What a new user does first, from a clean state: an empty home folder, no cache, no settings but those of the network, and the
# committed state of this checkout. Each command is shown with what it prints and the seconds that it took.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
home=$(mktemp -d "${TMPDIR:-/tmp}/hybrid-clean-XXXXXX")
trap 'rm -rf "$home"' EXIT
mapfile -t network < <(env | grep -iE '^(PIP_[A-Z_]+|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|TORCH_INDEX)=' || true)

run() {
  local began=$SECONDS
  echo "\$ $*"
  env -i "HOME=$home" PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 TERM=dumb "${network[@]}" "$@" 2>&1 | sed "s#$home#~#g"
  echo "# $((SECONDS - began)) s"
}

cd "$home"
run git clone --quiet "$checkout" hybrid
cd hybrid
run make demo "TORCH=${1:-cpu}"
