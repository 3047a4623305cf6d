"""This machine: the user who runs servers, a directory for the run, commands in it, and how long they take."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# No command of a benchmark takes that long unless something is wrong.
GIVE_UP_AFTER_S = 900
# How long a program may take to start or to end.
PATIENCE_S = 60


class Failed(Exception):
    """A command failed, or something did not happen in time."""


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Timing:
    """What a process and those that it waited for took. The peak is never below that of this program, some 20 MiB."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    # By read(2), from the page cache too.
    read_bytes: int


class Host:
    def __init__(self, program, keep):
        staged = subprocess.run([REPOSITORY / "tests/stage.sh", program], check=True, stdout=subprocess.PIPE, text=True)
        stage = dict(line.split(" ", 1) for line in staged.stdout.splitlines())
        self.walhalla = stage["program"]
        self.postgres = pathlib.Path(stage["postgres"])
        self.keep = keep
        is_root = os.getuid() == 0
        self.user = {"user": int(stage["uid"]), "group": int(stage["gid"]), "extra_groups": []} if is_root else {}
        self.directory = self.own_directory(stage["scratch"])
        # Room in memory, for what stands for a server elsewhere: its disk is not this machine's.
        has_memory = os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 8 << 30
        self.memory = self.own_directory("/dev/shm") if has_memory else self.make(self.directory / "memory")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "PGHOST": str(self.directory),
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            # Nobody's daemon.
            "WALHALLA_SOCKET": str(self.directory / "daemon.sock"),
        }
        self.log = open(self.directory / "commands.log", "ab")
        self.running = []
        self.endings = []

    def own_directory(self, parent):
        directory = pathlib.Path(tempfile.mkdtemp(prefix="walhalla-bench.", dir=parent))
        self.give(directory)
        return directory

    def give(self, path):
        """Makes the user who runs servers the owner."""
        if self.user:
            os.chown(path, self.user["user"], self.user["group"])

    def make(self, directory):
        """Makes an empty directory of the user's, in the place of what was there."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self.give(directory)
        return directory

    def write(self, path, text):
        path.write_text(text)
        self.give(path)
        return path

    def start(self, arguments, env=None, output=None, cwd=None):
        """Starts a program as the user; it is ended with the run at the latest."""
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output or self.log,
            stderr=self.log,
            cwd=cwd or self.directory,
            env=self.environment | (env or {}),
            **self.user,
        )
        self.running.append(process)
        return process

    def stop(self, process):
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.running.remove(process)

    def run(self, *arguments, env=None, cwd=None, is_fine=(0,)):
        """The standard output of a command that the user runs."""
        done = subprocess.run(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=cwd or self.directory,
            env=self.environment | (env or {}),
            timeout=GIVE_UP_AFTER_S,
            **self.user,
        )
        if done.returncode not in is_fine:
            raise Failed(f"exit {done.returncode}: {' '.join(map(str, arguments))}\n{self.last_of_log()}")
        return done.stdout

    def run_as_root(self, *arguments):
        """The standard output of a command that this program's own user runs: root."""
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, stderr=self.log, text=True).stdout

    def at_end(self, ending):
        """Calls it at the end of the run, the last one first."""
        self.endings.append(ending)

    def shell(self, script, **options):
        return self.run("bash", "-euo", "pipefail", "-c", script, **options)

    def timed(self, *arguments, env=None, cwd=None, is_fine=(0,), output=None):
        """How long a command takes, after what others left to be written is on the disk."""
        os.sync()
        begun = time.monotonic()
        process = self.start(arguments, env=env, cwd=cwd, output=output)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall_s = time.monotonic() - begun
        read_bytes = int(pathlib.Path(f"/proc/{process.pid}/io").read_text().split()[1])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.running.remove(process)
        if process.returncode not in is_fine:
            raise Failed(f"exit {process.returncode}: {' '.join(map(str, arguments))}\n{self.last_of_log()}")
        return Timing(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, read_bytes)

    def timed_shell(self, script, **options):
        return self.timed("bash", "-euo", "pipefail", "-c", script, **options)

    def in_child(self, function, directory, env=None):
        """What `function` returns when the user runs it in a process of its own, in `directory`."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            self.become_user_and(function, directory, env, write)
        os.close(write)
        with os.fdopen(read) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        if not text:
            raise Failed(f"see the lines above and {self.directory}/commands.log\n{self.last_of_log()}")
        return json.loads(text)

    def become_user_and(self, function, directory, env, write):
        try:
            if self.user:
                os.setgroups([])
                os.setgid(self.user["group"])
                os.setuid(self.user["user"])
            os.chdir(directory)
            os.environ.clear()
            os.environ.update(self.environment | (env or {}))
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            signal.alarm(GIVE_UP_AFTER_S)
            os.write(write, json.dumps(function()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def await_line(self, process, path, prefix):
        """What follows `prefix` in a file, once it is there."""
        def found():
            lines = path.read_text().splitlines()
            return next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), None)
        return self.wait_for(found, f"{prefix!r} in {path}", process)

    def wait_for(self, happened, what, process=None, patience_s=PATIENCE_S):
        """What `happened` returns once it is true."""
        give_up = time.monotonic() + patience_s
        while not (found := happened()):
            if time.monotonic() > give_up or (process and process.poll() is not None):
                raise Failed(f"waited in vain for {what}\n{self.last_of_log()}")
            time.sleep(0.02)
        return found

    def last_of_log(self):
        with open(self.directory / "commands.log", "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 3000))
            return log.read().decode(errors="replace")

    def clean_up(self):
        for process in list(reversed(self.running)):
            self.stop(process)
        for ending in reversed(self.endings):
            try:
                ending()
            except (OSError, subprocess.CalledProcessError) as error:
                say(f"left behind: {error}")
        if self.keep:
            say(f"kept: {self.directory} {self.memory}")
            return
        for directory in (self.directory, self.memory):
            shutil.rmtree(directory, ignore_errors=True)


def size_bytes(directory):
    """Length of all files below a directory."""
    walked = os.walk(directory)
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in walked for name in names)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
