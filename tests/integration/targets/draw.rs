//! Targets by chance.

use std::fmt;

use jiff::{Timestamp, ToSpan as _};
use walhalla_postgres::Lsn;

use super::branches::{Branches, TWICE};
use super::truth::{End, Record, Truth, What};

/// A target as a user gives it.
#[derive(Clone)]
pub struct Drawn {
    pub point: Point,
    /// `latest`, `current` or a number.
    pub timeline: String,
    pub is_exclusive: bool,
}

#[derive(Clone)]
pub enum Point {
    Time(Timestamp),
    Xid(u32),
    Name(String),
    Lsn(Lsn),
}

/// What targets are drawn from.
pub struct Hat<'a> {
    branches: &'a Branches,
    records: Vec<Record>,
    ends: Vec<(Lsn, End)>,
    prepared: Vec<u32>,
    names: Vec<String>,
}

impl Drawn {
    pub fn point_args(&self) -> Vec<String> {
        let (name, value) = self.setting();
        vec![format!("--target-{name}"), value]
    }

    pub fn other_args(&self) -> Vec<String> {
        let mut args = vec!["--target-timeline".to_owned(), self.timeline.clone()];
        args.extend(self.is_exclusive.then(|| "--target-exclusive".to_owned()));
        args
    }

    pub fn args(&self) -> Vec<String> {
        [self.point_args(), self.other_args()].concat()
    }

    /// The end of the setting's name behind `recovery_target_`, and its value.
    pub fn setting(&self) -> (&'static str, String) {
        match &self.point {
            Point::Time(time) => {
                let text = time.strftime("%Y-%m-%d %H:%M:%S%.6f+00");
                ("time", text.to_string())
            }
            Point::Xid(xid) => ("xid", xid.to_string()),
            Point::Name(name) => ("name", name.clone()),
            Point::Lsn(lsn) => ("lsn", lsn.to_string()),
        }
    }
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = self.setting();
        let bound = if self.is_exclusive {
            " --target-exclusive"
        } else {
            ""
        };
        let timeline = &self.timeline;
        write!(
            f,
            "--target-{name} '{value}' --target-timeline {timeline}{bound}"
        )
    }
}

impl<'a> Hat<'a> {
    pub fn new(branches: &'a Branches, truth: &Truth) -> Self {
        let mut hat = Self {
            branches,
            records: Vec::new(),
            ends: Vec::new(),
            prepared: Vec::new(),
            names: Vec::new(),
        };
        for record in truth.timelines().iter().flat_map(|one| truth.path(*one)) {
            hat.records.push(record.clone());
            match &record.what {
                What::End(end) => hat.ends.push((record.lsn, end.clone())),
                What::Prepared(xid) => hat.prepared.push(*xid),
                What::RestorePoint(name) => hat.names.push(name.clone()),
                What::BackupEnd | What::Other => {}
            }
        }
        hat
    }

    pub fn draw(&self) -> Drawn {
        let point = match fastrand::usize(..10) {
            0..3 => Point::Time(self.time()),
            3..6 => Point::Xid(self.xid()),
            6..8 => Point::Name(self.name()),
            _ => Point::Lsn(self.lsn()),
        };
        let timelines = [
            "latest", "latest", "latest", "latest", "1", "1", "2", "2", "3", "3", "current", "4",
        ];
        Drawn {
            point,
            timeline: one_of(&timelines).to_owned(),
            is_exclusive: fastrand::usize(..3) == 0,
        }
    }

    fn time(&self) -> Timestamp {
        let times = self.ends.iter().map(|(_, end)| end.time);
        let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
        let span = last.as_microsecond() - first.as_microsecond();
        let of_an_end = one_of(&self.ends).1.time;
        match fastrand::usize(..9) {
            0..3 => of_an_end,
            3 => of_an_end + 1.microsecond(),
            4 => of_an_end - 1.microsecond(),
            5..7 => first + fastrand::i64(0..span).microseconds(),
            7 => one_of(&self.branches.backups).stop_time,
            _ => one_of(&[last + 1.hour(), last + 1.microsecond(), first - 1.hour()]),
        }
    }

    fn xid(&self) -> u32 {
        let subtransactions = self.ends.iter().flat_map(|(_, end)| &end.subtransactions);
        let subtransactions: Vec<u32> = subtransactions.copied().collect();
        let aborted = self.ends.iter().filter(|(_, end)| !end.is_commit);
        let aborted: Vec<u32> = aborted.map(|(_, end)| end.xid).collect();
        let newest = self.ends.iter().map(|(_, end)| end.xid).max().unwrap();
        match fastrand::usize(..8) {
            0..3 => one_of(&self.ends).1.xid,
            3 => self.near_a_border().1.xid,
            4 => one_of(&aborted),
            5 => one_of(&self.prepared),
            6 => one_of(&subtransactions),
            _ => one_of(&[3, newest + 50, 4_000_000_000]),
        }
    }

    fn name(&self) -> String {
        let name = one_of(&self.names);
        match fastrand::usize(..8) {
            0..5 => name,
            5 => TWICE.to_owned(),
            6 => format!("{name}x"),
            _ => one_of(&["twyce", "none", "it's not there"]).to_owned(),
        }
    }

    fn lsn(&self) -> Lsn {
        let record = one_of(&self.records).lsn;
        let backup = one_of(&self.branches.backups);
        let last = self.records.iter().map(|record| record.lsn).max().unwrap();
        match fastrand::usize(..10) {
            0..2 => record,
            2..4 => Lsn(record.0 + fastrand::u64(1..40)),
            4 => Lsn(record.0 >> 20 << 20),
            5 => Lsn(fastrand::u64(..last.0)),
            6 => self.near_a_border().0,
            7 => one_of(&[
                backup.start_lsn,
                backup.stop_lsn,
                Lsn(backup.stop_lsn.0 - 8),
            ]),
            8 => one_of(&self.ends).0,
            _ => one_of(&[Lsn(last.0 + 1), Lsn(last.0 + (50 << 20)), Lsn(40)]),
        }
    }

    /// The end of a transaction that begins in the last 40 bytes of a segment.
    fn near_a_border(&self) -> (Lsn, End) {
        let is_near = |(lsn, _): &&(Lsn, End)| lsn.0 % (1 << 20) >= (1 << 20) - 40;
        let near: Vec<_> = self.ends.iter().filter(is_near).cloned().collect();
        one_of(&near)
    }
}

fn one_of<T: Clone>(list: &[T]) -> T {
    list[fastrand::usize(..list.len())].clone()
}
