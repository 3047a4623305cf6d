//! What the WAL holds, by `pg_waldump`, and where recovery thus stops (xlogrecovery.c, `recoveryStopsBefore` and
//! `recoveryStopsAfter`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use walhalla_postgres::Lsn;

use super::draw::{Drawn, Point};
use crate::support::{host, run};

/// The records of all timelines.
pub struct Truth {
    timelines: BTreeMap<u32, Timeline>,
}

struct Timeline {
    records: Vec<Record>,
    /// Older timelines and where each was left.
    ancestors: Vec<(u32, Lsn)>,
}

#[derive(Clone)]
pub struct Record {
    pub lsn: Lsn,
    pub what: What,
}

#[derive(Clone)]
pub enum What {
    End(End),
    /// `PREPARE TRANSACTION` of this one.
    Prepared(u32),
    RestorePoint(String),
    BackupEnd,
    Other,
}

/// The end of a transaction.
#[derive(Clone)]
pub struct End {
    pub xid: u32,
    pub time: Timestamp,
    pub is_commit: bool,
    pub subtransactions: Vec<u32>,
}

/// Where recovery stops.
#[derive(Debug)]
pub struct Stop {
    /// Start of the record.
    pub lsn: Lsn,
    pub logged: Logged,
}

/// What the server logs when it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Logged {
    End {
        is_after: bool,
        is_commit: bool,
        xid: u32,
        time: Timestamp,
    },
    Position {
        is_after: bool,
        lsn: Lsn,
    },
    RestorePoint(String),
}

impl Truth {
    /// Of the segments in `raw`.
    pub fn read(raw: &Path) -> Self {
        let mut segments: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for entry in std::fs::read_dir(raw).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.len() == 24 {
                let timeline = u32::from_str_radix(&name[..8], 16).unwrap();
                segments.entry(timeline).or_default().insert(name);
            }
        }
        let timelines = segments.into_iter().map(|(timeline, names)| {
            let (first, last) = (names.first().unwrap(), names.last().unwrap());
            let known = Timeline {
                records: records(raw, first, last),
                ancestors: ancestors(raw, timeline),
            };
            (timeline, known)
        });
        Self {
            timelines: timelines.collect(),
        }
    }

    pub fn timelines(&self) -> Vec<u32> {
        self.timelines.keys().copied().collect()
    }

    /// The records on the way to the end of a timeline, in the order of replay.
    pub fn path(&self, timeline: u32) -> impl Iterator<Item = &Record> {
        let own = &self.timelines[&timeline];
        let mut begin = Lsn(0);
        let mut spans = Vec::new();
        for (ancestor, switch) in &own.ancestors {
            spans.push((*ancestor, begin..*switch));
            begin = *switch;
        }
        spans.push((timeline, begin..Lsn(u64::MAX)));
        spans.into_iter().flat_map(|(timeline, span)| {
            let records = self.timelines[&timeline].records.iter();
            records.filter(move |record| span.contains(&record.lsn))
        })
    }

    /// Whether the way to `timeline` passes `lsn` on the timeline `on`.
    pub fn passes(&self, timeline: u32, on: u32, lsn: Lsn) -> bool {
        let Some(known) = self.timelines.get(&timeline) else {
            return false;
        };
        let left = known.ancestors.iter().find(|(ancestor, _)| *ancestor == on);
        left.map_or(timeline == on, |(_, switch)| lsn <= *switch)
    }

    /// Where recovery from `redo` to the end of `timeline` stops.
    pub fn stop(&self, timeline: u32, redo: Lsn, target: &Drawn) -> Option<Stop> {
        let mut records = self.path(timeline).skip_while(|record| record.lsn < redo);
        records.find_map(|record| {
            let logged = record.logged_at(target)?;
            Some(Stop {
                lsn: record.lsn,
                logged,
            })
        })
    }

    /// What is committed when recovery along `timeline` stopped there.
    pub fn committed(&self, timeline: u32, stop: &Stop) -> BTreeSet<u32> {
        let is_replayed = |lsn: Lsn| lsn < stop.lsn || lsn == stop.lsn && stop.logged.is_after();
        let ends = self.path(timeline).filter_map(|record| match &record.what {
            What::End(end) if end.is_commit && is_replayed(record.lsn) => Some(end.xid),
            _ => None,
        });
        ends.collect()
    }

    /// How many ends of transactions lie on a segment's border, or nearly.
    pub fn ends_on_borders(&self, segment_bytes: u64) -> usize {
        let records = self.timelines.values().flat_map(|known| &known.records);
        let is_near = |record: &&Record| segment_bytes - record.lsn.0 % segment_bytes <= 40;
        let ends = records.filter(|record| matches!(record.what, What::End(_)));
        ends.filter(is_near).count()
    }
}

