#!/usr/bin/env bash
# Line and branch coverage of crates/raft and crates/replica by simulation alone.
#
#   scripts/coverage.sh [STORMS] [SEEDS]      e.g. scripts/coverage.sh 2000 0..40
#
# STORMS seeds of the core's own storm (crates/raft/tests/cluster/stress.rs), a node among seeded
# liars (hostile.rs beside it) and SEEDS of the simulator run on instrumented builds; no unit test
# and no golden script does. Test modules are not compiled into those builds, so only production
# code is counted. The tables go to the standard output; what no seed reached, line by line, to
# target/coverage/uncovered-*.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

storms=${1:-2000}
seeds=${2:-0..40}

# The tools must read what this rustc's LLVM writes.
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
if ! command -v "llvm-cov-$llvm" >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "llvm-$llvm" >/dev/null
  else
    echo "llvm-cov-$llvm is missing: install the package llvm-$llvm" >&2
    exit 1
  fi
fi

out=${CARGO_TARGET_DIR:-target}/coverage
mkdir -p "$out/profiles"
rm -f "$out"/profiles/*
export CARGO_TARGET_DIR="$out/build"
# Branches are counted by an unstable option; the compiler is the stable one all the same.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-C instrument-coverage -Z coverage-options=branch"
# Build scripts and procedural macros are instrumented too, and not asked for.
export LLVM_PROFILE_FILE=/dev/null

storm=$(cargo test --release --locked -p raft --test cluster --no-run --message-format json |
  sed -n 's/.*"name":"cluster".*"executable":"\([^"]*\)".*/\1/p')
cargo build --release --locked -p sim
sim="$out/build/release/sim"

export LLVM_PROFILE_FILE="$out/profiles/storm-%p.profraw"
STRESS_SEEDS=$storms "$storm" stress:: hostile:: --nocapture
export LLVM_PROFILE_FILE="$out/profiles/sim-%p.profraw"
"$sim" --seeds "$seeds" --jobs 2

"llvm-profdata-$llvm" merge -sparse "$out"/profiles/*.profraw -o "$out/all.profdata"

# Nothing is left out of what is counted: not derived code, not guards that no input can reach.
for crate in raft replica; do
  echo
  echo "crates/$crate: $storms storms, simulator seeds $seeds, $(git rev-parse --short HEAD)"
  "llvm-cov-$llvm" report "$storm" -object "$sim" -instr-profile "$out/all.profdata" \
    -show-branch-summary -show-region-summary=false \
    --sources "crates/$crate/src"
  "llvm-cov-$llvm" show "$storm" -object "$sim" -instr-profile "$out/all.profdata" \
    -show-branches=count --sources "crates/$crate/src" >"$out/$crate.txt"
  grep -E '^ *[0-9]+\| +0\||^/|Branch .*(True: 0,|False: 0\])' "$out/$crate.txt" \
    >"$out/uncovered-$crate.txt" || true
done
