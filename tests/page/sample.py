#!/usr/bin/env python3
"""Writes sample pages of `walhalla status --html` from the templates, with made-up documents, so that the page can be
tested without a server.

    sample.py DIR      writes DIR/small.html, DIR/large.html, DIR/gap.html, DIR/empty.html and the documents as .json
"""

import json
import pathlib
import random
import sys
from datetime import datetime, timedelta, timezone

TEMPLATES = pathlib.Path(__file__).resolve().parents[2] / "src/status/page"
NOW = datetime(2026, 11, 30, 10, 40, tzinfo=timezone.utc)
HOSTILE = [
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "</script><script>document.title='ran'</script>",
    "'; rm -rf / #",
    "\u2028\u202e right to left",
]


def page(document):
    """The page of a document, filled as the program fills it."""
    data = json.dumps(document, ensure_ascii=False)
    for character, escape in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        data = data.replace(character, escape)
    text = (TEMPLATES / "page.html").read_text(encoding="utf-8")
    # The data comes last: it could hold the other marks.
    for mark, content in (
        ("/*STYLE*/", (TEMPLATES / "page.css").read_text(encoding="utf-8")),
        ("/*SCRIPT*/", (TEMPLATES / "page.js").read_text(encoding="utf-8")),
        ("/*DATA*/", data),
    ):
        assert text.count(mark) == 1, f"{mark} is {text.count(mark)} times in the page"
        text = text.replace(mark, content)
    return text


def moment(time):
    if time is None:
        return None
    text = time.strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{time.microsecond:06}" if time.microsecond else "") + "Z"


def segment(timeline, number):
    return f"{timeline:08X}{number // 256:08X}{number % 256:08X}"


def backup(stop, timeline=1, parent=None, **other):
    """A backup that took twelve minutes; its chain follows from its parent."""
    name = stop.strftime("%Y%m%dT%H%M%SZ")
    return {
        "id": name,
        "kind": "delta" if parent else "full",
        "parent": parent and parent["id"],
        "timeline": timeline,
        "start_time": moment(stop - timedelta(minutes=12)),
        "stop_time": moment(stop),
        "start_lsn": "2/28000028",
        "stop_lsn": "2/2A000100",
        "size_bytes": 912_680_550_400,
        "stored_bytes": 21_474_836_480 if parent else 389_120_000_000,
        "permanent": False,
        "label": None,
        "chain": (parent["chain"] if parent else []) + [name],
        "chain_problem": None,
        "reachable_from": moment(stop),
        "reachable_to": None,
        "corrupt_blocks": 0,
        **other,
    }


def backups_every(step, begin, end, fulls_every, timeline=1):
    made, parent, at = [], None, begin
    while at <= end:
        parent = backup(at, timeline, None if len(made) % fulls_every == 0 else parent)
        made.append(parent)
        at += step
    return made


def event(kind, time, detail, timeline=1, lsn="2/2B00C5A8", can_restore=True, cluster="7443178563127885315"):
    command = (
        f"walhalla restore restored --system-identifier {cluster} --target-lsn {lsn} --target-exclusive"
        f" --target-timeline {timeline} --target-action promote --archive-mode off"
    )
    return {
        "kind": kind,
        "time": moment(time),
        "lsn": lsn,
        "xid": 0 if kind == "restore_point" else 748_211,
        "timeline": timeline,
        "detail": detail,
        "restore_before": command if can_restore else None,
    }


def cluster(identifier, backups, timelines, reachable, events, **other):
    newest = backups[-1] if backups else None
    stop = newest and datetime.fromisoformat(newest["stop_time"].replace("Z", "+00:00"))
    return {
        "system_identifier": identifier,
        "postgres_version": "17",
        "state": "ok",
        "problems": [],
        "restore_command": f"walhalla restore restored --system-identifier {identifier}",
        "reachable": reachable,
        "backups": backups,
        "timelines": timelines,
        "events": events,
        "archiving": {
            "ready_segments": 0,
            "last_segment": segment(1, 700),
            "last_archived_time": moment(NOW - timedelta(seconds=41)),
            "failures": 0,
        },
        "longest_chain": max((len(one["chain"] or []) for one in backups), default=0),
        "newest_backup": newest
        and {
            "id": newest["id"],
            "kind": newest["kind"],
            "stop_time": newest["stop_time"],
            "age_seconds": (NOW - stop).total_seconds(),
        },
        "store_bytes": {
            "backups": 1_420_000_000_000,
            "wal": 310_000_000_000,
            "summaries": 2_100_000_000,
            "other": 48_000,
        },
        "last_verify": {"time": moment(NOW - timedelta(hours=31)), "result": "ok", "kind": "verify"},
        "last_drill": {
            "time": moment(NOW - timedelta(days=5, hours=3)),
            "result": "ok",
            "rto_seconds": 1284.2,
            "rpo_seconds": 22.0,
            "backup": newest and newest["id"],
        },
        "mirror": {"store": "gs://acme-mirror/pg", "owed_wal": 0, "owed_backups": 0, "since": None},
        **other,
    }


