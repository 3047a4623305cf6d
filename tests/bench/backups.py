"""Full backups, deltas of a cluster of which 1 % of the pages changed, and restores, beside what others do with the same files.

A pgbench cluster with data checksums. One row in every hundredth page of pgbench_accounts is updated, within the page. The full
backup and its restore are measured on S3 as well, with TLS and without, on lines with and without latency.
"""

import json
import os

from cluster import Cluster
from host import say, size_bytes
from pgbackrest import PgBackRest
from report import Samples, Table, Wanted, megabytes
from wal_g import WalG

EVERY_NTH_PAGE = 100
DELTAS = 5
FULL_LIMIT = 0.50
FETCH_LIMIT = 0.40
AGE_LIMIT = 1.40
MEMORY_LIMIT_MIB = 128
# Of the full backup's time and bytes, of the data directory's bytes, of a full restore's time.
DELTA_TIME_LIMIT, DELTA_STORED_LIMIT, DELTA_READ_LIMIT, CHAIN_LIMIT = 0.10, 0.10, 0.05, 1.20
# Ends of the names of restores after which `sync` runs, and of those that leave the disk alone.
SYNCED, UNSYNCED = ", sync", ", no sync"


class Backups:
    def __init__(self, host, scale, workers, s3, latencies_ms, others):
        """`others` are the programs of WAL-G and its like, by name."""
        self.host = host
        self.workers = workers
        self.s3 = s3
        self.latencies_ms = latencies_ms
        say(f"making a cluster of scale {scale}")
        self.store = host.make(host.directory / "backup-store")
        self.server = Cluster(host, 15, "backups", "archive_mode = on\nmax_wal_senders = 5")
        self.env = {"WALHALLA_STORE": f"file://{self.store}"} | self.server.env
        self.archive_to(self.env)
        self.server.start()
        self.server.pgbench("-i", "-q", "-F", "90", "-s", scale)
        self.server.sql("vacuum freeze")
        self.server.sql("checkpoint")
        self.pages = int(self.server.sql("select relpages from pg_class where relname = 'pgbench_accounts'"))
        self.size_bytes = int(host.shell(f"du -sb --exclude pg_wal {self.server.data} | cut -f 1"))
        self.peer = PgBackRest(host, "backups", self.server, workers)
        self.peer.run("stanza-create")
        self.others = [WalG(host, name, program, self.server, workers) for name, program in others.items()]
        key = host.directory / "backup-identity"
        recipient = host.run(host.walhalla, "keygen", "--quiet", "--output", key).strip()
        self.age = self.env | {"WALHALLA_AGE_RECIPIENTS": recipient, "WALHALLA_AGE_IDENTITY_FILE": str(key)}
        self.seconds, self.memory, self.stored, self.read = Samples(), Samples(), {}, {}
        self.restores_made = 0

    def run(self, rounds):
        for number in range(rounds):
            self.full_backups()
        self.deltas(rounds)
        self.chain()
        for line in self.lines():
            self.on_line(line, rounds)
        self.server.stop()
        for number in range(rounds):
            self.restores()

    def archive_to(self, env):
        """The server's WAL goes where its backups go."""
        settings = " ".join(f"{name}={value}" for name, value in env.items() if name.startswith(("WALHALLA_", "AWS_")))
        self.server.configure(f"archive_command = 'env {settings} {self.host.walhalla} wal-push %p'")
        if self.server.is_running():
            self.server.reload()

    # S3.

    def lines(self):
        """Ways to the S3 server: a name, Walhalla's settings, and the latency where pgBackRest goes the same way."""
        for latency_ms in self.latencies_ms:
            yield f"S3, TLS, {latency_ms} ms", self.s3.walhalla(latency_ms, "backups"), latency_ms
            yield f"S3, {latency_ms} ms", self.s3.walhalla_without_tls(latency_ms, "backups"), None

    def on_line(self, line, rounds):
        where, settings, latency_ms = line
        env = settings | self.server.env
        self.archive_to(env)
        peer = None
        if latency_ms is not None:
            repository = self.s3.pgbackrest(latency_ms, f"backups-peer-{latency_ms}")
            peer = PgBackRest(self.host, f"backups-{latency_ms}", self.server, self.workers, repository)
            peer.run("stanza-create")
        for number in range(rounds):
            self.time(f"{where}: full, Walhalla", self.host.walhalla, "backup-push", self.server.data, env=env)
            self.restore_by_own(f"{where}: restore, Walhalla", "LATEST", env)
            if peer:
                self.time(f"{where}: full, pgBackRest", *peer.words("--type=full", "backup"))
                restore = peer.command("--type=none", "--pg1-path={to}", "restore")
                self.restore(f"{where}: restore, pgBackRest", restore)
            for other in self.others:
                env_of = other.on_s3(settings, f"backups-{where.replace(' ', '')}")
                self.time(f"{where}: full, {other.name}", *other.backup(), env=env_of)
                self.restore_by(f"{where}: restore, {other.name}", other, env_of)
        self.archive_to(self.env)

    def restore_by_own(self, name, backup, env):
        """All of it is on the disk in the end; and without waiting for that."""
        own = f"{self.host.walhalla} backup-fetch {{to}} {backup}"
        self.restore(name, own, env)
        self.restore(f"{name}{UNSYNCED}", f"{own} --no-sync", env)

    def restore_by(self, name, other, env):
        """As it is; with all of it on the disk in the end, as Walhalla does; and without waiting for the disk at all."""
        self.restore(name, other.restore(), env)
        self.restore(f"{name}{SYNCED}", f"{other.restore()}; sync -f {{to}}", env)
        self.restore(f"{name}{UNSYNCED}", other.restore(), other.without_sync(env))

    # Backups.

    def full_backups(self):
        data, home = self.server.data, self.host.directory
        packed = f"tar -c --exclude pg_wal {data} | lz4 -1 -q -f - {home}/tar.lz4; sync -f {home}/tar.lz4"
        self.time_shell("full: tar, lz4 -1", packed)
        self.stored["full: tar, lz4 -1"] = (home / "tar.lz4").stat().st_size
        copied = self.host.make(home / "basebackup")
        taken = f"{self.server.programs}/pg_basebackup -Ft -X none -c fast --no-manifest -D {copied}"
        self.time_shell("full: pg_basebackup, tar", taken, env=self.server.env)
        self.stored["full: pg_basebackup, tar"] = size_bytes(copied)
        self.id = self.own_backup("full: Walhalla")
        self.age_id = self.own_backup("full: Walhalla, encrypted", env=self.age)
        self.peer_backup("full: pgBackRest", "full")
        for other in self.others:
            self.time(f"full: {other.name}", *other.backup(), env=self.in_directory(other))

    def in_directory(self, other):
        directory = self.host.directory / f"store-of-{other.name}"
        if not directory.exists():
            self.host.make(directory)
        return other.in_directory(directory)

    def own_backup(self, name, *options, env=None):
        """Returns the backup's id."""
        words = [self.host.walhalla, "backup-push", self.server.data, *options]
        self.time(name, *words, env=env or self.env)
        listed = json.loads(self.host.run(self.host.walhalla, "backup-list", "--json", env=env or self.env))
        self.stored[name] = size_bytes(next(self.store.glob(f"*/backups/{listed[-1]['id']}")))
        return listed[-1]["id"]

    def peer_backup(self, name, kind):
        before = size_bytes(self.peer.repository / "backup")
        self.time(name, *self.peer.words(f"--type={kind}", "backup"))
        self.stored[name] = size_bytes(self.peer.repository / "backup") - before

    def deltas(self, rounds):
        self.change(0)
        for number in range(rounds):
            self.delta_id = self.own_backup("delta: Walhalla", "--delta", "--parent", self.id)
            self.own_backup("delta: Walhalla, by page LSNs", "--delta", "--parent", self.id, "--changed-blocks", "pages")
            # Differential: to the same full backup each time.
            self.peer_backup("delta: pgBackRest, block incremental", "diff")

    def change(self, first_page):
        """Updates a row in every hundredth page, with room for its new version beside it."""
        self.server.sql(f"""update pgbench_accounts set abalance = abalance + 1
          from generate_series({first_page}, {self.pages} - 1, {EVERY_NTH_PAGE}) page
          where pgbench_accounts.ctid = format('(%s,1)', page)::tid""")
        self.server.sql("checkpoint")

    def chain(self):
        """A chain of deltas, each to the one before, and a full backup of the same state."""
        self.leaf = self.delta_id
        for number in range(1, DELTAS):
            self.change(number * 7)
            self.leaf = self.own_backup("chain", "--delta", "--parent", self.leaf)
        self.last_full = self.own_backup("last full")

    # Restores.

    def restores(self):
        home = self.host.directory
        self.restore("restore: lz4 -d, tar", f"lz4 -d -q -c {home}/tar.lz4 | tar -x -C {{to}}; sync -f {{to}}")
        self.restore("restore: tar of pg_basebackup", f"tar -x -C {{to}} -f {home}/basebackup/base.tar; sync -f {{to}}")
        own = f"{self.host.walhalla} backup-fetch {{to}}"
        self.restore_by_own("restore: Walhalla", self.last_full, self.env)
        self.restore("restore: Walhalla, encrypted", f"{own} {self.age_id}", env=self.age)
        self.restore(f"restore: Walhalla, full and {DELTAS} deltas", f"{own} {self.leaf}", env=self.env)
        peer = self.peer.command("--type=none", "--pg1-path={to}", "--set={set}", "restore")
        labels = [backup["label"] for backup in json.loads(self.peer.run("--output=json", "info"))[0]["backup"]]
        full = [label for label in labels if label.endswith("F")]
        self.restore("restore: pgBackRest", peer.replace("{set}", full[-1]))
        self.restore("restore: pgBackRest, full and a delta", peer.replace("{set}", labels[-1]))
        for other in self.others:
            self.restore_by(f"restore: {other.name}", other, self.in_directory(other))
        self.time("verify: Walhalla", self.host.walhalla, "verify", self.last_full, env=self.env)
        self.time("verify: Walhalla, encrypted", self.host.walhalla, "verify", self.age_id, env=self.age)

    def restore(self, name, script, env=None):
        """Restores into an empty directory. Its files are emptied afterwards and not removed: ext4 passes over inodes that were
        removed in the last minutes, which would be time of the next restore."""
        self.restores_made += 1
        restored = self.host.make(self.host.directory / f"restored-{self.restores_made}")
        self.time_shell(name, script.replace("{to}", str(restored)), env=env)
        for folder, _, files in os.walk(restored):
            for file in files:
                os.truncate(os.path.join(folder, file), 0)

    # Figures.

    def time(self, name, *words, env=None):
        self.add(name, self.host.timed(*words, env=env))

    def time_shell(self, name, script, env=None):
        self.add(name, self.host.timed_shell(script, env=env))

    def add(self, name, timing):
        self.seconds.add(name, timing.wall_s)
        self.memory.add(name, timing.peak_mib)
        self.read[name] = timing.read_bytes
        say(f"{name}: {timing.wall_s:.2f} s, peak {timing.peak_mib:.0f} MiB")

    def tables(self):
        size = megabytes(self.size_bytes)
        note = f"A cluster of {size} MB without `pg_wal`, 1 % of the pages of its largest table changed for the deltas."
        table = Table("Backup, delta, restore, verify", ["", "s", "MB stored", "MB read", "peak MiB"], note)
        for name in sorted(self.seconds.sides()):
            if name in ("chain", "last full"):
                continue
            stored = megabytes(self.stored[name]) if name in self.stored else None
            read = megabytes(self.read[name]) if "Walhalla" in name or "pgBackRest" in name else None
            peak = f"{max(self.memory.of[name]):.0f}" if "Walhalla" in name else None
            table.row(name, f"{self.seconds.median(name):.2f}", stored, read, peak)
        return [table, self.wanted()]

    def wanted(self):
        wanted = Wanted("Backups: what is wanted")
        ratio = lambda one, other: self.seconds.median(one) / self.seconds.median(other)
        full, delta, chain = "full: Walhalla", "delta: Walhalla", f"restore: Walhalla, full and {DELTAS} deltas"
        wanted.at_most("full: time, of `tar` and `lz4 -1`", ratio(full, "full: tar, lz4 -1"), FULL_LIMIT)
        wanted.at_most("full: encrypted, of not encrypted", ratio("full: Walhalla, encrypted", full), AGE_LIMIT)
        wanted.at_most("full: peak, MiB", max(self.memory.of[full]), MEMORY_LIMIT_MIB, digits=0)
        wanted.at_most("delta: time, of the full backup's", ratio(delta, full), DELTA_TIME_LIMIT, digits=3)
        stored = self.stored[delta] / self.stored[full]
        wanted.at_most("delta: stored, of the full backup's", stored, DELTA_STORED_LIMIT, digits=3)
        wanted.at_most("delta: read, of the data directory", self.read[delta] / self.size_bytes, DELTA_READ_LIMIT, digits=3)
        wanted.at_most("restore: time, of `lz4 -d` and `tar`", ratio("restore: Walhalla", "restore: lz4 -d, tar"), FETCH_LIMIT)
        wanted.at_most("full: time, of pgBackRest's", ratio(full, "full: pgBackRest"), 1)
        wanted.at_most("restore: time, of pgBackRest's", ratio("restore: Walhalla", "restore: pgBackRest"), 1)
        wanted.at_most(f"restore: {DELTAS} deltas, of a full backup alone", ratio(chain, "restore: Walhalla"), CHAIN_LIMIT)
        encrypted = ratio("restore: Walhalla, encrypted", "restore: Walhalla")
        wanted.at_most("restore: encrypted, of not encrypted", encrypted, AGE_LIMIT)
        encrypted = ratio("verify: Walhalla, encrypted", "verify: Walhalla")
        wanted.at_most("verify: encrypted, of not encrypted", encrypted, AGE_LIMIT)
        wanted.at_most("restore: peak, MiB", max(self.memory.of["restore: Walhalla"]), MEMORY_LIMIT_MIB, digits=0)
        for where, _, latency_ms in self.lines():
            for work in ("full", "restore"):
                own = f"{where}: {work}, Walhalla"
                wanted.at_most(f"{where}: {work}: peak, MiB", max(self.memory.of[own]), MEMORY_LIMIT_MIB, digits=0)
                if latency_ms is not None:
                    wanted.at_most(f"{where}: {work}: time, of pgBackRest's", ratio(own, f"{where}: {work}, pgBackRest"), 1)
                for other in self.others:
                    theirs = f"{where}: {work}, {other.name}"
                    wanted.at_most(f"{where}: {work}: time, of {other.name}'s", ratio(own, theirs), 1)
                    if work == "restore":
                        compare_like_with_like(wanted, ratio, f"{where}: {work}", (own, theirs), other.name)
        for other in self.others:
            sides = ("restore: Walhalla", f"restore: {other.name}")
            wanted.at_most(f"restore: time, of {other.name}'s", ratio(*sides), 1)
            compare_like_with_like(wanted, ratio, "restore", sides, other.name)
        return wanted


def compare_like_with_like(wanted, ratio, what, sides, name):
    """Both restores on the disk in the end, and both without waiting for it."""
    own, theirs = sides
    wanted.at_most(f"{what}: time, of {name}'s and `sync`", ratio(own, f"{theirs}{SYNCED}"), 1)
    wanted.at_most(f"{what}: time without sync, of {name}'s", ratio(f"{own}{UNSYNCED}", f"{theirs}{UNSYNCED}"), 1)
