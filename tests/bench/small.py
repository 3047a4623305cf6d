"""What a process costs before it does anything, the binary's size, the uploading loop, the reader of WAL, sums."""

import pathlib

import archiver
from report import Samples, Table, Wanted
from s3 import BUCKET, KEY, SECRET

STARTS = 21
START_LIMIT_MS = 20
BINARY_LIMIT_MB = 60
UPLOADS = 64
UPLOAD_WORKERS = 8
UPLOAD_LIMIT = 0.80
UPLOAD_MEMORY_LIMIT_MIB = 200
READ_SEGMENTS = 60
READER_LIMIT_MB_S = 1000
MISSING = "0000000100000FFF000000FF"


def start_up(host, dense):
    samples = Samples()
    store = host.make(host.directory / "small-store")
    env = {"WALHALLA_STORE": f"file://{store}"}
    # The answer to a segment that is not there. In a store with nothing in it that cannot be told.
    commands = {"`--version`": "--version", "`wal-fetch` of a missing segment": f"wal-fetch {MISSING} pg_wal/RECOVERYXLOG"}
    for name, arguments in commands.items():
        words = [host.walhalla, *arguments.split()]
        for seconds in host.in_child(lambda: [archiver.run(words)[1] for number in range(STARTS)], dense.cluster.data, env):
            samples.add(name, seconds)
    wanted = Wanted("Start-up and size")
    for name in samples.sides():
        wanted.at_most(f"{name}, ms", samples.median(name) * 1000, START_LIMIT_MS, digits=1)
    wanted.at_most("the binary, MB", pathlib.Path(host.walhalla).stat().st_size / 1e6, BINARY_LIMIT_MB, digits=0)
    return [wanted]


def upload(host, dense, s3, rounds):
    """Walhalla's store beside a loop that only calls the SDK: the same compressed segments, to the S3 server without TLS."""
    compressed = host.make(host.directory / "compressed")
    files = [compressed / f"{segment}.lz4" for segment in dense.segments[:UPLOADS]]
    for file in files:
        host.run("lz4", "-1", "-q", dense.path(file.stem), file)
    rates, peaks = Samples(), Samples()
    printed = host.directory / "upload"
    for number in range(rounds):
        for how in ("bare", "walhalla"):
            prefix = f"{BUCKET}/upload-{how}-{number}"
            words = [s3.programs / "s3_upload", how, f"http://{s3.lines[0]}", KEY, SECRET, prefix, UPLOAD_WORKERS, *files]
            with open(printed, "wb") as output:
                timing = host.timed(*words, output=output)
            seconds, size = map(float, printed.read_text().split())
            rates.add(how, size / seconds / 1e6)
            peaks.add(how, timing.peak_mib)
            host.run("rm", "-rf", s3.objects / prefix)
    table = Table(f"Upload of {len(files)} compressed segments to S3, {UPLOAD_WORKERS} at a time", ["", "MB/s", "peak MiB"])
    for how, name in (("walhalla", "Walhalla's store"), ("bare", "a loop that only calls the SDK")):
        table.row(name, f"{rates.median(how):.0f}", f"{max(peaks.of[how]):.0f}")
    wanted = Wanted("Upload: what is wanted")
    wanted.at_least("rate, of the loop", rates.median("walhalla") / rates.median("bare"), UPLOAD_LIMIT)
    wanted.at_most("peak, MiB", max(peaks.of["walhalla"]), UPLOAD_MEMORY_LIMIT_MIB, digits=0)
    return [table, wanted]


def reader(host, dense, programs, rounds):
    """Reading the records of WAL in the page cache with one core, beside a bare CRC-32C and pg_waldump."""
    segments = dense.segments[:READ_SEGMENTS]
    paths = [dense.path(segment) for segment in segments]
    seconds = Samples()
    for number in range(rounds):
        for mode in ("crc", "records", "blocks", "events"):
            printed = host.run(programs / "read_wal", mode, *paths).split()
            seconds.add(mode, float(printed[0]))
            size, records = int(printed[1]), int(printed[2])
            if mode == "records":
                all_records = records
        for mode in ("quiet", "stats"):
            words = [dense.cluster.programs / "pg_waldump", f"--{mode}", "-p", dense.pg_wal, segments[0], segments[-1]]
            seconds.add(f"pg_waldump --{mode}", host.timed(*words, is_fine=(0, 1)).wall_s)
    names = {
        "crc": "a bare CRC-32C",
        "records": "records, CRCs checked",
        "blocks": "… and the blocks they change",
        "events": "… and what they mean",
    }
    title = f"Reading {size / 1e6:.0f} MB of WAL with {all_records / 1e6:.1f} million records, one core"
    table = Table(title, ["", "s", "MB/s", "× CRC-32C"])
    floor = seconds.median("crc")
    for mode in seconds.sides():
        took = seconds.median(mode)
        name = names.get(mode, f"`{mode}`, the whole process")
        table.row(name, f"{took:.3f}", f"{size / took / 1e6:,.0f}", f"{took / floor:.1f}")
    wanted = Wanted("Reader: what is wanted")
    wanted.at_least("records, CRCs checked, MB/s", size / seconds.median("records") / 1e6, READER_LIMIT_MB_S, digits=0)
    return [table, wanted]


def sums(host, programs):
    """Sums of pages and files on one core, of a block in the processor's cache; the best of 20 rounds each."""
    table = Table("Sums of 1 MiB, one core", ["", "GB/s"])
    for line in host.run(programs / "sums").splitlines():
        table.row(*line.rsplit(": ", 1))
    return [table]