def document(*clusters):
    return {"walhalla_version": "0.1.0 (abc)", "time": moment(NOW), "store": "s3://acme/pg", "clusters": list(clusters)}


def timeline(number, runs, gaps=(), parent=None, switch=None):
    """A timeline with runs of coverage, and gaps between them."""
    coverage = [
        {
            "from": moment(begin),
            "to": moment(end),
            "first": segment(number, 100 * index),
            "last": segment(number, 100 * index + 90),
            "segments": 91,
        }
        for index, (begin, end) in enumerate(runs)
    ]
    return {
        "timeline": number,
        "parent_timeline": parent,
        "switch_lsn": "0/5000000" if parent else None,
        "switch_time": moment(switch),
        "segments": 91 * len(runs),
        "stored_bytes": 300_000_000_000,
        "first_segment": coverage[0]["first"],
        "last_segment": coverage[-1]["last"],
        "first_commit_time": coverage[0]["from"],
        "last_commit_time": coverage[-1]["to"],
        "coverage": coverage,
        "gaps": list(gaps),
    }


def gaps_between(number, runs):
    return [
        {
            "first": segment(number, 100 * index + 91),
            "last": segment(number, 100 * index + 99),
            "segments": 9,
            "after": moment(end),
            "before": moment(begin),
            "reason": None,
        }
        for index, ((_, end), (begin, _)) in enumerate(zip(runs, runs[1:]))
    ]


def small():
    """One cluster, nine weeks, a table dropped this morning."""
    begin, last = NOW - timedelta(days=63), NOW - timedelta(seconds=64, microseconds=123456)
    backups = backups_every(timedelta(days=1), begin, NOW - timedelta(hours=6), 7)
    backups[28].update(permanent=True, label="before the move to 17")
    events = [
        event("restore_point", NOW - timedelta(days=35, hours=9), "restore point before_release_42"),
        event(
            "truncate",
            NOW - timedelta(days=12, hours=3),
            "emptied table public.sessions in app (412 MiB)",
            lsn="2/1F0012A8",
        ),
        event(
            "rewrite",
            NOW - timedelta(days=3, hours=8),
            "rewrote table public.invoices in app (VACUUM FULL or ALTER TABLE)",
            lsn="2/290000D8",
        ),
        event(
            "drop",
            NOW - timedelta(hours=2, minutes=17, seconds=21, microseconds=876544),
            "dropped table public.orders in app (3 relations, 12.4 GiB)",
        ),
        event("restore_point", NOW - timedelta(hours=1, minutes=5), "restore point after_cleanup"),
    ]
    span = {"timeline": 1, "from": moment(begin), "to": moment(last), "missing": None}
    return document(cluster("7443178563127885315", backups, [timeline(1, [(begin, last)])], [span], events))


def gap():
    """One cluster with a gap of an hour between two backups: the newest backup was made after it."""
    begin, last = NOW - timedelta(days=4), NOW - timedelta(minutes=3)
    runs = [(begin, NOW - timedelta(days=2)), (NOW - timedelta(days=2) + timedelta(hours=1), last)]
    first, second = backup(begin), backup(NOW - timedelta(days=1))
    spans = [
        {"timeline": 1, "from": first["stop_time"], "to": moment(runs[0][1]), "missing": segment(1, 91)},
        {"timeline": 1, "from": second["stop_time"], "to": moment(last), "missing": None},
    ]
    problems = [
        {
            "severity": "critical",
            "what": "9 WAL segments are missing on timeline 1",
            "hint": "A new backup ends the exposure: walhalla backup-push --full.",
        }
    ]
    return document(
        cluster(
            "7443178563127885315",
            [first, second],
            [timeline(1, runs, gaps_between(1, runs))],
            spans,
            [],
            state="critical",
            problems=problems,
        )
    )


def timeline_at(time):
    """The timeline of the branched cluster at a time."""
    return 1 + sum(time >= NOW - timedelta(days=days) for days in (500, 90, 20))


