#!/usr/bin/env python3
"""The manifests of examples/kubernetes, checked, and every container of them run: `make kubernetes`.

In Podman, with a real PostgreSQL; once with the store in S3 (SeaweedFS), once in a directory. It prints what it does, and
ends with exit status 0 only if all of it held.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import tempfile
import time

import manifests
import yaml
from manifests import EXAMPLES, REPOSITORY, render
from pods import Cluster, podman

SIDECAR = "walhalla"
PGDATA = "/var/lib/postgresql/17/main"
S3_CONFIG = "[default]\nregion = us-east-1\nendpoint_url = http://s3:8333\n"
SEAWEEDFS = ["/weed", "server", "-dir=/data", "-ip=s3", "-ip.bind=0.0.0.0", "-s3", "-s3.port=8333", "-s3.config=/data/s3.json"]
SEAWEEDFS += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"]
USERS = ("write", "delete")
WALHALLA = "localhost/walhalla"
IMAGES = {"registry.example.com/walhalla": WALHALLA, "postgres": "docker.io/library/postgres:17"}


def say(text):
    print(f"kubernetes: {text}", flush=True)


def overlay(directory, *, of, with_files=(), target=None):
    """An overlay of a user's own on one of the examples: with files in the place of its own, or with a target."""
    own = pathlib.Path(tempfile.mkdtemp(prefix="overlay.", dir=directory))
    lines = ["resources:", f"  - {os.path.relpath(EXAMPLES / of, own)}", "generatorOptions:", "  disableNameSuffixHash: true"]
    lines.append("configMapGenerator:")
    for name, text in dict(with_files).items():
        (own / name).write_text(text)
        lines += ["  - name: walhalla", "    behavior: merge", f"    files: [{name}]"]
    if target is not None:
        lines += [f"  - name: {of.split('/')[-1]}-target", "    behavior: merge", "    literals:"]
        lines += [f"      - {json.dumps(f'{key}={value}')}" for key, value in target.items()]
    (own / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    return render(own)


def profile(name):
    return f"[default]\naws_access_key_id = {name}\naws_secret_access_key = secret-of-{name}\n"


def start_s3(cluster):
    """SeaweedFS, under the name `s3`, with its users and the bucket. Its right to write lets them delete, too."""
    data = cluster.made(cluster.directory / "s3", 999)
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"secret-of-{name}"}], "actions": ["Read", "Write", "List"]}
        for name in USERS
    ]
    (data / "s3.json").write_text(json.dumps({"identities": identities}))
    weed = REPOSITORY / ".cache/emulators/seaweedfs/weed"
    podman("run", "--detach", "--label", cluster.name, "--name", f"{cluster.name}-s3", "--network", cluster.name, "--network-alias", "s3",
           "--volume", f"{weed}:/weed:ro", "--volume", f"{data}:/data", "docker.io/library/debian:trixie-slim", *SEAWEEDFS)
    made = 'echo "s3.bucket.create -name acme-backups" | /weed shell -master=s3:9333'
    for _ in range(30):
        if "created bucket" in podman("exec", f"{cluster.name}-s3", "sh", "-c", made, check=False, timeout=60).stdout:
            return
        time.sleep(0.5)
    raise AssertionError(podman("logs", f"{cluster.name}-s3").stdout)


