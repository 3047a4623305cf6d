//! Reports in the store: how verifications and drills ended, for `status` and for people.
//!
//! ```text
//! <system identifier>/reports/<kind>/<YYYYMMDDTHHMMSSZ>-<run>.json
//! ```
//!
//! Each report is an object of its own, created once and never changed. A deletion keeps the newest [`KEPT_OF_A_KIND`] of each
//! kind. Nothing that restores or deletes data depends on a report: one that cannot be read is skipped.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walhalla_providers::{Error as StoreError, ObjectInfo, PutMode};

use super::Repository;
use super::entry::BackupId;
use super::layout::{Key, Layout};
pub use super::layout::{ReportId, ReportKind};

/// The format of a report.
const FORMAT: u32 = 1;
/// How many reports of each kind a deletion keeps.
pub const KEPT_OF_A_KIND: usize = 20;
/// Longest report that is read: it names backups.
const REPORT_LIMIT_BYTES: u64 = 1 << 20;
/// Reports that are read at the same time.
const READ_AT_A_TIME: usize = 16;

/// How something ended that looked for problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportResult {
    /// No problem was found.
    Ok,
    /// At least one problem was found.
    Failed,
}

/// How one run of `verify`, `wal-verify` or `drill` ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The format, 1.
    pub format: u32,
    /// What ran.
    pub kind: ReportKind,
    /// When it began, by the clock of `host`.
    pub time: Timestamp,
    /// The host that it ran on.
    pub host: String,
    /// How it ended.
    pub result: ReportResult,
    /// How many problems it found.
    pub problems: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The backups that it looked at, oldest first. `wal-verify` looks at none.
    pub backups: Vec<BackupId>,
    /// What a drill measured; `None` for other kinds, and for a drill that had no plan.
    pub drill: Option<DrillReport>,
    /// The version of this program.
    pub walhalla_version: String,
}

/// What a drill measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    /// Time to restore, in seconds: from the begin until the server accepted writes. `None` if it never did.
    pub rto_seconds: Option<f64>,
    /// Data loss, in seconds: from the last restored commit to the newest one that was known. `None` where it cannot be told.
    pub rpo_seconds: Option<f64>,
    /// The restored backup.
    pub backup: BackupId,
    /// The recovery target, in words.
    pub target: String,
    /// The time of the last restored commit; `None` where nothing was replayed that has one.
    pub reached_time: Option<Timestamp>,
}

impl ReportResult {
    /// The result of a run that found this many problems.
    pub fn of(problems: u64) -> Self {
        if problems == 0 {
            Self::Ok
        } else {
            Self::Failed
        }
    }
}

impl Report {
    /// The report of a run that began at `time` and ends now, on this host.
    pub fn new(kind: ReportKind, time: Timestamp, problems: u64) -> Self {
        let uname = rustix::system::uname();
        let seconds = Timestamp::now().duration_since(time).as_secs_f64();
        Self {
            format: FORMAT,
            kind,
            time,
            host: uname.nodename().to_string_lossy().into_owned(),
            result: ReportResult::of(problems),
            problems,
            seconds: seconds.max(0.0),
            backups: Vec::new(),
            drill: None,
            walhalla_version: crate::VERSION.to_owned(),
        }
    }
}

impl Repository {
    /// Stores a report. After `Ok` it is durable.
    ///
    /// # Errors
    /// The store's.
    pub fn record_report(&self, report: &Report) -> Result<(), StoreError> {
        let json = serde_json::to_string(report).expect("names, times and numbers are JSON");
        let id = ReportId::new(report.time);
        let key = self.layout.key(&Key::Report(report.kind, id));
        let json = format!("{json}\n").into();
        self.session.put(&key, json, PutMode::Create)
    }

