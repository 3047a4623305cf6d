"""Archive recovery of the dense segments by PostgreSQL: from the server's start to the end of redo, as its log tells them."""

import datetime
import re
import shutil

from backlog import Backlog
from host import GIVE_UP_AFTER_S, Failed, say
from report import Samples, Table, Wanted

LATENCY_MS = 20
LIMIT = 1.05
CP = "cp from a directory"
OWN = f"Walhalla, S3, {LATENCY_MS} ms"
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
            for name in (CP, OWN):
                self.measure(name, *sides[name])
        # Once each: redo takes its time.
        for name in list(sides)[2:]:
            self.measure(name, *sides[name])

    def sides(self, s3):
        """Name, restore_command and environment of each; the archives are filled."""
        local = self.host.make(self.host.directory / "local")
        for segment in self.dense.segments:
            (local / segment).hardlink_to(self.dense.path(segment))
        own = f"{self.host.walhalla} wal-fetch %f %p"
        own_directory = self.filled(self.backlog.to_directory(), "Walhalla, ahead")
        sides = self.backlog.to_s3(s3, LATENCY_MS)
        own_s3 = self.filled(sides, f"S3, {LATENCY_MS} ms: Walhalla, ahead")
        without_tls = own_s3.env | s3.walhalla_without_tls(LATENCY_MS, f"walhalla-{LATENCY_MS}")
        peer_s3 = self.filled(sides, f"S3, {LATENCY_MS} ms: pgBackRest, async")
        get = peer_s3.command.replace("archive-push %p", "archive-get %f %p")
        return {
            CP: (f"cp {local}/%f %p", {}),
            OWN: (own, without_tls),
            "Walhalla, directory": (own, own_directory.env),
            f"Walhalla, S3 over TLS, {LATENCY_MS} ms": (own, own_s3.env),
            f"pgBackRest async, S3 over TLS, {LATENCY_MS} ms": (get, {}),
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
        for directory in (server.data, server.data.with_name("replay.walhalla-spool")):
            shutil.rmtree(directory, ignore_errors=True)

    def check(self, log):
        """All of the segments were restored."""
        restored = set(re.findall(r'restored log file "(\w{24})"', log.read_text()))
        if missing := set(self.dense.segments) - restored:
            raise Failed(f"replay did not restore {sorted(missing)}, see {log}")

    def tables(self):
        table = Table(f"Replay of {len(self.dense.segments)} dense segments", ["restore_command", "s", "of cp"])
        floor = self.seconds.median(CP)
        for name in self.seconds.sides():
            seconds = self.seconds.median(name)
            table.row(name, f"{seconds:.2f}", f"{seconds / floor:.2f}")
        wanted = Wanted("Replay: what is wanted of the time")
        own = self.seconds.median(OWN)
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