class Story:
    """One namespace, from its first backup to its restores."""

    def __init__(self, cluster, store):
        self.cluster, self.store = cluster, store
        key = podman("run", "--rm", "--no-healthcheck", "--label", cluster.name, WALHALLA, "keygen").stdout
        recipient = key.split("public key: ")[1].split()[0]
        files = {f"{name}.credentials": profile(name) for name in USERS} | {"walhalla.key": key}
        # What is in S3 is encrypted; the directory needs no credentials and has no key.
        is_needed = lambda secret: store == "s3" or not secret["metadata"]["name"].startswith("walhalla-")
        cluster.apply(secret for secret in manifests.secrets_of_the_page(files) if is_needed(secret))
        settings = (EXAMPLES / store / "walhalla.toml").read_text() + f'age_recipients = ["{recipient}"]\n'
        own = {"aws-config": S3_CONFIG, "walhalla.toml": settings} if store == "s3" else {}
        cluster.apply(overlay(cluster.directory, of=store, with_files=own))
        self.server = None

    def tell(self):
        self.install()
        self.job("backup")
        (backup,) = self.backups()
        assert backup["kind"] == "full", backup
        self.live()
        self.jobs()
        # Each takes some seconds, so the two stores share them.
        if self.store == "s3":
            self.look_at_copies(self.by_name())
            self.restore()
            self.lose_the_volume()
        else:
            self.look_at_copies(self.by_transaction())
            self.restore()
            self.crash()
        self.server.down()

    def start(self):
        self.server = self.cluster.pod("StatefulSet", "postgres", "postgres-0").up()

    def install(self):
        say("the first start")
        self.start()
        self.server.ready()
        assert self.server.probe("postgres", "livenessProbe") and self.server.probe(SIDECAR, "livenessProbe")
        say("check, in the sidecar")
        say(self.server.execute(SIDECAR, "walhalla", "check").stdout.strip().splitlines()[-1])

    def job(self, name, status=0):
        say(f"CronJob {name}")
        ended, printed = self.cluster.pod("CronJob", name).ended()
        assert ended == status, f"exit status {ended}\n{printed}"
        return printed

    def backups(self):
        return json.loads(self.server.execute(SIDECAR, "walhalla", "--json", "-q", "backup-list").stdout)

    def live(self):
        """Three restore points, and a change before each."""
        say("rows and restore points")
        sql = self.server.sql
        sql("CREATE TABLE story (id int PRIMARY KEY, what text)")
        sql("INSERT INTO story SELECT n, 'before' FROM generate_series(1, 1000) n")
        sql("SELECT pg_create_restore_point('beforechanges')")
        self.xid = sql("BEGIN; UPDATE story SET what = 'after'; SELECT pg_current_xact_id(); COMMIT")
        self.time = sql("SELECT clock_timestamp()")
        sql("SELECT pg_create_restore_point('afterchanges')")
        sql("DELETE FROM story WHERE id > 10")
        sql("SELECT pg_create_restore_point('nomorechanges')")
        sql("DROP TABLE story")
        self.archived()
        self.cluster.apply(render(EXAMPLES / self.of("console")))
        console = self.cluster.pod("Pod", "console").up()
        found = console.execute("console", "walhalla", "find", "--restore-points").stdout
        assert all(name in found for name in ("beforechanges", "afterchanges", "nomorechanges")), found
        console.removed()

    def archived(self):
        name = self.server.sql("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + 60
        while self.server.sql(f"SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver") != "t":
            assert time.monotonic() < deadline, self.server.logs("postgres")
            time.sleep(0.2)
        # That archive_command gave the work to the sidecar.
        stored = re.search(r"^walhalla_wal_archived_segments_total\{.*\} (\d+)", self.server.page(SIDECAR, "livenessProbe"), re.MULTILINE)
        assert stored and int(stored[1]) > 0, self.server.logs("postgres")

    def jobs(self):
        assert "no problem" in self.job("verify")
        self.job("wal-verify")
        assert "the drill passed" in self.job("drill")
        self.job("delete")
        assert len(self.backups()) == 1

    # What a table has at each target.
    BEFORE, AFTER, FEW, GONE = "1000|before", "1000|after", "10|after", "gone"

    def by_name(self):
        yield {"TARGET_NAME": "beforechanges"}, self.BEFORE
        yield {"TARGET_NAME": "afterchanges"}, self.AFTER
        yield {"TARGET_NAME": "nomorechanges"}, self.FEW

    def by_transaction(self):
        yield {"TARGET_XID": self.xid}, self.AFTER
        yield {"TARGET_XID": self.xid, "TARGET_EXCLUSIVE": "yes"}, self.BEFORE
        yield {"TARGET_TIME": self.time}, self.AFTER
        yield {}, self.GONE

    def look_at_copies(self, targets):
        for target, expected in targets:
            say(f"a copy at {target or 'the end of the archive'}")
            self.cluster.apply(overlay(self.cluster.directory, of=self.of("copy"), target=target))
            copy = self.cluster.pod("Pod", "copy").up()
            copy.await_probe("postgres", "readinessProbe")
            self.await_target(copy, is_paused=bool(target))
            assert self.state(copy) == expected, (target, self.state(copy))
            copy.down()

    def of(self, example):
        return example if self.store == "s3" else f"directory/{example}"

    def await_target(self, pod, *, is_paused):
        """Waits until recovery has paused at its target, where it refuses to write, or has ended, where it does not."""
        query = "SELECT pg_get_wal_replay_pause_state() = 'paused'" if is_paused else "SELECT NOT pg_is_in_recovery()"
        deadline = time.monotonic() + 60
        while pod.execute("postgres", "psql", "-XAtqc", query, check=False).stdout.strip() != "t":
            assert time.monotonic() < deadline, pod.logs("postgres")
            time.sleep(0.2)
        written = pod.execute("postgres", "psql", "-Xqc", "CREATE TABLE written (id int)", check=False)
        assert ("read-only" in written.stdout) == is_paused, written.stdout

    def state(self, pod):
        if pod.sql("SELECT to_regclass('story') IS NULL") == "t":
            return self.GONE
        return pod.sql("SELECT count(*), max(what) FROM story")

    def restore(self):
        say("the server restored to a restore point, in its own volume")
        self.server.down()
        assert "afterchanges" in self.restored({"TARGET_NAME": "afterchanges"}, status=0)
        no_such = self.restored({"TARGET_NAME": "nochanges", "ONLY_PLAN": ""}, status=1)
        assert "nochanges" in no_such and "renamed" not in no_such, no_such
        assert "renamed" in self.restored({"TARGET_NAME": "afterchanges", "ONLY_PLAN": ""}, status=0)
        self.start()
        self.server.await_probe("postgres", "startupProbe")
        self.await_target(self.server, is_paused=True)
        assert not self.server.probe("postgres", "readinessProbe"), "a server that pauses must get no clients"
        assert self.server.probe("postgres", "livenessProbe")
        assert self.state(self.server) == self.AFTER
        self.server.sql("SELECT pg_wal_replay_resume()")
        self.server.ready()
        self.job("backup")
        assert len(self.backups()) == 2
        self.server.execute(SIDECAR, "walhalla", "check")

    def restored(self, target, *, status):
        """What the Job of the restore prints, which only plans unless the target says otherwise."""
        self.cluster.apply(overlay(self.cluster.directory, of=self.of("restore"), target=target))
        ended, printed = self.cluster.pod("Job", "restore").ended()
        assert ended == status, f"exit status {ended}\n{printed}"
        return printed

    def lose_the_volume(self):
        say("the volume is lost, and restored to the end of the archive")
        self.server.down()
        self.cluster.lose("data-postgres-0")
        self.cluster.apply([yaml.safe_load((EXAMPLES / "restore/volume.yaml").read_text())])
        self.restored({"ONLY_PLAN": ""}, status=0)
        self.start()
        self.server.ready()
        assert self.state(self.server) == self.AFTER

    def crash(self):
        say("a crash of the whole pod")
        podman("kill", *(self.server.full(container) for container in reversed(self.server.running)))
        self.server.removed()
        self.start()
        self.server.ready()
        assert self.state(self.server) == self.AFTER


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only-check", action="store_true", help="render and check the manifests, and run nothing")
    parser.add_argument("--store", action="append", choices=["s3", "directory"], help="run with this store only")
    arguments = parser.parse_args()
    say(f"{manifests.check()} objects are rendered and valid")
    if arguments.only_check:
        return
    for store in arguments.store or ["s3", "directory"]:
        say(f"with the store: {store}")
        cluster = Cluster(f"walhalla-kubernetes-{store}-{os.getpid()}", IMAGES)
        with contextlib.ExitStack() as stack:
            stack.callback(cluster.remove)
            if store == "s3":
                start_s3(cluster)
            Story(cluster, store).tell()
    print("2 passed, 0 failed" if not arguments.store else "1 passed, 0 failed")


main()
