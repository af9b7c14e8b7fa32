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


def numbered(table, value):
    """The place of a value in a table that holds each only once."""
    text = tla(value)
    return table.setdefault(text, len(table) + 1)


def run(path, tamper=None):
    lines = [json.loads(line) for line in open(path, encoding="utf-8")]
    if tamper:
        lines = tamper(lines)
        if lines is None:
            return None
    messages, states = [], {}
    for line in lines:
        for message in line["out"]:
            if message["kind"] == "Snapshot":
                message["log"] = []  # The specification fills it in.
            messages.append(message)
        line["out"] = [message.pop("id") for message in line["out"]]
        line["state"] = numbered(states, line["state"])
        line["disk"] = numbered(states, line["disk"])
    nodes = len({line["node"] for line in lines})
    name = os.path.basename(path).removesuffix(".jsonl") + (f" {tamper.__name__}" if tamper else "")
    parts = [("lines", map(tla, lines)), ("messages", map(tla, messages)), ("states", states)]
    tables = [f"{part} |-> <<" + ",\n    ".join(rows) + ">>" for part, rows in parts]
    text = f"[name |-> {tla(name)}, nodes |-> {nodes},\n  " + ",\n  ".join(tables) + "]"
    return nodes, len(lines), text


# Lies that a replay must notice.


def commits_too_much(lines):
    """A follower applies what it has not verified."""
    for line in lines[len(lines) // 4 :]:
        state = line["state"]
        end = state and state["base"] + len(state["log"])
        if state and state["role"] == "Follower" and state["heard"] and state["verified"] < end:
            state["commit"] = end
            return lines
    return None


def acknowledges_too_much(lines):
    """A follower acknowledges an entry that it does not hold."""
    for line in lines[len(lines) // 2 :]:
        for message in line["out"]:
            if message["kind"] == "Acknowledge":
                message["match"] = line["state"]["base"] + len(line["state"]["log"]) + 1
                return lines
    return None


def votes_too_early(lines):
    """A vote leaves before the write that it speaks of."""
    for number, line in enumerate(lines):
        if line["input"] == "persisted" and any(
            message["kind"] == "Vote" and message["granted"] for message in line["out"]
        ):
            written = max(n for n in range(number) if lines[n]["input"] == "written")
            lines[written], lines[number] = lines[number], lines[written]
            return lines
    return None


def main():
    out, nodes_wanted, tampered, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    tampers = [commits_too_much, acknowledges_too_much, votes_too_early]
    runs, steps = [], 0
    for path in paths:
        for tamper in tampers if tampered == "tampered" else [None]:
            told = run(path, tamper)
            if told and told[0] == nodes_wanted:
                runs.append(told[2])
                steps += told[1]
    with open(out, "w", encoding="utf-8") as module:
        print("---- MODULE TraceData ----", file=module)
        for number, told in enumerate(runs, 1):
            print(f"Run{number} == {told}", file=module)
        names = ", ".join(f"Run{number}" for number in range(1, len(runs) + 1))
        print(f"Runs == <<{names}>>", file=module)
        print("====", file=module)
    print(len(runs), steps)


main()
