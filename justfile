# Everything here runs from a clean checkout. `just` alone lists the recipes.

_default:
    @just --list --unsorted

# Format, lints, docs and tests; changes nothing.
verify: lint test

# Formatting, clippy and documentation, warnings denied.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --locked

# All tests. Those that need Mosquitto say "skipped" where it is missing.
test:
    cargo test --workspace --locked

# Formats, and mends what clippy can.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged
    cargo fmt --all

# Licences, duplicates and sources of dependencies, and advisories where the network allows.
deny:
    cargo deny check || cargo deny check bans licenses sources

# One seed of the simulator, event by event; if it fails, what is left of it when it is made short.
sim seed:
    cargo run --release -p sim -- --seed {{seed}} --trace --shrink

# A campaign of the simulator, ten virtual minutes a seed; `--minutes M` ends it sooner.
campaign seeds="0..2000" *args="":
    cargo run --release -p sim --features porcupine -- --seeds {{seeds}} --jobs 2 --shrink {{args}}

# How much faster than real time the simulator is, on one core.
bench-sim:
    cargo run --profile dist -p sim -- --seeds 0..8 --seconds 600 --bench --jobs 1

# 200 rounds of kill -9, SIGSTOP and broker restarts against real processes on a real broker.
chaos rounds="50":
    MQRAFT_REQUIRE_BROKERS=1 MQRAFT_CHAOS_ROUNDS={{rounds}} cargo test --release -p mqraft --test chaos -- --nocapture --test-threads 1

# Restarts and upgrades a cluster node by node under a client that writes: what the client notices.
rolling rounds="5":
    MQRAFT_REQUIRE_BROKERS=1 MQRAFT_ROLLING_ROUNDS={{rounds}} cargo test --release -p mqraft --test rolling -- --nocapture --test-threads 1

# One program on two sites (`mqraft run`) under kill -9, SIGSTOP and cuts: never two at once, and how long none.
singleton faults="100":
    MQRAFT_REQUIRE_BROKERS=1 MQRAFT_SINGLETON_FAULTS={{faults}} cargo test --release -p mqraft --test singleton -- --nocapture

# The product beside its floor and etcd: latency, throughput, memory, size.
bench *args="":
    cargo bench -p mqraft --bench spine -- {{args}}

# 200 times kill -9 of a leader, and as many releases: the first commit, the next exclusive leader.
bench-failover kills="200":
    cargo bench -p mqraft --bench spine -- failover --rounds {{kills}}

# A leader is cut off 100 times (network namespaces: root): its last heartbeat to the next commit.
bench-silence cuts="100":
    cargo bench -p mqraft --bench spine -- silence --rounds {{cuts}}

# One of two brokers is killed under load, 20 times: the longest time without a commit.
bench-brokers kills="20":
    cargo bench -p mqraft --bench spine -- brokers --rounds {{kills}}

# Bytes that a leader sends for each byte committed: 3, 5, 7 voters, 1,000 observers.
bench-volume:
    cargo bench -p mqraft --bench spine -- volume

# Packets a second of 30 idle nodes: 27 that are only there, and 27 that hold the state.
bench-traffic seconds="60":
    cargo bench -p mqraft --bench spine -- traffic --rounds {{seconds}}

# The log beside a bare fdatasync.
bench-store:
    cargo bench -p store --bench append

# The specification with TLC: large searches past ten million states (an hour of a busy core); ci, guards and traces take minutes.
tla what="large":
    spec/check.sh {{what}}

# Every fuzz target for so many seconds, two at a time; crashes go to fuzz/artifacts.
fuzz seconds="600" *targets="":
    fuzz/run.sh {{seconds}} {{targets}}

# Plants one protocol bug after another in a scratch copy: scripts, storm or simulation must notice.
mutants pattern="":
    crates/sim/mutants/run.py "{{pattern}}"

# Line and branch coverage of the core and of a node by simulation alone.
coverage storms="2000" seeds="0..40":
    scripts/coverage.sh {{storms}} {{seeds}}

# cargo-mutants on the core: whatever survives must be argued for in docs/mutants-survivors.md.
cargo-mutants *args="":
    command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants
    STRESS_SEEDS=20 cargo mutants --package raft --jobs 1 --output target {{args}}