impl Record {
    fn logged_at(&self, target: &Drawn) -> Option<Logged> {
        let is_after = !target.is_exclusive;
        match (&target.point, &self.what) {
            (Point::Lsn(lsn), _) if self.lsn >= *lsn => Some(Logged::Position {
                is_after,
                lsn: self.lsn,
            }),
            (Point::Name(name), What::RestorePoint(other)) if name == other => {
                Some(Logged::RestorePoint(name.clone()))
            }
            (Point::Xid(xid), What::End(end)) if end.xid == *xid => Some(end.logged(is_after)),
            (Point::Time(time), What::End(end))
                if end.time > *time || target.is_exclusive && end.time == *time =>
            {
                Some(end.logged(false))
            }
            _ => None,
        }
    }
}

impl End {
    fn logged(&self, is_after: bool) -> Logged {
        Logged::End {
            is_after,
            is_commit: self.is_commit,
            xid: self.xid,
            time: self.time,
        }
    }
}

impl Logged {
    /// Of a line behind `recovery stopping `.
    pub fn parse(line: &str) -> Option<Self> {
        let (when, rest) = line.split_once(' ')?;
        let is_after = when == "after";
        if let Some(rest) = rest.strip_prefix("restore point \"") {
            return Some(Self::RestorePoint(
                rest.split_once("\", time ")?.0.to_owned(),
            ));
        }
        if let Some(lsn) = rest.strip_prefix("WAL location (LSN) \"") {
            let lsn = lsn.trim_end_matches('"').parse().ok()?;
            return Some(Self::Position { is_after, lsn });
        }
        let (how, rest) = rest.split_once(" of transaction ")?;
        let (xid, time) = rest.split_once(", time ")?;
        Some(Self::End {
            is_after,
            is_commit: how == "commit",
            xid: xid.parse().ok()?,
            time: time.replace("+00", "Z").parse().ok()?,
        })
    }

    fn is_after(&self) -> bool {
        match self {
            Self::End { is_after, .. } | Self::Position { is_after, .. } => *is_after,
            Self::RestorePoint(_) => true,
        }
    }
}

fn ancestors(raw: &Path, timeline: u32) -> Vec<(u32, Lsn)> {
    let history = std::fs::read_to_string(raw.join(format!("{timeline:08X}.history")));
    let history = history.unwrap_or_default();
    let lines = history.lines().map(|line| {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap();
        (next().parse().unwrap(), next().parse().unwrap())
    });
    lines.collect()
}

fn records(raw: &Path, first: &str, last: &str) -> Vec<Record> {
    let mut command = host().command(host().server_program(17, "pg_waldump"));
    command.env("TZ", "UTC");
    // It ends with an error, at the end of what was archived.
    let shown = run(command.arg("-p").arg(raw).args([first, last])).stdout;
    shown.lines().filter_map(record).collect()
}

/// `rmgr: Transaction len (rec/tot):     34/    34, tx:        738, lsn: 0/01500028, prev 0/01500000, desc: COMMIT …`
fn record(line: &str) -> Option<Record> {
    let number = |mark: &str| line.split_once(mark)?.1.split(',').next();
    let lsn = number(" lsn: ")?.parse().ok()?;
    let xid = number(" tx: ")?.trim().parse().ok()?;
    let (_, text) = line.split_once(" desc: ")?;
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    let what = match kind {
        "COMMIT" | "ABORT" if line.contains("rmgr: Transaction") => end(kind, xid, rest),
        "COMMIT_PREPARED" | "ABORT_PREPARED" => {
            let (prepared, rest) = rest.split_once(": ")?;
            end(kind, prepared.parse().ok()?, rest)
        }
        "PREPARE" => What::Prepared(xid),
        "RESTORE_POINT" => What::RestorePoint(rest.to_owned()),
        "BACKUP_END" => What::BackupEnd,
        _ => What::Other,
    };
    Some(Record { lsn, what })
}

/// `2026-11-21 04:30:00.123456 UTC; rels: …; subxacts: 751 752; …`
fn end(kind: &str, xid: u32, rest: &str) -> What {
    let mut parts = rest.split("; ");
    let time = parts.next().unwrap().replace(" UTC", "Z");
    let subtransactions = parts.find_map(|part| part.strip_prefix("subxacts: "));
    let subtransactions = subtransactions.unwrap_or_default().split_whitespace();
    What::End(End {
        xid,
        time: time.parse().unwrap(),
        is_commit: kind.starts_with("COMMIT"),
        subtransactions: subtransactions.map(|xid| xid.parse().unwrap()).collect(),
    })
}
