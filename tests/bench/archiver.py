"""PostgreSQL's archiver (pgarch.c) in a few lines, for a data directory whose server is stopped.

It takes the oldest segment that is marked ready, runs the command with `sh -c` in the data directory, waits for it, and renames
the mark. It fails where a command fails.
"""

import os
import pathlib
import time

STATUS = pathlib.Path("pg_wal/archive_status")


def drain(command, most=None):
    """Archives what is ready, at most so many segments. Returns the seconds of each call."""
    ready = sorted(path.name.removesuffix(".ready") for path in STATUS.iterdir() if path.suffix == ".ready")
    return [archive(command, segment) for segment in ready[:most]]


def archive(command, segment):
    words = command.replace("%p", f"pg_wal/{segment}").replace("%f", segment)
    status, took_s = run(["/bin/sh", "-c", words])
    if status != 0:
        raise RuntimeError(f"status {status} of: {words}")
    os.rename(STATUS / f"{segment}.ready", STATUS / f"{segment}.done")
    return took_s


def run(words):
    """The status of a command and the seconds that it took, with as little around it as there can be."""
    begun = time.monotonic()
    process = os.posix_spawn(words[0], words, os.environ)
    _, status = os.waitpid(process, 0)
    return status, time.monotonic() - begun
