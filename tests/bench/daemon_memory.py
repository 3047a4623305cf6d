"""The daemon's memory: encrypted, eight workers, the backlog ten times over."""

import archiver
from backlog import Backlog, Side, start_daemon
from host import say
from report import Table, Wanted

WORKERS = 8
PASSES = 10
LIMIT_MIB = 96
# How much higher the peak may be after the last pass than after the second.
GROWTH_LIMIT = 1.1


class DaemonMemory:
    def __init__(self, host, dense):
        self.host = host
        self.dense = dense
        self.peaks = {}

    def run(self, s3):
        recipient = self.host.run(self.host.walhalla, "keygen", "--quiet", "--output", self.host.directory / "identity").strip()
        encrypted = {"WALHALLA_AGE_RECIPIENTS": recipient, "WALHALLA_UPLOAD_CONCURRENCY": str(WORKERS)}
        store = self.host.make(self.host.directory / "daemon-store")
        self.measure("directory", {"WALHALLA_STORE": f"file://{store}"} | encrypted, store)
        self.measure("S3 over TLS", s3.walhalla(0, "daemon") | encrypted, s3.directory("daemon"))

    def measure(self, where, env, stored):
        """The peak after each pass, in MiB. What one stored is removed before the next."""
        side = Side(where, f"{self.host.walhalla} wal-push %p", stored, env)
        daemon = start_daemon(self.host, env)
        backlog = Backlog(self.host, self.dense, WORKERS)
        peaks = self.peaks[where] = []
        for number in range(PASSES):
            backlog.empty(side)
            self.dense.mark_ready()
            self.host.in_child(lambda: archiver.drain(side.command), self.dense.cluster.data, env)
            peaks.append(peak_mib(daemon.pid))
            say(f"daemon, {where}: peak {peaks[-1]:.0f} MiB after {(number + 1) * len(self.dense.segments)} segments")
        self.host.stop(daemon)
        backlog.empty(side)

    def tables(self):
        count = len(self.dense.segments)
        table = Table(
            f"The daemon's peak resident memory, encrypted, {WORKERS} workers",
            ["", f"after {count} segments, MiB", f"after {2 * count}", f"after {PASSES * count}"],
        )
        wanted = Wanted("Daemon: what is wanted of its memory")
        for where, peaks in self.peaks.items():
            table.row(where, *(f"{peak:.0f}" for peak in (peaks[0], peaks[1], peaks[-1])))
            wanted.at_most(f"{where}: peak, MiB", peaks[-1], LIMIT_MIB, digits=0)
            growth = peaks[-1] / peaks[1]
            wanted.at_most(f"{where}: after {PASSES * count} segments, of that after {2 * count}", growth, GROWTH_LIMIT)
        return [table, wanted]


def peak_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
