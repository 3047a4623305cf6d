"""Backup, delta, restore and verify of a cluster with very many files.

The files are made, not by a server: they have names of relations that no catalog knows. Of three two are empty and one is the
first page of an index, as with tables that hold nothing: heap, TOAST and its index. What was restored stays until the end: ext4
looks long for inodes when many were freed within the last minutes.
"""

import json

from cluster import Cluster
from host import say
from pgbackrest import PgBackRest
from report import Samples, Table, Wanted

FIRST_NUMBER = 10_000_000
# Beside pgBackRest; then alone.
PEER_FILES, MOST_FILES = 120_000, 1_000_000
MEMORY_LIMIT_MIB = 256


class ManyFiles:
    def __init__(self, host, workers, most_files):
        self.host = host
        self.counts = [min(PEER_FILES, most_files), most_files]
        self.store = host.make(host.directory / "many-store")
        archive_command = f"{host.walhalla} --store file://{self.store} wal-push %p"
        self.server = Cluster(host, 15, "many", f"archive_mode = on\narchive_command = '{archive_command}'\nmax_wal_senders = 5")
        self.server.start()
        self.env = {"WALHALLA_STORE": f"file://{self.store}"} | self.server.env
        self.peer = PgBackRest(host, "many", self.server, workers)
        self.peer.run("stanza-create")
        self.server.sql("create table empty (text text primary key)")
        self.server.sql("checkpoint")
        path = self.server.data / self.server.sql("select pg_relation_filepath('empty_pkey')")
        self.page = path.read_bytes()
        self.seconds, self.memory = Samples(), Samples()
        self.made = 0
        self.restored = 0

    def run(self, rounds):
        small, large = self.counts
        self.make(small)
        for number in range(rounds):
            self.own(small)
            self.time(f"{small:,} files: full, pgBackRest", *self.peer.words("--type=full", "backup"))
            self.time(
                f"{small:,} files: restore, pgBackRest",
                *self.peer.words("--type=none", f"--pg1-path={self.new_directory()}", "restore"),
            )
        if large > small:
            self.make(large)
            self.own(large)
        self.server.stop()

    def make(self, count):
        """So many files in all."""
        say(f"making {count:,} files")
        folder = self.server.data / "base" / self.server.sql("select oid from pg_database where datname = 'postgres'")
        script = f"""
for number in range({self.made}, {count}):
    with open(f"{folder}/{{{FIRST_NUMBER} + number}}", "wb") as file:
        file.write({self.page!r} if number % 3 == 2 else b"")
"""
        self.host.run("python3", "-c", script)
        self.made = count

    def own(self, count):
        name = f"{count:,} files: {{}}, Walhalla".format
        push = [self.host.walhalla, "backup-push", self.server.data]
        self.time(name("full"), *push, env=self.env)
        full = self.newest()
        self.time(name("delta"), *push, "--delta", "--parent", full, env=self.env)
        for work, backup in (("restore", full), ("restore of the delta", self.newest())):
            self.time(name(work), self.host.walhalla, "backup-fetch", self.new_directory(), backup, env=self.env)
        self.time(name("verify"), self.host.walhalla, "verify", full, env=self.env)

    def newest(self):
        return json.loads(self.host.run(self.host.walhalla, "backup-list", "--json", env=self.env))[-1]["id"]

    def new_directory(self):
        self.restored += 1
        return self.host.make(self.host.directory / f"restored-{self.restored}")

    def time(self, name, *words, env=None):
        timing = self.host.timed(*words, env=env)
        self.seconds.add(name, timing.wall_s)
        self.memory.add(name, timing.peak_mib)
        say(f"{name}: {timing.wall_s:.2f} s, CPU {timing.cpu_s:.2f} s, peak {timing.peak_mib:.0f} MiB")

    def tables(self):
        table = Table("Many files", ["", "s", "peak MiB"])
        for name in self.seconds.sides():
            table.row(name, f"{self.seconds.median(name):.2f}", f"{max(self.memory.of[name]):.0f}")
        return [table, self.wanted()]

    def wanted(self):
        wanted = Wanted("Many files: what is wanted")
        small, large = self.counts
        for work in ("full", "restore"):
            own, peer = (f"{small:,} files: {work}, {who}" for who in ("Walhalla", "pgBackRest"))
            wanted.at_most(f"{small:,} files: {work}, of pgBackRest's time", self.seconds.median(own) / self.seconds.median(peer), 1)
        for work in ("full", "delta", "restore", "verify"):
            peak = max(self.memory.of[f"{large:,} files: {work}, Walhalla"])
            wanted.at_most(f"{large:,} files: {work}, peak MiB", peak, MEMORY_LIMIT_MIB, digits=0)
        return wanted
