"""Base backups over the replication protocol: Walhalla beside pg_basebackup, which packs with LZ4 too."""

import shutil

from cluster import Cluster
from host import say
from report import Samples, Table, Wanted

LIMIT = 1.15
MEMORY_LIMIT_MIB = 128
OWN = "Walhalla"
OTHER = "pg_basebackup --compress=client-lz4 -Ft"


class Streamed:
    def __init__(self, host, scale):
        self.host = host
        self.seconds, self.memory = Samples(), Samples()
        self.server = Cluster(host, 17, "streamed", "archive_mode = on\nmax_wal_senders = 5")
        store = host.make(host.directory / "streamed-store")
        self.env = {"WALHALLA_STORE": f"file://{store}"} | self.server.env
        self.server.configure(f"archive_command = 'env WALHALLA_STORE=file://{store} {host.walhalla} wal-push %p'")
        self.server.start()
        self.server.pgbench("-i", "-q", "-F", "90", "-s", scale)
        self.server.sql("vacuum freeze")
        self.server.sql("checkpoint")

    def run(self, rounds):
        copied = self.host.directory / "streamed-basebackup"
        basebackup = [self.server.programs / "pg_basebackup", "--compress=client-lz4", "-Ft", "-X", "none", "-c", "fast", "-D", copied]
        for number in range(rounds):
            self.measure(OTHER, *basebackup, env=self.server.env)
            shutil.rmtree(copied)
            self.measure(OWN, self.host.walhalla, "backup-push", env=self.env)
        self.server.stop()

    def measure(self, name, *command, env):
        timed = self.host.timed(*command, env=env)
        self.seconds.add(name, timed.wall_s)
        self.memory.add(name, timed.peak_mib)
        say(f"streamed, {name}: {timed.wall_s:.2f} s")

    def tables(self):
        title = "Base backups over the replication protocol, to a directory"
        table = Table(title, ["", "s", "peak memory, MiB"], "Both leave what they wrote on the disk (fsync).")
        for name in self.seconds.sides():
            table.row(name, f"{self.seconds.median(name):.2f}", f"{max(self.memory.of[name]):.0f}")
        wanted = Wanted("Base backups over the replication protocol: what is wanted")
        ratio = self.seconds.median(OWN) / self.seconds.median(OTHER)
        wanted.at_most("time, of pg_basebackup's", ratio, LIMIT)
        wanted.at_most("peak memory, MiB", max(self.memory.of[OWN]), MEMORY_LIMIT_MIB, digits=0)
        return [table, wanted]