def branched():
    """Four years, 2,000 backups, four timelines, 200 runs of coverage, 1,000 events, and names that try to run."""
    dice = random.Random(17)
    begin, last = NOW - timedelta(days=1460), NOW - timedelta(seconds=30)
    left2, left3, left4 = NOW - timedelta(days=500), NOW - timedelta(days=90), NOW - timedelta(days=20)
    edges = [begin + (left2 + timedelta(days=3) - begin) * index / 196 for index in range(197)]
    first_runs = [
        (edge, following - timedelta(minutes=dice.choice([4, 40, 700]))) for edge, following in zip(edges, edges[1:])
    ]
    timelines = [
        timeline(1, first_runs, gaps_between(1, first_runs)),
        timeline(2, [(left2, left3 + timedelta(days=14))], parent=1, switch=left2),
        timeline(3, [(left3, left4)], parent=2, switch=left3),
        timeline(
            4,
            [(left4, NOW - timedelta(days=6)), (NOW - timedelta(days=6) + timedelta(hours=5), last)],
            parent=3,
            switch=left4,
        ),
    ]
    timelines[3]["gaps"] = gaps_between(
        4, [(left4, NOW - timedelta(days=6)), (NOW - timedelta(days=6) + timedelta(hours=5), last)]
    )
    timelines[3]["gaps"][0]["reason"] = "the disk of the server was lost"
    step = (NOW - timedelta(hours=5) - begin) / 1999
    backups = backups_every(step, begin, NOW - timedelta(hours=4), 14)[:2000]
    for one in backups:
        stop = datetime.fromisoformat(one["stop_time"].replace("Z", "+00:00"))
        one["timeline"] = timeline_at(stop)
    for index in range(0, 2000, 140):
        backups[index].update(permanent=True, label=HOSTILE[index // 140 % len(HOSTILE)])
    backups[-3].update(chain=None, chain_problem="part 3 of its parent has another checksum")
    spans = spans_of(first_runs[:-1], backups) + [
        {
            "timeline": 4,
            "from": moment(first_runs[-1][0]),
            "to": moment(NOW - timedelta(days=6)),
            "missing": segment(4, 91),
        },
        {"timeline": 4, "from": moment(NOW - timedelta(days=5, hours=12)), "to": moment(last), "missing": None},
    ]
    return backups, timelines, spans, branched_events(dice, begin, "7443178563127885399")


def spans_of(runs, backups):
    """In each run, from the first backup in it on."""
    stops = [datetime.fromisoformat(one["stop_time"].replace("Z", "+00:00")) for one in backups]
    spans = []
    for index, (begin, end) in enumerate(runs):
        first = next((stop for stop in stops if begin <= stop < end), None)
        if first:
            spans.append(
                {"timeline": 1, "from": moment(first), "to": moment(end), "missing": segment(1, 100 * index + 91)}
            )
    return spans


def branched_events(dice, begin, cluster):
    kinds = ["drop", "truncate", "rewrite", "cut", "drop_database", "restore_point"]
    events = []
    for index in range(1000):
        time = begin + (NOW - timedelta(minutes=50) - begin) * ((index + dice.random()) / 1000)
        kind = dice.choice(kinds)
        name = HOSTILE[index % 50] if index % 50 < len(HOSTILE) else f"public.table_{index}"
        detail = f"{kind.replace('_', ' ')} {name} in app"
        events.append(event(kind, time, detail, timeline_at(time), f"{index // 9:X}/{index:08X}", index > 40, cluster))
    events[-2]["time"] = None
    return events


def large():
    """The branched cluster, a plain one and one without a backup."""
    backups, timelines, spans, events = branched()
    problems = [
        {
            "severity": "critical",
            "what": "9 WAL segments are missing on timeline 4, from 00000004000000000000005B on",
            "hint": "The server may still hold them: walhalla wal-push of its pg_wal. A new full backup ends the exposure.",
        },
        {
            "severity": "warning",
            "what": f"backup {backups[-3]['id']} cannot be used: part 3 of its parent has another checksum <b>&amp;",
            "hint": "walhalla backup-push --full makes one that stands alone.",
        },
        {"severity": "warning", "what": "the mirror lacks 12 WAL files", "hint": None},
    ]
    wide = cluster(
        "7443178563127885399",
        backups,
        timelines,
        spans,
        events,
        state="critical",
        problems=problems,
        last_verify={"time": moment(NOW - timedelta(days=2)), "result": "failed", "kind": "wal-verify"},
        last_drill=None,
        mirror={
            "store": "gs://acme-mirror/a-rather-long-prefix/of/the/second/store",
            "owed_wal": 12,
            "owed_backups": 1,
            "since": moment(NOW - timedelta(hours=3)),
        },
        archiving={
            "ready_segments": 17,
            "last_segment": segment(4, 190),
            "last_archived_time": moment(NOW - timedelta(minutes=9)),
            "failures": 3,
        },
    )
    bare_timeline = timeline(1, [(NOW - timedelta(hours=9), NOW - timedelta(minutes=1))])
    bare = cluster(
        "7443178563127885400",
        [],
        [bare_timeline],
        [],
        [],
        state="critical",
        last_verify=None,
        last_drill=None,
        mirror=None,
        problems=[{"severity": "critical", "what": "there is no backup", "hint": "walhalla backup-push makes one."}],
    )
    return document(small()["clusters"][0], wide, bare)


def write(target):
    """Writes all samples into a directory."""
    target.mkdir(parents=True, exist_ok=True)
    for name, made in (("small", small()), ("large", large()), ("gap", gap()), ("empty", document())):
        (target / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
        (target / f"{name}.html").write_text(page(made), encoding="utf-8")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
