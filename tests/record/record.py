#!/usr/bin/env python3
"""Records real clients against real brokers: NAME.pcap and NAME.json, what was on the wire and what the applications saw.

usage: record.py FOLDER [NAME ...]

Needs root (a network namespace of its own, a packet socket), Java and the jars that `cargo xtask test` keeps in the cache.
See README.md.
"""

import pathlib
import sys

import lab
import versions

GROUPS = ["cluster", "coordinates", "sasl", "groups", "libraries", "versions"]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
    groups = {group: [name for name in group.SCENARIOS if not names or name in names] for group in map(__import__, GROUPS)}
    versions.fetch(groups[versions])
    lab.enter_own_network()
    out.mkdir(parents=True, exist_ok=True)
    for group, wanted in groups.items():
        if wanted:
            group.record(out, wanted)


main()
