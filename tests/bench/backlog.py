"""A backlog of dense segments that PostgreSQL's archiver drains: to a directory, to S3 without and with latency."""

import dataclasses
import os
import pathlib
import time
import typing

import archiver
from host import say
from pgbackrest import PgBackRest
from report import Samples, Table, Wanted

DIRECTORY_LIMIT = 0.9
ASYNC_LIMIT = 1.0
S3_LIMIT = 1.5


@dataclasses.dataclass
class Side:
    """One way to archive: the archive_command, its environment, and where it stores. `spool` is emptied before each run, too."""

    name: str
    command: str
    stored: pathlib.Path
    env: dict = dataclasses.field(default_factory=dict)
    has_daemon: bool = False
    spool: pathlib.Path | None = None
    is_busy: typing.Callable[[], bool] = lambda: False


class Backlog:
    def __init__(self, host, dense, workers):
        self.host = host
        self.dense = dense
        self.workers = workers
        self.seconds = Samples()
        self.calls = Samples()

    def walhalla(self, name, env, stored, upload_concurrency=None, has_daemon=False):
        env = {"WALHALLA_UPLOAD_CONCURRENCY": str(upload_concurrency or self.workers)} | env
        return Side(name, f"{self.host.walhalla} wal-push %p", stored, env, has_daemon)

    def to_directory(self):
        """Walhalla alone, ahead, with its daemon; pgBackRest; cp."""
        store = self.host.make(self.host.directory / "store")
        copies = self.host.make(self.host.directory / "copies")
        env = {"WALHALLA_STORE": f"file://{store}"}
        peer = PgBackRest(self.host, "directory", self.dense.cluster, self.workers)
        peer.run("--no-online", "stanza-create")
        archived = peer.repository / "archive/bench/15-1"
        waits = {"spool": peer.home / "spool", "is_busy": peer.is_busy}
        return [
            self.walhalla("Walhalla, one at a time", env, store, upload_concurrency=1),
            self.walhalla("Walhalla, ahead", env, store),
            self.walhalla("Walhalla, daemon", env, store, has_daemon=True),
            Side("pgBackRest, one at a time", peer.command("archive-push", "%p"), archived),
            Side("pgBackRest, async", peer.command("--archive-async", "archive-push", "%p"), archived, **waits),
            Side("cp, without fsync", f"test ! -f {copies}/%f && cp %p {copies}/%f", copies),
        ]

    def to_s3(self, s3, latency_ms):
        """Walhalla ahead and with its daemon, and pgBackRest, with as many workers."""
        env = s3.walhalla(latency_ms, f"walhalla-{latency_ms}")
        stored = s3.directory(f"walhalla-{latency_ms}")
        prefix = f"pgbackrest-{latency_ms}"
        peer = PgBackRest(self.host, prefix, self.dense.cluster, self.workers, s3.pgbackrest(latency_ms, prefix))
        peer.run("--no-online", "stanza-create")
        archived = s3.directory(prefix) / "archive/bench/15-1"
        command = peer.command("--archive-async", "archive-push", "%p")
        where = f"S3, {latency_ms} ms"
        return [
            self.walhalla(f"{where}: Walhalla, ahead", env, stored),
            self.walhalla(f"{where}: Walhalla, daemon", env, stored, has_daemon=True),
            Side(f"{where}: pgBackRest, async", command, archived, spool=peer.home / "spool", is_busy=peer.is_busy),
        ]

    def run(self, sides, rounds, floor=True):
        for number in range(rounds):
            if floor:
                self.compress_all()
            for side in sides:
                self.drain(side)
        say("backlog: done")

    def compress_all(self):
        """The floor: `lz4 -1` of all segments, one a core, each on the disk before the next."""
        floor = self.host.make(self.host.directory / "floor")
        self.dense.warm()
        one = f"lz4 -1 -q -f pg_wal/$0 {floor}/$0.lz4 && sync {floor}/$0.lz4"
        names = self.host.write(self.host.directory / "segments", "\n".join(self.dense.segments) + "\n")
        script = f"xargs -n 1 -P {os.cpu_count()} sh -c '{one}' <{names}"
        self.add("lz4 -1, fsync", self.host.timed_shell(script, cwd=self.dense.cluster.data).wall_s)
        self.host.make(floor)

    def drain(self, side):
        self.empty(side)
        self.dense.mark_ready()
        self.dense.warm()
        daemon = start_daemon(self.host, side.env) if side.has_daemon else None
        begun = time.monotonic()
        calls = self.host.in_child(lambda: archiver.drain(side.command), self.dense.cluster.data, side.env)
        self.add(side.name, time.monotonic() - begun)
        for call_s in calls:
            self.calls.add(side.name, call_s)
        if daemon:
            self.host.stop(daemon)
        self.host.wait_for(lambda: not side.is_busy(), f"{side.name} to end")

    def add(self, name, seconds):
        self.seconds.add(name, seconds)
        say(f"backlog, {name}: {seconds:.2f} s, {len(self.dense.segments) / seconds:.1f} segments/s")

    def empty(self, side):
        """Removes what was stored and what is noted of it; the repository itself stays."""
        for directory in filter(None, (side.stored, side.spool)):
            if directory.is_dir():
                self.host.run("find", directory, "-mindepth", 1, "!", "-name", "archive.info*", "-delete")

    def rate(self, name):
        return len(self.dense.segments) / self.seconds.median(name)

    def table(self):
        table = Table(f"Backlog of {len(self.dense.segments)} dense segments", ["", "segments/s", "s", "a call: median ms"])
        for name in self.seconds.sides():
            call = f"{self.calls.median(name) * 1000:.1f}" if name in self.calls.of else None
            table.row(name, f"{self.rate(name):.1f}", f"{self.seconds.median(name):.2f}", call)
        return table

    def wanted(self, latencies_ms):
        wanted = Wanted("Backlog: what is wanted of the rates")
        for how in ("ahead", "daemon"):
            own = self.rate(f"Walhalla, {how}")
            wanted.at_least(f"directory, {how}: of `lz4 -1`", own / self.rate("lz4 -1, fsync"), DIRECTORY_LIMIT)
            wanted.at_least(f"directory, {how}: of pgBackRest async", own / self.rate("pgBackRest, async"), ASYNC_LIMIT)
            for latency_ms in latencies_ms:
                where = f"S3, {latency_ms} ms"
                ratio = self.rate(f"{where}: Walhalla, {how}") / self.rate(f"{where}: pgBackRest, async")
                wanted.at_least(f"{where}, {how}: of pgBackRest async", ratio, S3_LIMIT)
        return wanted


def start_daemon(host, env):
    """Starts the daemon and waits until it listens."""
    socket = pathlib.Path(host.environment["WALHALLA_SOCKET"])
    socket.unlink(missing_ok=True)
    daemon = host.start([host.walhalla, "daemon"], env=env)
    host.wait_for(socket.exists, "the daemon", daemon)
    return daemon
