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
import shutil
import signal
import subprocess
import sys
import time

import build
import slow_disk
import small
from backlog import Backlog
from backups import Backups
from calls import Calls
from daemon_memory import DaemonMemory
from dense import Dense
from host import REPOSITORY, Host, say
from many_files import MOST_FILES, ManyFiles
from pgbackrest import PgBackRest
from receive import Receive
from replay import Replay
from s3 import S3
from segment import Segment
from streamed import Streamed

LATENCIES_MS = (0, 20)
DOCUMENT = REPOSITORY / "docs/benchmarks.md"
MARK = "<!-- What follows is written by `make bench`. -->\n"


class Run:
    """What the subjects share. It is made when the first of them asks for it."""

    def __init__(self, arguments):
        self.rounds = arguments.rounds
        self.segments = arguments.segments
        self.scale = arguments.scale
        self.workers = arguments.workers
        self.files = arguments.files
        self.peers = dict(arguments.peers)
        self.minio = arguments.minio
        self.host = Host(build.walhalla(), arguments.keep)

    @functools.cached_property
    def programs(self):
        """The examples, where the user who runs servers can reach them."""
        programs = self.host.make(self.host.directory / "programs")
        for path in map(build.examples().joinpath, build.EXAMPLES):
            shutil.copy(path, programs)
        return programs

    @functools.cached_property
    def dense(self):
        return Dense(self.host, self.segments)

    @functools.cached_property
    def s3(self):
        return S3(self.host, self.programs, LATENCIES_MS, self.minio)


def backlog(run):
    subject = Backlog(run.host, run.dense, run.workers)
    subject.run(subject.to_directory(), run.rounds)
    for latency_ms in LATENCIES_MS:
        subject.run(subject.to_s3(run.s3, latency_ms), run.rounds, floor=False)
    return [subject.table(), subject.wanted(LATENCIES_MS)]


def calls(run):
    subject = Calls(run.host, run.dense, run.workers)
    subject.run(run.rounds)
    return subject.tables()


def segment(run):
    subject = Segment(run.host, run.dense, run.programs)
    subject.run(run.s3)
    return subject.tables()


def daemon(run):
    subject = DaemonMemory(run.host, run.dense)
    subject.run(run.s3)
    return subject.tables()


def replay(run):
    subject = Replay(run.host, run.dense, run.workers)
    subject.run(run.s3, run.rounds)
    return subject.tables()


def receive(run):
    subject = Receive(run.host)
    subject.run(run.rounds)
    return subject.tables()


def backups(run):
    subject = Backups(run.host, run.scale, run.workers, run.s3, LATENCIES_MS, run.peers)
    subject.run(run.rounds)
    return subject.tables()


def streamed(run):
    subject = Streamed(run.host, run.scale)
    subject.run(run.rounds)
    return subject.tables()


def many_files(run):
    subject = ManyFiles(run.host, run.workers, run.files)
    subject.run(run.rounds)
    return subject.tables()


def slow(run):
    if not slow_disk.is_possible():
        say("no slow disk: that takes root, and the blkio controller of cgroup v1")
        return []
    subject = slow_disk.SlowDisk(run.host, run.scale // 3, run.workers)
    subject.run(run.rounds)
    return subject.tables()


def start_up(run):
    return small.start_up(run.host, run.dense)


def upload(run):
    return small.upload(run.host, run.dense, run.s3, run.rounds)


def reader(run):
    return small.reader(run.host, run.dense, run.programs, run.rounds)


def sums(run):
    return small.sums(run.host, run.programs)


# In the order in which they run.
SUBJECTS = {
    "backlog": backlog,
    "calls": calls,
    "segment": segment,
    "daemon": daemon,
    "replay": replay,
    "upload": upload,
    "reader": reader,
    "sums": sums,
    "start-up": start_up,
    "receive": receive,
    "backups": backups,
    "streamed": streamed,
    "slow-disk": slow,
    "many-files": many_files,
}


def peer(text):
    name, _, program = text.partition("=")
    return name, program


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=200, help="of the backlog and of replay (200)")
    parser.add_argument("--scale", type=int, default=140, help="pgbench's, of the backups; 140 is about 2 GB (140)")
    parser.add_argument("--files", type=int, default=MOST_FILES, help=f"of the subject many-files ({MOST_FILES:,})")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of Walhalla and of pgBackRest (one a core)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured (3)")
    parser.add_argument("--peers", nargs="+", type=peer, default=[], metavar="NAME=PROGRAM", help="WAL-G and its like, for backups")
    parser.add_argument("--minio", metavar="PROGRAM", help="a MinIO to measure on, in place of the S3 server of the tests")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="these subjects only; then no document is written")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the run")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    # An end from outside cleans up, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
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
        f"- Machine: {os.cpu_count()} cores ({processor}), {memory_gib:.0f} GiB, {disk}, Linux {platform.release()}; load before the run "
        f"{os.getloadavg()[0]:.1f}.",
        f"- Versions: {first_line(run.host.walhalla, '--version')}; PostgreSQL {' and '.join(postgres)}; {PgBackRest.version()}; "
        f"lz4 {first_line('lz4', '--version').split(' v')[1].split(',')[0]}; haproxy {first_line('haproxy', '-v').split()[2]}.",
        f"- Settings: {arguments.segments} segments, medians of {arguments.rounds} rounds, {run.workers} workers on each side.",
        f"- Taken: {datetime.date.today()}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
