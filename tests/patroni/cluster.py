"""etcd and the nodes: each has a loopback address of its own, so that all use the same ports, as three hosts do."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import psycopg
import urllib3

NAMES = ["db1", "db2", "db3"]
NETWORK = "127.19.6"
PASSWORD = "secret-1"


def address_of(name):
    return f"{NETWORK}.{name[2:]}"


def wait_for(what, condition, seconds=300):
    """The first true answer of `condition`; its exceptions count as "not yet"."""
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            if answer := condition():
                return answer
            last = None
        except Exception as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"waited {seconds} s in vain for: {what}" + (f" ({last})" if last else ""))


class Machine:
    """What all nodes share: programs, the user who runs them, and the directory of the test."""

    def __init__(self, directory, staged, major, page, etcd, patroni):
        self.directory = Path(directory)
        self.major = major
        self.page = page
        self.uid, self.gid = int(staged["uid"]), int(staged["gid"])
        self.postgres = Path(staged["postgres"]) / str(major) / "bin"
        self.bin = self.directory / "bin"
        self.make_directory(self.bin)
        for name, path in {"walhalla": staged["program"], "etcd": etcd}.items():
            (self.bin / name).symlink_to(path)
        for name, entry in {"patroni": "patroni.__main__ import main", "patronictl": "patroni.ctl import ctl as main"}.items():
            script = self.bin / name
            script.write_text(f"#!/bin/sh\nexec {patroni}/bin/python -c 'from {entry}; main()' \"$@\"\n")
            script.chmod(0o755)
        self.store = self.make_directory(self.directory / "store")
        # The buckets of the page. A directory must be there, as a bucket must.
        for name in ("postgres", "orders-copy"):
            self.make_directory(self.store / name)

    def make_directory(self, path):
        path.mkdir(mode=0o700)
        os.chown(path, self.uid, self.gid)
        return path

    def environment(self, node):
        return {
            "PATH": f"{self.bin}:{self.postgres}:/usr/bin:/bin",
            "HOME": str(node.directory),
            # This build's libpqwalreceiver.so looks for libpq elsewhere, and would take an older one of the system.
            "LD_LIBRARY_PATH": str(self.postgres.parent / "lib"),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "WALHALLA_CONFIG": str(node.directory / "walhalla.toml"),
            "WALHALLA_SOCKET": str(node.directory / "walhalla.sock"),
            "PATRONICTL_CONFIG_FILE": str(node.directory / "patroni.yml"),
        }

    def start(self, command, node, log, **more):
        """Begins a program of a node, as the servers' user and in the node's directory."""
        with open(log, "a") as output:
            as_user = {"user": self.uid, "group": self.gid, "extra_groups": []} if os.getuid() == 0 else {}
            return subprocess.Popen(
                command, cwd=node.directory, env=self.environment(node) | more, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True, **as_user,
            )

    def kill(self, directory):
        """Kills, all at once, every process that lives in a directory, as when a host loses its power."""
        def lives_there(process):
            try:
                return Path(process.cwd()).is_relative_to(directory)
            except (psutil.Error, OSError):
                return False

        while processes := [process for process in psutil.process_iter() if lives_there(process)]:
            for process in processes:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    pass
            psutil.wait_procs(processes, timeout=10)


class Node:
    def __init__(self, machine, name):
        self.machine = machine
        self.name = name
        self.address = address_of(name)
        self.directory = machine.make_directory(machine.directory / name)
        self.data = machine.make_directory(self.directory / str(machine.major)) / "main"
        self.log = self.directory / "patroni.log"
        self.patroni = None

    def here(self, text):
        """A text of the page as it is on this node."""
        text = re.sub(r"\bdb(\d):", rf"{NETWORK}.\1:", text)
        text = re.sub(r"\b(PGHOST=)(\S+)", lambda found: found[1] + re.sub(r"db(\d)", rf"{NETWORK}.\1", found[2]), text)
        for page, here in {
            "/etc/walhalla": self.directory,
            "/etc/patroni": self.directory,
            "/var/lib/postgresql/17/": f"{self.data.parent}/",
            "/var/lib/postgresql": self.directory,
            "/var/run/postgresql": self.directory,
            "/var/spool": self.directory,
            "/usr/lib/postgresql/17/bin": self.machine.postgres,
            "/usr/local/bin/": f"{self.machine.bin}/",
            "10.0.0.0/24": "127.0.0.0/8",
            "$(hostname)": self.address,
            # The user who runs the servers here has another name.
            "local all all peer": "local all all trust",
            "s3://acme-backups": f"file://{self.machine.store}",
        }.items():
            text = text.replace(page, str(here))
        return text

    def write(self, name, block=None):
        path = self.directory / name
        path.write_text(self.here(self.machine.page.text(block or name)))
        path.chmod(0o644)

    def run(self, name, change=lambda text: text, codes=(0,), quiet=False):
        """Runs a block of commands of the page on this node, shows what it prints, and returns that."""
        commands = change(self.here(self.machine.page.text(name)))
        return self.sh(commands, codes, quiet)

    def sh(self, commands, codes=(0,), quiet=False):
        as_user = {"user": self.machine.uid, "group": self.machine.gid, "extra_groups": []} if os.getuid() == 0 else {}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], cwd=self.directory,
            # On the page the operating system's user has the name of the role.
            env=self.machine.environment(self) | {"PGUSER": "postgres"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **as_user,
        )
        if not quiet:
            for line in commands.strip().splitlines():
                print(f"  {self.name} $ {line}")
            print("".join(f"      {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        if done.returncode not in codes:
            raise AssertionError(f"exit status {done.returncode} on {self.name}:\n{commands}\n{done.stdout}")
        return done.stdout

    def start(self):
        self.patroni = self.begin("start-patroni", self.log)

    def begin(self, name, log, **more):
        """Begins the last command of a block of the page, which runs on."""
        commands = self.here(self.machine.page.text(name)).strip()
        print("".join(f"  {self.name} $ {line}\n" for line in commands.splitlines()), end="")
        *before, last = commands.splitlines()
        return self.machine.start(["bash", "-c", "\n".join([*before, f"exec {last}"])], self, log, **more)

    def stop(self):
        self.patroni.send_signal(signal.SIGTERM)
        self.patroni.wait(timeout=120)
        self.patroni = None

    def kill(self):
        self.machine.kill(self.directory)
        if self.patroni:
            self.patroni.wait()
            self.patroni = None

    def kill_patroni(self):
        """Kills Patroni, and leaves its server running."""
        self.patroni.kill()
        self.patroni.wait()
        self.patroni = None

    def status(self):
        """What Patroni says of this node."""
        return urllib3.request("GET", f"http://{self.address}:8008/patroni", timeout=3, retries=False).json()

    def is_leader(self):
        return urllib3.request("GET", f"http://{self.address}:8008/leader", timeout=3, retries=False).status == 200

    def connect(self, **options):
        return psycopg.connect(
            host=self.address, port=5432, user="postgres", password=PASSWORD, dbname="postgres", connect_timeout=5,
            autocommit=True, **options,
        )

    def sql(self, query, *values):
        """The first column of the first row, if there is one."""
        with self.connect() as connection:
            cursor = connection.execute(query, values or None)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]

    def logged(self, text):
        return self.log.exists() and text in self.log.read_text(errors="replace")

    def mark(self):
        """A place in the log, for `since`."""
        return self.log.stat().st_size if self.log.exists() else 0

    def since(self, mark):
        with open(self.log, errors="replace") as log:
            log.seek(mark)
            return log.read()


class Etcd:
    """One member beside each node, as on the page."""

    def __init__(self, machine, node):
        self.machine = machine
        self.directory = machine.make_directory(machine.directory / f"etcd-{node.name}")
        self.name = node.name
        address = node.address
        members = ",".join(f"{name}=http://{address_of(name)}:2380" for name in NAMES)
        self.process = machine.start([
            "etcd", "--name", node.name, "--data-dir", self.directory / "data",
            "--listen-client-urls", f"http://{address}:2379", "--advertise-client-urls", f"http://{address}:2379",
            "--listen-peer-urls", f"http://{address}:2380", "--initial-advertise-peer-urls", f"http://{address}:2380",
            "--initial-cluster", members, "--logger", "zap", "--log-level", "warn",
        ], self, machine.directory / f"etcd-{node.name}.log")
