"""One dense segment, pushed and fetched by a process of its own, and over a line with latency."""

import dataclasses

from host import say
from pgbackrest import PgBackRest
from report import Samples, Table, Wanted, milliseconds

SEGMENTS = 15
CPU_LIMIT = 1.6
PEER_LIMIT = 1.0
AGE_LIMIT = 1.6
LATENCY_MS = 20
LINE_PUSH_LIMIT_MS = 100
LINE_FETCH_LIMIT_MS = 60


@dataclasses.dataclass
class Place:
    """Where a side archives, with its commands."""

    name: str
    push: list
    fetch: list
    env: dict


class Segment:
    def __init__(self, host, dense, programs):
        self.host = host
        self.dense = dense
        self.programs = programs
        self.wall = Samples()
        self.cpu = Samples()

    def run(self, s3):
        places = self.places(s3)
        for segment in self.dense.segments[-SEGMENTS:]:
            # One segment alone: nothing else is ready.
            self.dense.mark_ready(0)
            self.floor(segment)
            for place in places:
                self.measure(f"push: {place.name}", place, place.push, segment)
                self.measure(f"fetch: {place.name}", place, place.fetch, segment)
                (self.dense.pg_wal / "fetched").unlink()
        say("segment: done")

    def places(self, s3):
        directory = self.host.make(self.host.directory / "segment-store")
        encrypted = self.host.make(self.host.directory / "segment-store-age")
        key = self.host.directory / "segment-identity"
        recipient = self.host.run(self.host.walhalla, "keygen", "--quiet", "--output", key).strip()
        age = {"WALHALLA_AGE_RECIPIENTS": recipient, "WALHALLA_AGE_IDENTITY_FILE": str(key)}
        peer = PgBackRest(self.host, "segment", self.dense.cluster, 1)
        peer.run("--no-online", "stanza-create")
        places = [
            self.walhalla("Walhalla, directory", {"WALHALLA_STORE": f"file://{directory}"}),
            self.walhalla("Walhalla, directory, encrypted", {"WALHALLA_STORE": f"file://{encrypted}"} | age),
            Place(
                "pgBackRest, directory",
                peer.words("archive-push", "{path}"),
                peer.words("archive-get", "{name}", "pg_wal/fetched"),
                {},
            ),
        ]
        for latency_ms in (0, LATENCY_MS):
            places.append(self.walhalla(f"Walhalla, S3, {latency_ms} ms", s3.walhalla(latency_ms, f"segment-{latency_ms}")))
        return places

    def walhalla(self, name, env):
        push = [self.host.walhalla, "wal-push", "{path}"]
        return Place(name, push, [self.host.walhalla, "wal-fetch", "{name}", "pg_wal/fetched"], env)

    def floor(self, segment):
        """What is compared with: compression and fsync, decompression and fsync, and the CPU time of the parts."""
        compressed = self.host.directory / "segment.lz4"
        path = self.dense.path(segment)
        push = self.host.timed_shell(f"lz4 -1 -q -f {path} {compressed} && sync {compressed}")
        self.wall.add("push: lz4 -1, fsync", push.wall_s)
        fetched = self.host.directory / "fetched"
        fetch = self.host.timed_shell(f"lz4 -d -q -f {compressed} {fetched} && sync {fetched}")
        self.wall.add("fetch: lz4 -d, fsync", fetch.wall_s)
        self.cpu.add("push: lz4 -1, fsync", push.cpu_s)
        alone = self.host.timed("lz4", "-1", "-q", "-f", path, compressed).cpu_s
        checksums = float(self.host.run(self.programs / "read_wal", "checksums", path).split()[0])
        self.cpu.add("parts", alone + checksums)

    def measure(self, name, place, words, segment):
        filled = [str(word).format(name=segment, path=f"pg_wal/{segment}") for word in words]
        timing = self.host.timed(*filled, env=place.env, cwd=self.dense.cluster.data)
        self.wall.add(name, timing.wall_s)
        self.cpu.add(name, timing.cpu_s)

    def tables(self):
        table = Table("One dense segment, a process each", ["", "ms", "CPU ms"], note=f"Medians of {min(SEGMENTS, len(self.dense.segments))} segments.")
        for name in sorted(self.wall.sides()):
            cpu = milliseconds(self.cpu.median(name)) if name in self.cpu.of else None
            table.row(name, milliseconds(self.wall.median(name)), cpu)
        wall, cpu = self.wall.median, self.cpu.median
        wanted = Wanted("One segment: what is wanted")
        ratio = cpu("push: Walhalla, directory") / cpu("parts")
        wanted.at_most("push: CPU time, of `lz4 -1`, a CRC-32C and a BLAKE3 hash", ratio, CPU_LIMIT)
        ratio = wall("push: Walhalla, directory") / wall("push: pgBackRest, directory")
        wanted.at_most("push: wall time, of pgBackRest", ratio, PEER_LIMIT)
        ratio = wall("push: Walhalla, directory, encrypted") / wall("push: Walhalla, directory")
        wanted.at_most("push: encrypted, of not encrypted", ratio, AGE_LIMIT)
        for what, limit_ms in (("push", LINE_PUSH_LIMIT_MS), ("fetch", LINE_FETCH_LIMIT_MS)):
            more_s = wall(f"{what}: Walhalla, S3, {LATENCY_MS} ms") - wall(f"{what}: Walhalla, S3, 0 ms")
            wanted.at_most(f"{what}: more over a line with {LATENCY_MS} ms a request, ms", more_s * 1000, limit_ms, digits=0)
        return [table, wanted]
