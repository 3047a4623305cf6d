"""WAL as pgbench writes it: N full segments, in the data directory of a server that was stopped before it archived them.

Its changes are made in the server, a hundred transactions at a time, so that a segment takes a second and not ten: the records
are the same but for fewer commits. Full page images are off, as WAL is long after a checkpoint: that is the WAL that is hardest
on a compressor, and of which there is most.
"""

import os
import pathlib
import time

from cluster import Cluster
from host import say

SCALE = 20
ACCOUNTS = SCALE * 100_000
SEGMENT_BYTES = 16 << 20
# PostgreSQL 15 is the newest that Debian's pgBackRest knows.
MAJOR = 15

# A hundred transactions at a time. Each client has rows of its own, by their parity, and waits for nobody.
TRANSACTIONS = f"""
create procedure run(client int, hundreds int) language plpgsql as $$
begin
  for number in 1..hundreds loop
    update pgbench_accounts set abalance = abalance + (random() * 10000)::int - 5000
      where aid in (select 1 + client + 2 * (random() * {ACCOUNTS // 2 - 1})::int from generate_series(1, 100));
    update pgbench_tellers set tbalance = tbalance + (random() * 10000)::int - 5000 where tid % 2 = client;
    for again in 1..10 loop
      update pgbench_branches set bbalance = bbalance + (random() * 10000)::int - 5000 where bid % 2 = client;
    end loop;
    insert into pgbench_history (tid, bid, aid, delta, mtime)
      select 1 + random() * {SCALE * 10 - 1}, 1 + random() * {SCALE - 1}, 1 + random() * {ACCOUNTS - 1},
        random() * 10000 - 5000, clock_timestamp() from generate_series(1, 100);
    commit;
  end loop;
end $$"""


class Dense:
    """`cluster` is the stopped server with `segments` in pg_wal; `base` are its files before the first of them."""

    def __init__(self, host, count):
        say(f"making {count} segments of dense WAL")
        self.host = host
        self.cluster = Cluster(host, MAJOR, "dense", "archive_mode = on\narchive_command = 'true'\nfull_page_writes = off")
        self.cluster.start()
        self.cluster.pgbench("-i", "-q", "-s", SCALE)
        self.cluster.sql(TRANSACTIONS)
        self.cluster.sql("vacuum freeze")
        self.cluster.stop()
        self.base = self.cluster.copy("dense-base")
        begun = time.monotonic()
        first = self.write(count)
        say(f"that took {time.monotonic() - begun:.0f} s")
        self.segments = [f"{number // 256:08X}{number % 256:08X}" for number in range(first, first + count)]
        self.segments = [f"00000001{name}" for name in self.segments]
        self.mark_ready()

    def write(self, count):
        """Runs transactions until so many segments are full. Returns the number of the first."""
        self.cluster.configure("archive_command = 'false'")
        self.cluster.start()
        position = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8"
        first = int(self.cluster.sql(position)) // SEGMENT_BYTES
        end = (first + count) * SEGMENT_BYTES
        while (left := end - int(self.cluster.sql(position))) >= 0:
            hundreds = min(5000, left // 100_000 + 10)
            psql = f"{self.cluster.programs}/psql -Xqc 'call run('$client', {hundreds})'"
            self.host.shell(f"for client in 0 1; do {psql} & done; wait", env=self.cluster.env)
        self.cluster.stop("immediate")
        return first

    @property
    def pg_wal(self):
        return self.cluster.data / "pg_wal"

    def path(self, segment):
        return self.pg_wal / segment

    def mark_ready(self, count=None):
        """Lets the first `count` segments wait for the archive, and nothing else."""
        status = self.pg_wal / "archive_status"
        for marker in status.iterdir():
            marker.unlink()
        for segment in self.segments[:count]:
            self.host.write(status / f"{segment}.ready", "")

    def warm(self):
        """Gets the segments into the page cache, and what others wrote out of the way."""
        for segment in self.segments:
            with open(self.path(segment), "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
        os.sync()

    def remove_receipts(self):
        """Removes the spools beside the data directory."""
        for spool in pathlib.Path(self.host.directory).glob("dense*.walhalla-*"):
            self.host.run("rm", "-rf", spool)
