"""run.py [--major MAJOR] [--keep]: three nodes of Patroni with etcd and Walhalla live through what docs/patroni.md tells.

The files and commands are those of the page. Each step checks that archiving goes on, that `wal-verify` is clean, and
that no commit is lost which Patroni promised to keep.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import urllib3

from cluster import NAMES, Etcd, Machine, Node, wait_for
from load import Load
from page import Page

ROOT = Path(__file__).resolve().parents[2]
PAGE_TIME = "2026-11-21 02:59:59+00"
LOAD_SECONDS = 10


class Run:
    def __init__(self, machine, page):
        self.machine = machine
        self.page = page
        self.nodes = [Node(machine, name) for name in NAMES]
        self.db1, self.db2, self.db3 = self.nodes
        self.times = []
        self.daemon = None

    def step(self, title, action):
        print(f"\n== {title}", flush=True)
        begin = time.monotonic()
        action()
        seconds = time.monotonic() - begin
        self.times.append((title, seconds))
        print(f"   {seconds:.0f} s", flush=True)

    def steps(self):
        return [
            ("etcd, and the files of the page", self.begin),
            ("the first node, and a backup", self.first_node),
            ("two replicas from the archive, under load", self.replicas_from_the_archive),
            ("backups: of the synchronous standby, of the leader", self.backups),
            ("the leader loses its power under load, and rejoins by pg_rewind", self.power_loss),
            ("a daemon and wal-receive beside Patroni", self.daemon_and_receiver),
            ("switchover under load", self.switch_over),
            ("the leader loses its power without synchronous mode", self.power_loss_without_synchronous_mode),
            ("Patroni dies, and its server goes on", self.two_leaders),
            ("the whole cluster back to a moment", self.restore_the_whole_cluster),
            ("replicas of the restored cluster", self.replicas_after_the_restore),
            ("a copy of the cluster at a moment, beside it", self.copy),
            ("all that is archived is read, and the nodes have the same rows", self.read_everything),
        ]

    # What is looked at again and again.

    def leader(self):
        def found():
            leaders = [node for node in self.nodes if node.patroni and is_true(node.is_leader)]
            return leaders[0] if len(leaders) == 1 else None
        return wait_for("a leader", found)

    def replicas(self):
        leader = self.leader()
        return [node for node in self.nodes if node.patroni and node is not leader]

    def must_stream(self, *nodes):
        for node in nodes or self.replicas():
            wait_for(f"{node.name} to stream", lambda: node.status().get("replication_state") == "streaming")

    def must_be_synchronous(self):
        wait_for("a synchronous standby", lambda: any(is_true(lambda: is_synchronous(node)) for node in self.replicas()))

    def must_archive(self):
        """A segment of now arrives in the store, the archive has no hole, and no server's archiver stands still."""
        leader = self.leader()
        # An empty segment is not switched.
        name = leader.sql("select pg_walfile_name(pg_logical_emit_message(false, 'test', 'here'))")
        leader.sql("select pg_switch_wal()")
        begin = time.monotonic()
        folder = f"wal/{name[:8]}/{name}"
        wait_for(f"{name} in the archive", lambda: list(self.machine.store.glob(f"postgres/*/{folder}.*")), 60)
        print(f"   {name} of {leader.name} was archived within {time.monotonic() - begin:.1f} s")
        leader.run("watch")

    def must_have_caught_up(self):
        """No segment waits on any node. What archive_command refused for a while is printed."""
        for node in self.nodes:
            status = node.data / "pg_wal/archive_status"
            wait_for(f"{node.name} to have archived all", lambda: not list(status.glob("*.ready")))
            lines = node.log.read_text(errors="replace").splitlines()
            failures = sum("archive command failed" in line for line in lines)
            print(f"   {node.name}: archive_command failed {failures} times")
            for reason in sorted({line for line in lines if line.startswith("error: ")}):
                print(f"      {reason}")

    # The steps.

    def begin(self):
        pages = self.machine.make_directory(self.machine.directory / "page")
        (pages / "patroni.yml").write_text(self.page.text("patroni.yml"))
        for name in ("other-nodes", "copy"):
            command = self.page.text(name).replace("/etc/patroni", str(pages))
            subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=pages, check=True)
        for node in self.nodes:
            node.write("walhalla.toml")
            text = (pages / ("patroni.yml" if node is self.db1 else f"{node.name}.yml")).read_text()
            (node.directory / "patroni.yml").write_text(node.here(text))
        os.chown(self.db1.directory / "patroni.yml", self.machine.uid, self.machine.gid)
        self.etcd = [Etcd(self.machine, node) for node in self.nodes]

    def first_node(self):
        self.db1.start()
        wait_for("the first leader", self.db1.is_leader)
        self.db1.run("list")
        self.db1.run("first-backup")
        Load.prepare(self.db1)
        self.must_archive()

    def replicas_from_the_archive(self):
        with Load() as load:
            for node in (self.db2, self.db3):
                self.join_from_the_archive(node)
            time.sleep(LOAD_SECONDS)
        self.db1.run("list")
        self.must_keep(load)
        mark = self.db2.mark()
        self.db1.run("reinit")
        made = "replica has been created using walhalla"
        wait_for("db2 to be made anew", lambda: made in self.db2.since(mark))
        self.must_stream(self.db2)
        self.must_archive()
        for node in self.nodes:
            node.run("watch-node")

    def backups(self):
        self.must_be_synchronous()
        # A standby's backup begins at its last restartpoint: after the first backup, so that it can be a delta to that.
        for node in [self.leader(), *self.replicas()]:
            node.sql("checkpoint")
        before = self.count_backups()
        for node in self.nodes:
            node.run("nightly")
        if self.count_backups() != before + 1:
            raise AssertionError("not exactly one node took the nightly backup")
        self.leader().sh(self.leader().here("walhalla backup-push /var/lib/postgresql/17/main --delta"))

    def count_backups(self):
        return self.db1.sh("walhalla --json backup-list", quiet=True).count('"id"')

    def must_keep(self, load):
        lost = load.lost(self.leader())
        print(
            f"   {len(load.acknowledged)} commits acknowledged, {load.unknown} of unknown fate, {len(lost)} lost;"
            f" longest time without a commit {load.longest_pause:.1f} s"
        )
        if lost:
            raise AssertionError(f"{len(lost)} acknowledged commits are lost")

    def fail_over(self, before_death=lambda leader: None, death=Node.kill):
        """The leader dies under load. Answers with it and the load."""
        old = self.leader()
        with Load() as load:
            time.sleep(LOAD_SECONDS)
            before_death(old)
            death(old)
            killed = time.monotonic()
            new = self.leader()
            wait_for("commits on the new leader", lambda: load.last > killed + 1)
            print(f"   {old.name} died, and {new.name} led after {time.monotonic() - killed:.1f} s")
            time.sleep(LOAD_SECONDS)
        new.run("list")
        return old, load

    def rejoin(self, old):
        """The old leader comes back by pg_rewind, and not as a new replica. Answers with what it logged."""
        mark = old.mark()
        # On an idle leader a rewound server may wait for the next record before it is consistent. The old leader's server may
        # still run: what is written there now is lost, as it must be.
        with Load([name for name in NAMES if name != old.name]) as load:
            old.start()
            if old is self.db2 and self.daemon and self.daemon.poll() is not None:
                self.begin_daemon()
            self.must_stream(old)
        self.must_keep(load)
        log = old.since(mark)
        print("".join(f"      {line}\n" for line in log.splitlines() if "pg_rewind:" in line or "Trying to archive" in line))
        if "pg_rewind exit code=0" not in log or "replica has been created" in log:
            raise AssertionError(f"{old.name} was not rewound")
        old.run("list")
        self.must_archive()
        return log

    def power_loss(self):
        """The store is out of the leader's reach when it dies: what waits in its pg_wal is archived by the standbys."""
        def lose_the_store(leader):
            settings = leader.directory / "walhalla.toml"
            settings.rename(settings.with_suffix(".away"))
            settings.write_text("store = 'file:///nonexistent/store'\n")
            for _ in range(3):
                leader.sql("select pg_switch_wal()")
                time.sleep(2)
            waiting = list((leader.data / "pg_wal/archive_status").glob("*.ready"))
            print(f"   {len(waiting)} segments wait for the archive on {leader.name}")
            if len(waiting) < 3:
                raise AssertionError("the leader has nothing that is not archived")

        old, load = self.fail_over(lose_the_store)
        self.must_keep(load)
        self.must_archive()
        settings = old.directory / "walhalla.toml"
        settings.with_suffix(".away").replace(settings)
        self.rejoin(old)

    def power_loss_without_synchronous_mode(self):
        self.leader().run("asynchronous")
        wait_for("no synchronous standby", lambda: not any(is_true(lambda: is_synchronous(node)) for node in self.replicas()))
        old, load = self.fail_over()
        print(f"   {len(load.acknowledged)} commits acknowledged, {len(load.lost(self.leader()))} lost, as Patroni permits here")
        self.must_archive()
        self.rejoin(old)

    def two_leaders(self):
        """Patroni alone dies, and no watchdog stops the server: it goes on, and archives a timeline that was left."""
        old = self.leader()
        old.sql("alter system set wal_keep_size = '0'")
        old.sql("select pg_reload_conf()")

        def fill(leader):
            leader.sql("checkpoint")
            leader.sql("create table if not exists filler (text text)")
            for _ in range(3):
                leader.sql("insert into filler select repeat(md5(n::text), 60) from generate_series(1, 6000) n")

        old, load = self.fail_over(fill, Node.kill_patroni)
        for _ in range(4):
            old.sql("insert into filler select repeat(md5(n::text), 60) from generate_series(1, 6000) n")
            old.sql("select pg_switch_wal()")
            old.sql("checkpoint")
        print(f"   {len(load.acknowledged)} commits acknowledged, {len(load.lost(self.leader()))} lost: those of {old.name}")
        self.must_archive()
        there = {path.name for path in (old.data / "pg_wal").iterdir()}
        self.must_come_from_the_archive(self.rejoin(old), there)
        self.must_receive()
        self.leader().run("no-slot")
        self.receiver.terminate()
        if self.receiver.wait(timeout=60) != 0:
            raise AssertionError("the receiver did not end well")

    def must_come_from_the_archive(self, log, there):
        """`pg_rewind` read WAL that the server had removed."""
        found = re.search(r"last common checkpoint at ([0-9A-F]+)/([0-9A-F]+) on timeline (\d+)", log)
        segment = f"{int(found[3]):08X}{int(found[1], 16):08X}{int(found[2], 16) >> 24:08X}"
        if segment in there:
            raise AssertionError(f"{segment} was still there, so that pg_rewind did not need the archive")
        print(f"   pg_rewind read {segment} from the archive")

    def daemon_and_receiver(self):
        """From here on, db2 has a daemon, and a host of its own receives WAL."""
        self.begin_daemon()
        self.leader().run("slot")
        wait_for("the slot", lambda: self.leader().sql("select true from pg_replication_slots where slot_name = 'walhalla'"))
        self.keeper = Node(self.machine, "db9")
        self.keeper.write("walhalla.toml")
        self.machine.make_directory(self.keeper.directory / "walhalla")
        self.receiver = self.keeper.begin("wal-receive", self.keeper.directory / "wal-receive.log", PGPASSWORD="secret-2")
        self.must_receive()

    def begin_daemon(self):
        log = self.db2.directory / "daemon.log"
        begun = log.read_text().count("listens") if log.exists() else 0
        self.daemon = self.db2.begin("daemon", log)
        wait_for("the daemon", lambda: log.read_text().count("listens") > begun)

    def must_receive(self):
        """The receiver and the daemon live, and the receiver is at the leader."""
        active = "select active from pg_replication_slots where slot_name = 'walhalla'"
        wait_for("the receiver at the leader", lambda: self.receiver.poll() is not None or self.leader().sql(active))
        for program in (self.receiver, self.daemon):
            if program.poll() is not None:
                raise AssertionError(f"{program.args} ended with {program.returncode}")

    def switch_over(self):
        self.must_be_synchronous()
        old = self.leader()
        new = next(node for node in self.replicas() if is_synchronous(node))
        names = {"--leader db1": f"--leader {old.name}", "--candidate db2": f"--candidate {new.name}"}
        with Load() as load:
            time.sleep(LOAD_SECONDS)
            mark = old.mark()
            old.run("switchover", lambda text: replaced(text, names))
            wait_for(f"{new.name} to lead", new.is_leader)
            self.must_stream(old)
            time.sleep(LOAD_SECONDS)
        if "running pg_rewind" in old.since(mark):
            print(f"   {old.name} was rewound")
        self.must_keep(load)
        self.must_archive()
        self.must_receive()

    def restore_the_whole_cluster(self):
        leader = self.leader()
        with Load() as load:
            time.sleep(LOAD_SECONDS)
            moment = leader.sql("select clock_timestamp()")
            time.sleep(2)
        leader.sql("delete from orders where number % 2 = 0")
        leader.sql("create table mistake as select 1 as it")
        # A backup of what must not come back.
        leader.sh(leader.here("walhalla backup-push /var/lib/postgresql/17/main --delta"))
        self.must_archive()
        time_of_page = {PAGE_TIME: moment.isoformat(sep=" ")}
        # The leader last: otherwise another would take over.
        for node in [*self.replicas(), leader]:
            node.stop()
        self.db1.run("plan", lambda text: replaced(text, time_of_page))
        for node in self.nodes:
            node.run("move-away")
        self.db1.run("remove-cluster")
        self.db1.run("set-method", lambda text: replaced(text, time_of_page))
        begin = time.monotonic()
        self.db1.start()
        wait_for("the restored leader", self.db1.is_leader)
        print(f"   restored and leading after {time.monotonic() - begin:.1f} s")
        self.must_be_as_at(self.db1, moment, load)
        if self.db1.sql("select to_regclass('mistake')"):
            raise AssertionError("the mistake is still there")
        self.db1.run("list")
        self.must_archive()
        if "recovery_target" in (self.db1.data / "postgresql.auto.conf").read_text():
            raise AssertionError("settings of the recovery are left")

    def copy(self):
        """A cluster of its own from the archive, while the original runs: it archives to a store of its own."""
        with Load() as load:
            time.sleep(5)
            moment = self.leader().sql("select clock_timestamp()")
            time.sleep(2)
        self.must_archive()
        timelines = self.timelines()
        copy = Node(self.machine, "db4")
        copy.write("walhalla.toml", "walhalla.toml-of-the-copy")
        text = (self.machine.directory / "page/db4.yml").read_text()
        (copy.directory / "patroni.yml").write_text(replaced(copy.here(text), {PAGE_TIME: moment.isoformat(sep=" ")}))
        copy.start()
        wait_for("the copy to lead", copy.is_leader)
        self.must_be_as_at(copy, moment, load)
        copy.sql("select pg_switch_wal()")
        copy.run("first-backup")
        copy.run("list")
        if self.timelines() != timelines:
            raise AssertionError(f"the copy archived into the original's store: {self.timelines()}")
        copy.stop()
        self.must_archive()

    def read_everything(self):
        self.db1.run("verify")
        leader = self.leader()
        end = leader.sql("select pg_current_wal_insert_lsn()::text")
        rows = "select md5(string_agg(number || note, ',' order by number)) from orders"
        self.must_have_caught_up()
        for node in self.replicas():
            wait_for(f"{node.name} to replay", lambda: node.sql("select pg_last_wal_replay_lsn() >= %s::pg_lsn", end))
            if node.sql(rows) != leader.sql(rows):
                raise AssertionError(f"{node.name} has other rows than {leader.name}")

    def timelines(self):
        return sorted(folder.name for folder in self.machine.store.glob("postgres/*/wal/*"))

    def must_be_as_at(self, node, moment, load):
        with node.connect() as connection:
            there = {row[0] for row in connection.execute("select number from orders")}
        wanted = {number for number, at in load.acknowledged if at <= moment}
        later = {number for number, at in load.acknowledged if at > moment}
        print(f"   of {len(wanted)} rows until {moment}, {len(wanted - there)} are missing; of {len(later)} later ones, {len(later & there)} are there")
        if wanted - there or later & there:
            raise AssertionError("the restored cluster is not what there was at the moment")

    def replicas_after_the_restore(self):
        """One before there is a backup of the new timeline, when the newest one is of what must not come back."""
        self.join_from_the_archive(self.db2)
        self.db1.run("unset-method")
        self.join_from_the_archive(self.db3)
        self.db1.run("show-config")
        self.must_archive()
        for name in ("pause", "list", "resume"):
            self.db1.run(name)

    def join_from_the_archive(self, node):
        mark = node.mark()
        node.start()
        self.must_stream(node)
        if "replica has been created using walhalla" not in node.since(mark):
            raise AssertionError(f"{node.name} was not made from the archive")


