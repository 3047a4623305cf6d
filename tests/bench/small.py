"""What a process costs before it does anything, the binary's size, the uploading loop, the reader of WAL."""

import pathlib

from host import say
from report import Samples, Table, Wanted
from s3 import KEY, SECRET, BUCKET

STARTS = 21
START_LIMIT_MS = 20
BINARY_LIMIT_MB = 60
UPLOADS = 64
UPLOAD_WORKERS = 8
UPLOAD_LIMIT = 0.80
UPLOAD_MEMORY_LIMIT_MIB = 200
READ_SEGMENTS = 60
READER_LIMIT = 1.30
READER_LIMIT_MB_S = 1000
MISSING = "0000000100000FFF000000FF"
ABSENT = 74


def start_up(host, dense):
    samples = Samples()
    store = host.make(host.directory / "small-store")
    env = {"WALHALLA_STORE": f"file://{store}"}
    for number in range(STARTS):
        samples.add("`--version`", host.timed(host.walhalla, "--version").wall_s)
        # The answer to a segment that is not there. In a store with nothing in it that cannot be told.
        words = [host.walhalla, "wal-fetch", MISSING, "pg_wal/RECOVERYXLOG"]
        timing = host.timed(*words, env=env, cwd=dense.cluster.data, is_fine=(1, ABSENT))
        samples.add("`wal-fetch` of a missing segment", timing.wall_s)
    wanted = Wanted("Start-up and size")
    for name in samples.sides():
        wanted.at_most(f"{name}, ms", samples.median(name) * 1000, START_LIMIT_MS, digits=1)
    wanted.at_most("the binary, MB", pathlib.Path(host.walhalla).stat().st_size / 1e6, BINARY_LIMIT_MB, digits=0)
    return [wanted]


def upload(host, dense, s3, rounds):
    """Walhalla's store beside a loop that only calls the SDK: the same compressed segments, to the S3 server without TLS."""
    compressed = host.make(host.directory / "compressed")
    segments = dense.segments[:UPLOADS]
    names = " ".join(str(dense.path(segment)) for segment in segments)
    host.shell(f"for file in {names}; do lz4 -1 -q $file {compressed}/$(basename $file).lz4; done")
    files = sorted(compressed.iterdir())
    rates, peaks = Samples(), Samples()
    for number in range(rounds):
        for how in ("bare", "walhalla"):
            prefix = f"{BUCKET}/upload-{how}-{number}"
            words = [s3.examples / "s3_upload", how, s3.plain, KEY, SECRET, prefix, UPLOAD_WORKERS, *files]
            timing, seconds, size = host.timed_output(*words)
            rates.add(how, size / seconds / 1e6)
            peaks.add(how, timing.peak_mib)
            host.run("rm", "-rf", s3.objects / prefix)
    table = Table(f"Upload of {len(files)} compressed segments to S3, {UPLOAD_WORKERS} at a time", ["", "MB/s", "peak MiB"])
    table.row("Walhalla's store", f"{rates.median('walhalla'):.0f}", f"{max(peaks.of['walhalla']):.0f}")
    table.row("a loop that only calls the SDK", f"{rates.median('bare'):.0f}", f"{max(peaks.of['bare']):.0f}")
    return [table]
