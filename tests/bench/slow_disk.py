"""Full backup and restore where the disk decides: the data directory on a slow disk, or the repository.

The disk is an ext4 in memory behind a loop device, which the kernel limits to so many bytes and requests a second. That takes root,
and the blkio controller of cgroup v1, which limits a device for everybody. The page cache is emptied before each run.
"""

import os
import pathlib
import shutil

from cluster import Cluster
from host import say
from pgbackrest import PgBackRest
from report import Samples, Table, Wanted, megabytes

BYTES_A_SECOND = 100_000_000
REQUESTS_A_SECOND = 1_000
DISK_BYTES = 6 << 30
LIMITS = pathlib.Path("/sys/fs/cgroup/blkio")


class SlowDisk:
    def __init__(self, host, scale, workers):
        self.host = host
        self.workers = workers
        self.disk = host.make(host.directory / "slow")
        self.mount()
        self.server = Cluster(host, 15, "slow/data", "archive_mode = on\nmax_wal_senders = 5")
        # Where the repositories lie, by what lies on the slow disk.
        self.stores = {"the data directory": host.directory, "the repository": self.disk}
        say(f"making a cluster of scale {scale} on a slow disk")
        self.server.start()
        self.server.pgbench("-i", "-q", "-F", "90", "-s", scale)
        self.server.sql("vacuum freeze")
        self.server.stop()
        self.seconds = Samples()

    def mount(self):
        image = self.host.memory / "slow.img"
        with open(image, "wb") as file:
            file.truncate(DISK_BYTES)
        run = self.host.run_as_root
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        device = run("losetup", "--find", "--show", image).strip()
        self.host.at_end(lambda: run("losetup", "--detach", device))
        run("mount", device, self.disk)
        self.host.at_end(lambda: run("umount", "--lazy", self.disk))
        self.host.give(self.disk)
        self.number = f"{os.major(os.stat(device).st_rdev)}:{os.minor(os.stat(device).st_rdev)}"
        self.host.at_end(lambda: self.limit(0, 0))

    def limit(self, bytes_a_second, requests_a_second):
        """Of reading and of writing each; 0 is none."""
        for way in ("read", "write"):
            (LIMITS / f"blkio.throttle.{way}_bps_device").write_text(f"{self.number} {bytes_a_second}")
            (LIMITS / f"blkio.throttle.{way}_iops_device").write_text(f"{self.number} {requests_a_second}")

    def run(self, rounds):
        for slow in self.stores:
            self.measure(slow, rounds)

    def measure(self, slow, rounds):
        """With `slow` on the slow disk and the rest on this machine's."""
        server = self.server if slow == "the data directory" else self.server.copy("fast-data")
        store = self.host.make(self.stores[slow] / "slow-store")
        env = {"WALHALLA_STORE": f"file://{store}"} | server.env
        server.configure(f"archive_command = 'env WALHALLA_STORE=file://{store} {self.host.walhalla} wal-push %p'")
        server.start()
        repository = self.host.make(self.stores[slow] / "slow-repository")
        peer = PgBackRest(self.host, f"slow-{slow.split()[-1]}", server, self.workers, f"repo1-path={repository}")
        peer.run("stanza-create")
        to = (self.disk if slow == "the data directory" else self.host.directory) / "slow-restored"
        for number in range(rounds):
            self.time(f"{slow}: full, Walhalla", self.host.walhalla, "backup-push", server.data, env=env)
            self.time(f"{slow}: full, pgBackRest", *peer.words("--type=full", "backup"))
            self.restore(f"{slow}: restore, Walhalla", to, self.host.walhalla, "backup-fetch", to, "LATEST", env=env)
            self.restore(f"{slow}: restore, pgBackRest", to, *peer.words("--type=none", f"--pg1-path={to}", "restore"))
        server.stop()

    def restore(self, name, to, *words, env=None):
        self.host.make(to)
        self.time(name, *words, env=env)
        shutil.rmtree(to)

    def time(self, name, *words, env=None):
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        self.limit(BYTES_A_SECOND, REQUESTS_A_SECOND)
        timing = self.host.timed(*words, env=env)
        self.limit(0, 0)
        self.seconds.add(name, timing.wall_s)
        say(f"slow disk: {name}: {timing.wall_s:.2f} s, CPU {timing.cpu_s:.2f} s, peak {timing.peak_mib:.0f} MiB")

    def tables(self):
        note = f"At most {megabytes(BYTES_A_SECOND)} MB and {REQUESTS_A_SECOND:,} requests a second, each of reading and of writing."
        table = Table("A slow disk", ["what lies on it", "s"], note)
        for name in self.seconds.sides():
            table.row(name, f"{self.seconds.median(name):.2f}")
        wanted = Wanted("A slow disk: what is wanted")
        for slow in self.stores:
            for work in ("full", "restore"):
                own, peer = (self.seconds.median(f"{slow}: {work}, {who}") for who in ("Walhalla", "pgBackRest"))
                wanted.at_most(f"{slow}: {work}, of pgBackRest's time", own / peer, 1)
        return [table, wanted]


def is_possible():
    """Whether this machine can make a disk slow."""
    return os.getuid() == 0 and (LIMITS / "blkio.throttle.read_bps_device").exists()
