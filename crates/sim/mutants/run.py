#!/usr/bin/env python3
"""Mutants of the protocol: each patch beside this file plants one bug, and something has to notice.

    run.py                    every mutant, each until its first killer
    run.py "lease|read"       those whose names match
    run.py --all              every killer on every mutant: what would have noticed by itself?
    run.py --check            only whether each patch is complete and still applies; takes a second

The mutants are of the last commit: a clone of it below the target directory is patched, built
incrementally and patched back. Three kinds of killers are tried in this order:

    scripts      golden scripts, hostile peers and the tests of the crates that could notice
    stress       the seeded storm of crates/raft/tests/cluster/stress.rs
    simulation   a bounded campaign of crates/sim

Before the mutants, all of them are tried on the tree as it is: a killer that fails there tells
nothing. The exit code is 0 if every mutant applies, builds and is killed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FIELDS = ["Name", "Area", "Bug", "Breaks", "Killed by"]
KINDS = ["scripts", "stress", "simulation"]

# What takes ten times as long as it should has been made to go round in circles.
LIMITS = {"scripts": 120, "stress": 300, "simulation": 900}

PANIC = re.compile(r"panicked at (\S+?):\d+:\d+:\n(.*)")


class Mutant:
    def __init__(self, path):
        self.path = path
        text = path.read_text()
        head, separator, self.diff = text.partition("\n--- a/")
        self.fields = {}
        field = None
        for line in head.splitlines():
            name, colon, value = line.partition(":")
            if colon and name in FIELDS:
                field = name
                self.fields[field] = value.strip()
            elif field and line.strip():
                self.fields[field] += " " + line.strip()
        self.files = re.findall(r"^\+\+\+ b/(\S+)", text, re.M)
        self.name = self.fields.get("Name", path.stem)

    def complaint(self):
        """What is wrong with the file itself, if anything."""
        missing = [field for field in FIELDS if not self.fields.get(field)]
        if missing:
            return "has no line " + ", ".join(missing)
        if self.name != self.path.stem:
            return f"is called {self.name} inside"
        crates = ("crates/raft/src/", "crates/replica/src/", "crates/store/src/")
        if not self.files or not all(file.startswith(crates) for file in self.files):
            return "changes something else than raft, replica or store"
        return None


class Verdict:
    """What a killer said: `by` is None if it noticed nothing."""

    def __init__(self, by=None, why="", after=""):
        self.by, self.why, self.after = by, why, after


def git(*words, tree=ROOT, check=True):
    return subprocess.run(
        ["git", "-C", str(tree), *map(str, words)], check=check, capture_output=True, text=True
    )


class Scratch:
    """A clone of the last commit, and one target directory for all that is built in it."""

    def __init__(self):
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        self.tree = target.absolute() / "mutants" / "tree"
        self.build = target.absolute() / "mutants" / "build"
        self.commit = git("rev-parse", "HEAD").stdout.strip()
        if not self.tree.exists():
            self.tree.parent.mkdir(parents=True, exist_ok=True)
            git("clone", "--quiet", "--no-checkout", ROOT, self.tree)
        git("fetch", "--quiet", ROOT, "HEAD", tree=self.tree)
        git("checkout", "--quiet", "--force", "--detach", self.commit, tree=self.tree)

    def clean(self):
        git("checkout", "--quiet", "--", ".", tree=self.tree)

    def apply(self, mutant):
        self.clean()
        applied = git("apply", mutant.path, tree=self.tree, check=False)
        return None if applied.returncode == 0 else first_line(applied.stderr)

    def cargo(self, *words):
        """Builds; returns the executables by target, or what the compiler said."""
        environment = {
            **os.environ,
            "CARGO_TARGET_DIR": str(self.build),
            "CARGO_INCREMENTAL": "1",
            "RUSTFLAGS": "-Awarnings",
        }
        command = ["cargo", *words, "--release", "--locked", "--message-format=json"]
        done = subprocess.run(
            command, cwd=self.tree, env=environment, capture_output=True, text=True
        )
        executables, error = {}, ""
        for line in done.stdout.splitlines():
            message = json.loads(line)
            if message["reason"] == "compiler-artifact" and message.get("executable"):
                target = message["target"]["name"]
                executables[target] = (message["executable"], Path(message["manifest_path"]).parent)
            elif message["reason"] == "compiler-message" and not error:
                if message["message"]["level"] == "error":
                    error = first_line(message["message"]["rendered"])
        if done.returncode != 0:
            raise DoesNotBuild(error or first_line(done.stderr))
        return executables


class DoesNotBuild(Exception):
    pass


def first_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "without a word"


def run(executable, words, limit, **environment):
    """Runs to the end or to the limit; None as exit code says that it had to be stopped."""
    path, folder = executable
    try:
        done = subprocess.run(
            [path, *words],
            cwd=folder,
            env={**os.environ, "RUST_BACKTRACE": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
        )
        return done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as stopped:
        return None, (stopped.stdout or b"").decode(errors="replace")


def first_panic(output):
    """The first panic that is more than a story that reads differently."""
    panics = [p for p in PANIC.findall(output) if "goldenfile" not in p[0]]
    told = [p[1].strip() for p in panics if "scripts that failed" not in p[1]]
    if told:
        return told[0]
    return "the story reads differently" if "goldenfile" in output else "without a word"


def some(names):
    names = sorted(set(names))
    more = f" +{len(names) - 2}" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


# Killers. Each builds what it needs, so that a mutant killed early costs little.


def scripts(scratch, files, options):
    of = lambda crate: any(file.startswith(f"crates/{crate}/") for file in files)
    if not files or of("raft"):
        built = scratch.cargo("test", "--no-run", "-p", "raft", "--lib", "--test", "cluster")
        verdict = tests(built["cluster"], "raft", ["--skip", "stress::", "--nocapture"])
        verdict = verdict if verdict.by else tests(built["raft"], "raft", [])
        if verdict.by:
            return verdict
    if not files or of("raft") or of("replica"):
        built = scratch.cargo("test", "--no-run", "-p", "replica", "--lib")
        verdict = tests(built["replica"], "replica", [])
        if verdict.by:
            return verdict
    if not files or of("store"):
        built = scratch.cargo("test", "--no-run", "-p", "store", "--lib", "--tests")
        for target in ["store", "stories", "crashes", "rot"]:
            verdict = tests(built[target], "store", [])
            if verdict.by:
                return verdict
    return Verdict()


def tests(executable, crate, words):
    status, output = run(executable, words, LIMITS["scripts"])
    if status == 0:
        return Verdict()
    if status is None:
        return Verdict(f"tests of {crate}", "they do not end")
    stories = output.partition("scripts that failed:")[2]
    stories = re.findall(r"testscripts/(\w+)\.txt", stories)
    if stories:
        return Verdict(some(stories), first_panic(output))
    failed = re.findall(r"^test (\S+) .*\bFAILED$", output, re.M)
    failed = failed or re.findall(r"^    (\S+::\S+)$", output, re.M)
    failed = [name.replace("::tests::", "::") for name in failed]
    return Verdict(f"{crate} {some(failed) or 'tests'}", first_panic(output))


def stress(scratch, files, options):
    if files and not any(file.startswith("crates/raft/") for file in files):
        return Verdict()
    built = scratch.cargo("test", "--no-run", "-p", "raft", "--lib", "--test", "cluster")
    words = ["stress::", "--nocapture"]
    status, output = run(
        built["cluster"], words, LIMITS["stress"], STRESS_SEEDS=str(options.stress)
    )
    if status == 0:
        return Verdict()
    if status is None:
        return Verdict("stress", "it does not end")
    seeds = [int(seed) for seed in re.findall(r"STRESS_SEED=(\d+)", output)]
    return Verdict("stress", first_panic(output), f"seed {min(seeds, default=0)}")


def simulation(scratch, files, options):
    executable, folder = scratch.cargo("build", "-p", "sim")["sim"]
    command = [executable, "--seeds", options.seeds, "--jobs", str(options.jobs)]
    command += ["--seconds", str(options.seconds), "--fail-fast"]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "RUST_BACKTRACE": "0"},
    )
    os.set_blocking(process.stderr.fileno(), False)
    heard = ""
    while True:
        # The first seed that fails is enough.
        heard += (process.stderr.read() or b"").decode(errors="replace")
        found = re.search(r"^seed (\d+)(?: failed)?: (.*)$", heard, re.M)
        status = process.poll()
        too_long = time.monotonic() - began > LIMITS["simulation"]
        if found or too_long or status is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    if found:
        return Verdict("simulation", found[2], f"seed {found[1]}")
    if too_long:
        return Verdict("simulation", "it does not end")
    return Verdict() if status == 0 else Verdict("simulation", first_panic(heard))


KILLERS = {"scripts": scripts, "stress": stress, "simulation": simulation}


def try_mutant(scratch, mutant, options):
    """The verdicts by kind; with --all one of each, otherwise up to the first killer."""
    problem = scratch.apply(mutant)
    if problem:
        return problem, {}
    verdicts = {}
    try:
        for kind in options.kinds:
            verdicts[kind] = KILLERS[kind](scratch, mutant.files, options)
            if verdicts[kind].by and not options.all:
                break
    except DoesNotBuild as error:
        return f"does not build: {error}", {}
    return None, verdicts


def check(mutants):
    failed = 0
    for mutant in mutants:
        complaint = mutant.complaint()
        if not complaint:
            applied = git("apply", "--check", mutant.path, check=False)
            complaint = first_line(applied.stderr) if applied.returncode else None
        if complaint:
            failed += 1
            print(f"{mutant.path.name}: {complaint}")
    print(f"{len(mutants)} mutants, {failed} to be mended")
    return failed == 0


def baseline(scratch, options):
    scratch.clean()
    for kind in options.kinds:
        verdict = KILLERS[kind](scratch, [], options)
        if verdict.by:
            sys.exit(f"without any mutant, {verdict.by} fails: {verdict.why} {verdict.after}")


def campaign(mutants, options):
    scratch = Scratch()
    baseline(scratch, options)
    print(f"mutants of commit {scratch.commit[:12]}, {time.strftime('%Y-%m-%d', time.gmtime())}")
    print(f"stress: {options.stress} seeds")
    print(f"simulation: seeds {options.seeds}, {options.seconds} virtual seconds each")
    print()
    columns = [*options.kinds] if options.all else ["killed by", "after"]
    widths = [max(len(mutant.name) for mutant in mutants)]
    widths += [44 if column in ("scripts", "killed by") else 10 for column in columns]
    print(row(widths, ["mutant", *columns, "s", "first words"]), flush=True)
    survived, broken, alone = [], [], {}
    for mutant in mutants:
        began = time.monotonic()
        problem, verdicts = try_mutant(scratch, mutant, options)
        took = f"{time.monotonic() - began:.0f}"
        if problem:
            broken.append(mutant.name)
            cells = ["-"] * len(columns)
            print(row(widths, [mutant.name, *cells, took, problem]), flush=True)
            continue
        killers = [kind for kind, verdict in verdicts.items() if verdict.by]
        if not killers:
            survived.append(mutant.name)
        kinds = " and ".join(killers) or "nothing"
        alone[kinds] = alone.get(kinds, 0) + 1
        first = verdicts[killers[0]] if killers else Verdict("survived")
        if options.all:
            cells = [cell(verdicts[kind], kind) for kind in options.kinds]
        else:
            cells = [first.by, first.after]
        print(row(widths, [mutant.name, *cells, took, first.why[:110]]), flush=True)
    scratch.clean()
    killed = len(mutants) - len(survived) - len(broken)
    print()
    print(f"{killed} of {len(mutants)} killed")
    for kinds, count in sorted(alone.items()):
        print(f"  {count:>3} by {kinds}")
    for name in survived:
        print(f"survived: {name}")
    for name in broken:
        print(f"to be mended: {name}")
    return not survived and not broken


def cell(verdict, kind):
    if not verdict.by:
        return "-"
    return verdict.by if kind == "scripts" else verdict.after or "killed"


def row(widths, cells):
    *cells, took, words = cells
    text = "  ".join(cell[:width].ljust(width) for cell, width in zip(cells, widths))
    return f"{text}  {took:>4}  {words}".rstrip()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression that their names match")
    parser.add_argument("--check", action="store_true", help="only whether each patch applies")
    parser.add_argument("--all", action="store_true", help="every kind of killer on every mutant")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"default {','.join(KINDS)}")
    parser.add_argument("--stress", type=int, default=2_000, help="seeds of the storm")
    parser.add_argument("--seeds", default="0..300", help="seeds of the simulator")
    parser.add_argument("--seconds", type=int, default=120, help="virtual seconds of faults a seed")
    parser.add_argument("--jobs", type=int, default=2, help="seeds simulated at a time")
    options = parser.parse_args()
    options.kinds = options.kinds.split(",")
    if unknown := [kind for kind in options.kinds if kind not in KILLERS]:
        parser.error(f"no kind of killer: {', '.join(unknown)}")
    paths = sorted(path for path in HERE.glob("*.patch") if re.search(options.pattern, path.stem))
    if not paths:
        parser.error(f"no mutant is called {options.pattern}")
    mutants = [Mutant(path) for path in paths]
    held = check(mutants) if options.check else campaign(mutants, options)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
