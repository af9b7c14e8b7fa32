#!/usr/bin/env bash
# usage: fuzz/run.sh SECONDS [TARGET…]
#
# Builds the fuzz targets once, replays fuzz/regressions, then fuzzes each target for SECONDS from
# the corpus that is checked in. Two targets run at a time (FUZZ_JOBS says otherwise). What is new
# goes to fuzz/target/corpus, crashes go to fuzz/artifacts; the checkout stays as it is.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-}
case $seconds in
  '' | *[!0-9]*) sed -n '2,6s/^# \{0,1\}//p' run.sh; exit 2 ;;
esac
shift
mapfile -t all < <(sed -n '/^\[\[bin\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml)
targets=("${@:-${all[@]}}")
jobs=${FUZZ_JOBS:-2}
# None may hang or swallow the machine.
limits=(-timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=4096)

# libFuzzer is C++.
if ! command -v c++ >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++ >/dev/null
fi
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz

# What is fuzzed has to be what is shipped, down to the versions of its dependencies.
packages() {
  sed -n '/^name = /{s/^name = "\(.*\)"/\1/;h;n;s/^version = "\(.*\)"/\1/;H;x;s/\n/ /p}' "$1" | sort
}
foreign=$(awk 'NR == FNR { have[$0]; known[$1]; next } $1 in known && !($0 in have)' \
  <(packages ../Cargo.lock) <(packages Cargo.lock))
if [ -n "$foreign" ]; then
  echo "fuzz/Cargo.lock has versions that Cargo.lock has not:" $foreign
  exit 1
fi

# Instrumentation needs flags that stable compilers keep behind this variable. No address sanitizer:
# the crates deny unsafe code, and what is looked for is panics, hangs and growth.
export RUSTC_BOOTSTRAP=1
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
started=$SECONDS
cargo fuzz build --sanitizer none --target-dir "$target_dir"
echo "built in $((SECONDS - started)) s"
host=$(rustc -vV | sed -n 's/^host: //p')
binaries=$target_dir/$host/release

for target in "${targets[@]}"; do
  mapfile -t pinned < <(find "regressions/$target" -type f 2>/dev/null | sort)
  if [ ${#pinned[@]} -gt 0 ]; then
    "$binaries/$target" "${limits[@]}" "${pinned[@]}" >"$target_dir/$target.log" 2>&1 || {
      tail -n 40 "$target_dir/$target.log"
      echo "$target: a bug is back"
      exit 1
    }
    echo "$target: ${#pinned[@]} regressions pass"
  fi
done

fuzz_one() {
  local target=$1 log=$target_dir/$1.log
  mkdir -p "$target_dir/corpus/$target" "artifacts/$target"
  if ! "$binaries/$target" "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 \
    -artifact_prefix="artifacts/$target/" \
    "$target_dir/corpus/$target" "corpus/$target" >"$log" 2>&1; then
    tail -n 60 "$log"
    echo "$target: FAILED; replay with $binaries/$target fuzz/artifacts/$target/FILE"
    return 1
  fi
  local executions coverage
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) corp: \([0-9]*\).*/\1 edges, \2 features, \3 inputs/p' "$log" | tail -n 1)
  echo "$target: $executions executions in $seconds s, $coverage"
}

failed=0
started=$SECONDS
for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
    wait -n || failed=1
  done
  fuzz_one "$target" &
done
while [ -n "$(jobs -rp)" ]; do
  wait -n || failed=1
done
echo "fuzzed ${#targets[@]} targets in $((SECONDS - started)) s"
exit "$failed"