def replaced(text, names):
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def is_true(question):
    try:
        return bool(question())
    except Exception:
        return False


def is_synchronous(node):
    return urllib3.request("GET", f"http://{node.address}:8008/sync", timeout=3, retries=False).status == 200


def staged(program):
    printed = subprocess.run([ROOT / "tests/stage.sh", program], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in printed.splitlines())


def reachable(path, uid, scratch):
    """A directory of .cache, or a copy of it where the servers' user cannot look."""
    path = ROOT / path
    is_reachable = os.getuid() != 0 or subprocess.run(["test", "-x", path], user=uid).returncode == 0
    return path if is_reachable else Path(shutil.copytree(path, scratch / path.name, symlinks=True))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--major", type=int, default=17)
    arguments.add_argument("--keep", action="store_true")
    arguments = arguments.parse_args()
    built = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug/walhalla"
    program = os.environ.get("WALHALLA_TEST_PROGRAM") or built
    stage = staged(program)
    scratch = Path(tempfile.mkdtemp(prefix="walhalla-patroni.", dir=stage["scratch"]))
    scratch.chmod(0o755)
    page = Page()
    etcd = reachable(".cache/etcd", int(stage["uid"]), scratch) / "usr/bin/etcd"
    patroni = reachable(".cache/patroni", int(stage["uid"]), scratch)
    machine = Machine(scratch, stage, arguments.major, page, etcd, patroni)
    is_done = False
    run = Run(machine, page)
    try:
        for title, action in run.steps():
            run.step(title, action)
        page.must_be_used_up()
        is_done = True
    finally:
        machine.kill(scratch)
        print("\n" + "\n".join(f"{seconds:6.0f} s  {title}" for title, seconds in run.times))
        if is_done and not arguments.keep:
            shutil.rmtree(scratch)
        else:
            print(f"logs and all else are kept in {scratch}", file=sys.stderr)


if __name__ == "__main__":
    main()
