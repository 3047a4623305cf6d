"""pgBackRest, Debian's package, with the settings that its user guide recommends where speed is wanted.

lz4 at level 1 as Walhalla's default compression, as many processes as Walhalla has workers, asynchronous archiving with a local
spool, files in bundles and block-incremental backups.
"""

import subprocess

STANZA = "bench"


class PgBackRest:
    def __init__(self, host, name, cluster, workers, repository=None):
        """`repository` are settings of another repository than a directory."""
        self.host = host
        self.home = host.make(host.directory / f"pgbackrest-{name}")
        for part in ("repository", "spool", "spool-get"):
            host.make(self.home / part)
        self.repository = self.home / "repository"
        self.config = host.write(self.home / "pgbackrest.conf", f"""
[global]
{repository or f"repo1-path={self.repository}"}
repo1-bundle=y
repo1-block=y
beta=y
compress-type=lz4
compress-level=1
process-max={workers}
start-fast=y
archive-check=n
log-level-file=off
log-path={self.home}
lock-path={self.home}/spool
spool-path={self.home}/spool
archive-get-queue-max=1GiB
[{STANZA}]
pg1-path={cluster.data}
pg1-socket-path={host.directory}
pg1-port={cluster.port}
pg1-user=postgres
""")

    @staticmethod
    def version():
        return subprocess.run(["pgbackrest", "version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def words(self, *arguments):
        # libpq's variables would win over the socket in the settings.
        return ["env", "-u", "PGHOST", "pgbackrest", f"--config={self.config}", f"--stanza={STANZA}", *arguments]

    def command(self, *arguments):
        return " ".join(self.words(*arguments))

    def run(self, *arguments):
        return self.host.run(*self.words(*arguments))

    def is_busy(self):
        """Whether a process in the background holds the lock of this repository."""
        found = subprocess.run(["pgrep", "-f", f"pgbackrest.*{self.config}"], stdout=subprocess.DEVNULL)
        return found.returncode == 0
