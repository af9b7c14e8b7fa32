#!/usr/bin/env python3
"""Turns recorded runs (one JSON line per step) into the TLA+ module TraceData."""

import json
import os
import sys


def tla(value):
    """A JSON value as TLA+ writes it; what is absent is an empty record of no use."""
    if value is None:
        return "[absent |-> TRUE]"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "<<" + ", ".join(tla(item) for item in value) + ">>"
    return "[" + ", ".join(f"{key} |-> {tla(item)}" for key, item in value.items()) + "]"


def complete(message):
    """Broadcasts and snapshots have the fields that the specification's have."""
    if message["kind"] == "Snapshot":
        message["log"] = []
    return message


def run(path):
    lines = [json.loads(line) for line in open(path, encoding="utf-8")]
    messages = [complete(message) for line in lines for message in line["out"]]
    assert [message["id"] for message in messages] == list(range(1, len(messages) + 1)), path
    nodes = len({line["node"] for line in lines})
    name = os.path.basename(path).removesuffix(".jsonl")
    return nodes, len(lines), {"name": name, "nodes": nodes, "lines": lines, "messages": messages}


def main():
    out, nodes_wanted, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    runs, steps = [], 0
    for path in paths:
        nodes, lines, told = run(path)
        if nodes == nodes_wanted:
            runs.append(told)
            steps += lines
    with open(out, "w", encoding="utf-8") as module:
        print("---- MODULE TraceData ----", file=module)
        for number, told in enumerate(runs, 1):
            print(f"Run{number} == {tla(told)}", file=module)
        names = ", ".join(f"Run{number}" for number in range(1, len(runs) + 1))
        print(f"Runs == <<{names}>>", file=module)
        print("====", file=module)
    print(len(runs), steps)


main()
