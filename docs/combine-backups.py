#!/usr/bin/env python3
"""Makes a data directory of unpacked backups: combine-backups.py FULL DELTA... OUTPUT, the full one first."""
import os, re, shutil, struct, sys

BLOCK = 8192  # "Database block size" of pg_controldata
FOLDER = re.compile(r"global|base/\d+|pg_tblspc/\d+/[^/]+/\d+")
DELTA = re.compile(r"INCREMENTAL\.(\d+(_init)?(\.\d+)?)")
*layers, output = sys.argv[1:]
leaf = layers[-1]
IS_DELTA = len(layers) > 1  # in a full backup alone, INCREMENTAL.* is a name like any other

def delta(path):
    """The length up to which older blocks count, and where this file's own blocks are."""
    with open(path, "rb") as file:
        magic, count, length = struct.unpack("<III", file.read(12))
        blocks = struct.unpack(f"<{count}I", file.read(4 * count))
    begin = -(-(12 + 4 * count) // BLOCK) * BLOCK if count else 12
    if magic != 0xD3AE1F0D or os.path.getsize(path) != begin + count * BLOCK:
        sys.exit(f"STOP: {path} is damaged")
    return length, {block: (path, begin + place * BLOCK) for place, block in enumerate(blocks)}

def combine(folder, name):
    """Writes a file: each block from the newest backup that has it, zeros where none has."""
    found, limit, length = {}, sys.maxsize, None
    for layer in reversed(layers):
        whole, changed = (os.path.join(layer, folder, prefix + name) for prefix in ("", "INCREMENTAL."))
        if os.path.exists(whole):
            kept, own = 0, {block: (whole, block * BLOCK) for block in range(os.path.getsize(whole) // BLOCK)}
        elif os.path.exists(changed):
            kept, own = delta(changed)
        else:
            sys.exit(f"STOP: {layer} has nothing of {folder}/{name}")
        length = max([kept] + [block + 1 for block in own]) if length is None else length
        for block in own:
            if block < limit:
                found.setdefault(block, own[block])
        limit = min(limit, kept)
        if os.path.exists(whole):
            break
    else:
        sys.exit(f"STOP: no backup has {folder}/{name} whole")
    files = {path: open(path, "rb") for path, _ in found.values()}
    with open(os.path.join(output, folder, name), "xb") as target:
        for block in range(length):
            path, place = found.get(block, (None, 0))
            target.write(os.pread(files[path].fileno(), BLOCK, place) if path else bytes(BLOCK))
    shutil.copymode(os.path.join(leaf, folder, "INCREMENTAL." + name), os.path.join(output, folder, name))
    for file in files.values():
        file.close()

for path, _, names in os.walk(leaf):
    folder = os.path.relpath(path, leaf)
    os.makedirs(os.path.join(output, folder), exist_ok=True)
    shutil.copymode(path, os.path.join(output, folder))
    for name in names:
        changed, file = DELTA.fullmatch(name), os.path.normpath(os.path.join(folder, name))
        if IS_DELTA and changed and FOLDER.fullmatch(folder):
            combine(folder, changed[1])
        elif file not in ("global/pg_control", "backup_label", "backup_manifest", "tablespace_map"):
            shutil.copy2(os.path.join(leaf, file), os.path.join(output, file))
with open(os.path.join(leaf, "backup_label")) as old, open(os.path.join(output, "backup_label"), "x") as new:
    new.writelines(line for line in old if not line.startswith("INCREMENTAL FROM "))
shutil.copy2(os.path.join(leaf, "global/pg_control"), os.path.join(output, "global"))
os.sync()