    /// The newest reports of a kind, at most `limit`, newest first. It lists the reports of that kind and reads those that it
    /// returns. A report that cannot be read, or that a later version wrote in another format, is skipped with a warning.
    ///
    /// # Errors
    /// The store's.
    pub fn reports(&self, kind: ReportKind, limit: usize) -> Result<Vec<Report>, StoreError> {
        let found = self.session.list(&self.layout.reports_of(kind), None)?;
        let mut ids: Vec<(ReportId, ObjectInfo)> = { found.into_iter() }
            .filter_map(|info| Some((report_id(&self.layout, &info)?, info)))
            .collect();
        ids.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
        let mut reports = Vec::new();
        let mut left = ids.into_iter().map(|(_, info)| info);
        while reports.len() < limit {
            let next: Vec<_> = left.by_ref().take(limit - reports.len()).collect();
            if next.is_empty() {
                break;
            }
            let keys = next.iter().map(|info| info.key.clone());
            let texts = self
                .session
                .get_all(keys, REPORT_LIMIT_BYTES, READ_AT_A_TIME);
            for (info, text) in next.iter().zip(texts) {
                match text.map_err(Unread::Store).and_then(|text| read(&text)) {
                    Ok(report) => reports.push(report),
                    // A deletion took it.
                    Err(Unread::Store(error)) if error.is_not_found() => {}
                    Err(error) => {
                        let (url, reason) = (self.url(&info.key), crate::output::chain(&error));
                        tracing::warn!("{url} is skipped: {reason}");
                    }
                }
            }
        }
        Ok(reports)
    }
}

/// Why a report is skipped.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Store(StoreError),
    #[error("it is no report")]
    Other(#[from] serde_json::Error),
    #[error("a later version wrote it, in the format {0}")]
    Later(u32),
}

fn read(text: &[u8]) -> Result<Report, Unread> {
    /// What every format has.
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u32,
    }
    let AnyFormat { format } = serde_json::from_slice(text)?;
    if format > FORMAT {
        return Err(Unread::Later(format));
    }
    Ok(serde_json::from_slice(text)?)
}

fn report_id(layout: &Layout, info: &ObjectInfo) -> Option<ReportId> {
    match layout.parse(&info.key) {
        Key::Report(_, id) => Some(id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::testing;
    use crate::session::Network;

    fn at(seconds: i64) -> Report {
        let time = Timestamp::from_second(seconds).unwrap();
        Report {
            seconds: 1.5,
            ..Report::new(
                ReportKind::Verify,
                time,
                u64::try_from(seconds % 2).unwrap(),
            )
        }
    }

    #[test]
    fn reports_come_newest_first_and_no_more_than_wanted() {
        let network = Network::start(1).unwrap();
        let repository = testing::in_memory(&network);
        for seconds in [30, 10, 20, 40] {
            repository.record_report(&at(seconds)).unwrap();
        }
        let drill = Report::new(ReportKind::Drill, Timestamp::now(), 0);
        repository.record_report(&drill).unwrap();
        let newest = repository.reports(ReportKind::Verify, 3).unwrap();
        assert_eq!(newest, [at(40), at(30), at(20)]);
        assert_eq!(repository.reports(ReportKind::Drill, 9).unwrap(), [drill]);
        assert_eq!(repository.reports(ReportKind::WalVerify, 9).unwrap(), []);
    }

    #[test]
    fn what_cannot_be_read_is_skipped_and_an_older_report_takes_its_place() {
        let network = Network::start(1).unwrap();
        let repository = testing::in_memory(&network);
        for seconds in [11, 21] {
            repository.record_report(&at(seconds)).unwrap();
        }
        let later = "{\"format\": 2, \"kind\": \"verify\"}";
        for (seconds, text) in [(30, "{"), (40, later), (50, "")] {
            let id = ReportId::new(Timestamp::from_second(seconds).unwrap());
            let key = repository
                .layout()
                .key(&Key::Report(ReportKind::Verify, id));
            repository
                .session()
                .put(&key, text.into(), PutMode::Create)
                .unwrap();
        }
        let newest = repository.reports(ReportKind::Verify, 2).unwrap();
        assert_eq!(newest, [at(21), at(11)]);
        assert_eq!(newest[0].result, ReportResult::Failed);
    }
}
