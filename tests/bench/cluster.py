"""A PostgreSQL cluster of the benchmark."""

import shutil

from host import free_port


class Cluster:
    def __init__(self, host, major, name, settings="", checksums=True):
        self.host = host
        self.programs = host.postgres / str(major) / "bin"
        self.data = host.directory / name
        self.port = free_port()
        self.env = {"PGPORT": str(self.port)}
        checked = ["--data-checksums"] if checksums else []
        host.run(self.programs / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync", *checked)
        self.configure(f"""
port = {self.port}
listen_addresses = ''
unix_socket_directories = '{host.directory}'
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 64GB
shared_buffers = 256MB
synchronous_commit = off
{settings}""")

    def configure(self, settings):
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(settings + "\n")

    def version(self):
        return self.host.run(self.programs / "postgres", "--version").strip()

    def start(self):
        log = self.data.with_suffix(".log")
        self.host.run(self.programs / "pg_ctl", "--silent", "-w", "-D", self.data, "-l", log, "start")

    def stop(self, mode="fast"):
        self.host.run(self.programs / "pg_ctl", "--silent", "-w", "-D", self.data, "-m", mode, "stop")

    def is_running(self):
        return (self.data / "postmaster.pid").exists()

    def reload(self):
        self.host.run(self.programs / "pg_ctl", "--silent", "-D", self.data, "reload")

    def sql(self, query):
        psql = self.host.postgres / "15/bin/psql"
        return self.host.run(psql, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query, env=self.env).strip()

    def pgbench(self, *arguments):
        return self.host.run(self.programs / "pgbench", *arguments, env=self.env)

    def copy(self, name):
        """Another cluster with the files of this one, which is stopped."""
        other = object.__new__(Cluster)
        other.__dict__ |= self.__dict__
        other.data = self.host.directory / name
        shutil.rmtree(other.data, ignore_errors=True)
        self.host.run("cp", "-a", self.data, other.data)
        return other
