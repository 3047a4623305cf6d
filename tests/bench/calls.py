"""Calls of archive_command whose segment was archived before they ran: what the server waits for in a backlog."""

import archiver
from backlog import Backlog, start_daemon
from report import Samples, Table, Wanted

CALLS = 100
ALONE_LIMIT_MS = 5
DAEMON_LIMIT_MS = 3


class Calls:
    def __init__(self, host, dense, workers):
        self.host = host
        self.dense = dense
        self.backlog = Backlog(host, dense, workers)
        self.samples = Samples()

    def run(self, rounds):
        sides = {side.name: side for side in self.backlog.to_directory()}
        for number in range(rounds):
            self.measure(sides["Walhalla, ahead"])
            self.measure(sides["Walhalla, daemon"])
            self.measure(sides["pgBackRest, async"])
            self.nothing()

    def measure(self, side):
        """The first call lets all go up. The others are measured once that is done."""
        self.backlog.empty(side)
        count = min(CALLS, len(self.dense.segments))
        self.dense.mark_ready(count)
        self.dense.warm()
        daemon = start_daemon(self.host, side.env) if side.has_daemon else None
        self.drain(side.command, side.env, most=1)
        if side.is_busy():
            self.host.wait_for(lambda: not side.is_busy(), f"{side.name} to end")
        if daemon:
            receipts = self.dense.cluster.data.with_name("dense.walhalla-spool") / "pushed"
            self.host.wait_for(lambda: len(list(receipts.glob("0*"))) >= count - 1, "the daemon's receipts")
        for call_s in self.drain(side.command, side.env):
            self.samples.add(side.name, call_s)
        if daemon:
            self.host.stop(daemon)

    def nothing(self):
        self.dense.mark_ready(CALLS)
        for call_s in self.drain("true", {}):
            self.samples.add("sh -c true", call_s)

    def drain(self, command, env, most=None):
        return self.host.in_child(lambda: archiver.drain(command, most), self.dense.cluster.data, env)

    def tables(self):
        table = Table("Calls whose segment is already up", ["", "median ms", "99 of 100 within, ms"])
        for name, samples in self.samples.of.items():
            slowest = sorted(samples)[len(samples) * 99 // 100]
            table.row(name, f"{self.samples.median(name) * 1000:.2f}", f"{slowest * 1000:.2f}")
        wanted = Wanted("Calls: what is wanted of the median, in ms")
        wanted.at_most("without the daemon", self.samples.median("Walhalla, ahead") * 1000, ALONE_LIMIT_MS)
        wanted.at_most("with the daemon", self.samples.median("Walhalla, daemon") * 1000, DAEMON_LIMIT_MS)
        return [table, wanted]
