"""Commits a second of one client that waits for a synchronous receiver: wal-receive beside pg_receivewal, in turn."""

import re

from cluster import Cluster
from host import say
from report import Samples, Table, Wanted

SECONDS = 10
LIMIT = 0.8
OWN = "wal-receive --synchronous"
OTHER = "pg_receivewal --synchronous"


class Receive:
    def __init__(self, host):
        self.host = host
        self.commits = Samples()
        self.server = Cluster(host, 15, "receive", "synchronous_commit = on\nmax_wal_senders = 10")
        self.server.start()
        self.server.pgbench("-i", "-q", "-s", "10")
        store = host.make(host.directory / "receive-store")
        spool = host.make(host.directory / "receive-spool")
        self.received = host.make(host.directory / "received")
        self.own_env = {"WALHALLA_STORE": f"file://{store}", "WALHALLA_SPOOL_DIR": str(spool)}

    def run(self, rounds):
        receivewal = [self.server.programs / "pg_receivewal", "-D", self.received, "--slot", "other"]
        self.host.run(*receivewal, "--create-slot", env=self.server.env)
        receive = [self.host.walhalla, "wal-receive", "--slot", "own", "--create-slot", "--synchronous"]
        for number in range(rounds):
            self.measure(OTHER, [*receivewal, "--synchronous"], {})
            self.measure(OWN, receive, self.own_env)
        self.server.stop("immediate")

    def measure(self, name, command, env):
        receiver = self.host.start(command, env=self.server.env | {"PGAPPNAME": "receiver"} | env)
        self.synchronous("receiver")
        is_waited_for = "select count(*) from pg_stat_replication where sync_state = 'sync' and state = 'streaming'"
        self.host.wait_for(lambda: self.server.sql(is_waited_for) == "1", name, receiver)
        self.server.sql("checkpoint")
        printed = self.server.pgbench("-n", "-c", "1", "-T", SECONDS)
        self.commits.add(name, float(re.search(r"tps = ([\d.]+)", printed)[1]))
        say(f"receive, {name}: {self.commits.of[name][-1]:.0f} commits/s")
        self.synchronous("")
        self.host.stop(receiver)

    def synchronous(self, name):
        self.server.configure(f"synchronous_standby_names = '{name}'")
        self.server.reload()

    def tables(self):
        table = Table("Commits that wait for a synchronous receiver, one client of pgbench", ["", "commits/s"])
        for name in self.commits.sides():
            table.row(name, f"{self.commits.median(name):.0f}")
        wanted = Wanted("wal-receive: what is wanted of the rate")
        ratio = self.commits.median(OWN) / self.commits.median(OTHER)
        wanted.at_least("directory, of pg_receivewal", ratio, LIMIT)
        return [table, wanted]
