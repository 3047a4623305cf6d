#!/usr/bin/env python3
"""Whole-process figures of Walhalla beside its peers: `make bench`.

Prints tables in Markdown to standard output, progress to standard error. A complete run also writes them into
docs/benchmarks.md, below the line that says so. Nothing decides whether it passes: the tables say what was wanted.
"""

import argparse
import datetime
import functools
import os
import pathlib
import platform
import subprocess
import sys
import time

import build
from backlog import Backlog
from dense import Dense
from host import REPOSITORY, Host, say
from pgbackrest import PgBackRest
from s3 import S3

LATENCIES_MS = (0, 20)
DOCUMENT = REPOSITORY / "docs/benchmarks.md"
MARK = "<!-- What follows is written by `make bench`. -->\n"


class Run:
    """What the subjects share. It is made when the first of them asks for it."""

    def __init__(self, arguments):
        self.rounds = arguments.rounds
        self.segments = arguments.segments
        self.workers = os.cpu_count()
        self.host = Host(build.walhalla(), arguments.keep)

    @functools.cached_property
    def examples(self):
        return build.examples()

    @functools.cached_property
    def dense(self):
        return Dense(self.host, self.segments)

    @functools.cached_property
    def s3(self):
        return S3(self.host, self.examples, LATENCIES_MS)


def backlog(run):
    subject = Backlog(run.host, run.dense, run.workers)
    subject.run(subject.to_directory(), run.rounds)
    for latency_ms in LATENCIES_MS:
        subject.run(subject.to_s3(run.s3, latency_ms), run.rounds, floor=False)
    return [subject.table(), subject.wanted(LATENCIES_MS)]


# In the order in which they run.
SUBJECTS = {
    "backlog": backlog,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=200, help="of the backlog and of replay (200)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured (3)")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="these subjects only; then no document is written")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the run")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    build.install()
    run = Run(arguments)
    try:
        sections = [machine(run, arguments)]
        for name in arguments.only or SUBJECTS:
            sections += measure(name, run)
    finally:
        run.host.clean_up()
    text = "\n".join(sections)
    print(text)
    if not arguments.only:
        by_hand = DOCUMENT.read_text().split(MARK)[0]
        DOCUMENT.write_text(by_hand + MARK + "\n" + text)


def measure(name, run):
    """The tables of a subject."""
    begun = time.monotonic()
    tables = [table.markdown() for table in SUBJECTS[name](run)]
    print("\n".join(tables), file=sys.stderr)
    say(f"{name} took {time.monotonic() - begun:.0f} s")
    return tables


def machine(run, arguments):
    """Machine, versions and settings."""
    def first_line(*words):
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0].strip()

    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    disk = first_line("findmnt", "-no", "FSTYPE", "--target", run.host.directory)
    postgres = [first_line(run.host.postgres / str(major) / "bin/postgres", "--version").split()[-1] for major in build.MAJORS]
    lines = [
        "## Figures",
        f"- Machine: {run.workers} cores ({processor}), {memory_gib:.0f} GiB, {disk}, Linux {platform.release()}; load before the run "
        f"{os.getloadavg()[0]:.1f}.",
        f"- Versions: {first_line(run.host.walhalla, '--version')}; PostgreSQL {' and '.join(postgres)}; {PgBackRest.version()}; "
        f"{first_line('lz4', '--version').strip('* ')}; {first_line('haproxy', '-v').split(' http')[0]}.",
        f"- Settings: {arguments.segments} segments, medians of {arguments.rounds} rounds, {run.workers} workers on each side.",
        f"- Taken: {datetime.date.today()}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
