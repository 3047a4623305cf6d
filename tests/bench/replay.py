"""Archive recovery of the dense segments by PostgreSQL: from the server's start to the end of redo, as its log tells them."""

import datetime
import shutil

from backlog import Backlog
from host import GIVE_UP_AFTER_S, say
from report import Samples, Table, Wanted

LATENCY_MS = 20
LIMIT = 1.05
TIME = "%Y-%m-%d %H:%M:%S.%f"


class Replay:
    def __init__(self, host, dense, workers):
        self.host = host
        self.dense = dense
        self.backlog = Backlog(host, dense, workers)
        self.seconds = Samples()

    def run(self, s3, rounds):
        sides = self.sides(s3)
        for number in range(rounds):
            for name, (command, env) in sides.items():
                self.measure(name, command, env)

    def sides(self, s3):
        """Name, restore_command and environment of each; the archives are filled."""
        local = self.host.make(self.host.directory / "local")
        for segment in self.dense.segments:
            (local / segment).hardlink_to(self.dense.path(segment))
        own = f"{self.host.walhalla} wal-fetch %f %p"
        own_directory = self.filled(self.backlog.to_directory(), "Walhalla, ahead")
        sides = self.backlog.to_s3(s3, LATENCY_MS)
        own_s3 = self.filled(sides, f"S3, {LATENCY_MS} ms: Walhalla, ahead")
        peer_s3 = self.filled(sides, f"S3, {LATENCY_MS} ms: pgBackRest, async")
        get = peer_s3.command.replace("archive-push %p", "archive-get %f %p")
        return {
            "cp from a directory": (f"cp {local}/%f %p", {}),
            "Walhalla, directory": (own, own_directory.env),
            f"Walhalla, S3, {LATENCY_MS} ms": (own, own_s3.env),
            f"pgBackRest async, S3, {LATENCY_MS} ms": (get, {}),
        }

    def filled(self, sides, name):
        side = next(side for side in sides if side.name == name)
        self.backlog.drain(side)
        return side

    def measure(self, name, command, env):
        server = self.dense.base.copy("replay")
        # pgBackRest knows one data directory.
        command = command.replace(" archive-get", f" --pg1-path={server.data} archive-get")
        server.configure(f"archive_mode = off\nhot_standby = off\nlog_line_prefix = '%m '\nrestore_command = '{command}'")
        self.host.write(server.data / "recovery.signal", "")
        log = self.host.directory / "replay.log"
        log.unlink(missing_ok=True)
        self.dense.warm()
        self.host.run(server.programs / "pg_ctl", "--silent", "-W", "-D", server.data, "-l", log, "start", env=env)
        is_done = lambda: log.exists() and "redo done at" in log.read_text()
        self.host.wait_for(is_done, f"the end of redo in {log}", patience_s=GIVE_UP_AFTER_S)
        server.stop("immediate")
        self.seconds.add(name, redo_seconds(log))
        say(f"replay, {name}: {self.seconds.of[name][-1]:.2f} s")
        self.check(log)
        for directory in self.host.directory.glob("replay*"):
            shutil.rmtree(directory) if directory.is_dir() else None

    def check(self, log):
        """All of the segments were restored, and none twice."""
        restored = log.read_text().count("restored log file")
        if restored != len(self.dense.segments):
            say(f"replay: {restored} segments were restored, not {len(self.dense.segments)}")

    def tables(self):
        table = Table(f"Replay of {len(self.dense.segments)} dense segments", ["restore_command", "s", "of cp"])
        floor = self.seconds.median("cp from a directory")
        for name in self.seconds.sides():
            seconds = self.seconds.median(name)
            table.row(name, f"{seconds:.2f}", f"{seconds / floor:.2f}")
        wanted = Wanted("Replay: what is wanted of the time")
        own = self.seconds.median(f"Walhalla, S3, {LATENCY_MS} ms")
        wanted.at_most(f"S3, {LATENCY_MS} ms a request, of cp", own / floor, LIMIT, digits=3)
        return [table, wanted]


def redo_seconds(log):
    """From the log's first line to the end of redo."""
    lines = log.read_text().splitlines()
    done = next(line for line in lines if "redo done at" in line)
    return (moment(done) - moment(lines[0])).total_seconds()


def moment(line):
    day, time, _ = line.split(" ", 2)
    return datetime.datetime.strptime(f"{day} {time}", TIME)
