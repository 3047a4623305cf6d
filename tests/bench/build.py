"""What has to be there before anything is measured: packages, PostgreSQL, Walhalla and the servers of its tests."""

import os
import pathlib
import shutil
import subprocess

from host import REPOSITORY, say

# Debian's packages of the programs.
PACKAGES = {"pgbackrest": "pgbackrest", "haproxy": "haproxy", "openssl": "openssl", "lz4": "lz4"}
# PostgreSQL 15 is the newest that Debian's pgBackRest knows.
MAJORS = (15,)
EXAMPLES = ("s3_server", "slow_line", "s3_upload", "read_wal", "sums")


def install():
    subprocess.run([REPOSITORY / "tests/setup.sh", *map(str, MAJORS)], check=True, stdout=2)
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        say(f"installing {' '.join(missing)}")
        as_root = [] if os.getuid() == 0 else ["sudo"]
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run([*as_root, *words], check=True, stdout=subprocess.DEVNULL)


def target():
    return REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "release"


def cargo(*arguments):
    subprocess.run(["cargo", "build", "--release", "--locked", *arguments], cwd=REPOSITORY, check=True, stdout=2)


def walhalla():
    """The release binary, or the one that WALHALLA_TEST_PROGRAM names."""
    if program := os.environ.get("WALHALLA_TEST_PROGRAM"):
        return pathlib.Path(program)
    say("building the release binary")
    cargo()
    return target() / "walhalla"


def examples():
    """The directory with the programs that stand beside the tests, or the one that WALHALLA_TEST_EXAMPLES names."""
    if directory := os.environ.get("WALHALLA_TEST_EXAMPLES"):
        return pathlib.Path(directory)
    say("building the S3 server, the slow line and the loops")
    cargo("--package", "walhalla-providers", "--examples")
    cargo("--workspace", "--example", "read_wal", "--example", "sums")
    return target() / "examples"
