//! Reading back what is stored, without writing it anywhere.
//!
//! ```text
//! backup.json ─▶ manifest ─▶ parts ─▶ files ─▶ pages            backups, N parts at a time
//!            └─▶ the segments that make it consistent
//! histories, listings ─▶ gaps                                    archive
//! segments ─▶ pages ─▶ records, across segment borders           archive, N runs of segments at a time
//! ```
//!
//! What is wrong is a [`Problem`] and does not end the work; what keeps it from going on (a store that
//! does not answer, a missing right) is an [`Error`]. Of what was found sound a [`receipts`] file can be kept.

pub mod archive;
pub mod backups;
pub mod receipts;
mod segments;

use std::collections::{BTreeSet, HashSet};
use std::mem::discriminant;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use receipts::{Depth, Receipt, Receipts};
use serde::Serialize;

use crate::contents;
use crate::failure::{Advice, Class, Failure};
use crate::output;
use crate::pipeline::StoredDigest;
use crate::progress::Show;
use crate::repository::ranges::Ranges;
use crate::repository::reports::{Report, ReportKind};
use crate::repository::{self, Catalog, ObjectError, Repository};
use crate::threads::lock;
use crate::wal;

/// Why a verification did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog or the archive failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// A backup's content could not be read.
    #[error(transparent)]
    Contents(#[from] contents::Error),
    /// A WAL file could not be read.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// The file of receipts cannot be used.
    #[error(transparent)]
    Receipts(#[from] receipts::Error),
    /// Another thread failed first.
    #[error("the verification was broken off")]
    BrokenOff,
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Repository(error) => error.class(),
            Self::Contents(error) => error.class(),
            // Absence is the answer to who asked for a file.
            Self::Wal(wal::Error::NotArchived { .. }) | Self::BrokenOff => Class::Other,
            Self::Wal(error) => error.class(),
            Self::Receipts(error) => error.class(),
        }
    }

    fn hint(&self) -> Option<Advice> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Contents(error) => error.hint(),
            Self::Wal(error) => error.hint(),
            Self::Receipts(error) => error.hint(),
            Self::BrokenOff => None,
        }
    }
}

impl From<ObjectError> for Error {
    fn from(error: ObjectError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
    }
}

/// Something that is wrong with what is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The object's URL.
    pub object: String,
    /// What is wrong with it, and the file in it.
    pub what: String,
}

/// How a verification is done.
#[derive(Debug)]
pub struct Options {
    /// Objects that are read at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
    /// What was found sound before, and will be.
    pub receipts: Option<Receipts>,
    /// WAL that the store is owed: it is not missing.
    pub owed: Ranges,
}

/// What a verification found, for `--json` too.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// Whether nothing is wrong, as far as could be seen.
    pub ok: bool,
    /// Whether the work came to its end.
    pub complete: bool,
    /// What is.
    pub problems: Vec<Problem>,
    /// What could not be looked at, and why.
    pub notes: Vec<String>,
    /// Backups that were verified.
    pub backups: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Objects that a receipt vouches for.
    pub objects_with_receipt: u64,
    /// Encrypted objects whose stored bytes alone were compared, as there is no identity.
    pub objects_unopened: u64,
    /// Files of backups that were compared with the manifest.
    pub files: u64,
    /// Data pages whose checksum was checked.
    pub pages: u64,
    /// WAL segments that are needed or, with `--deep`, there.
    pub segments: u64,
    /// WAL segments that were read.
    pub segments_read: u64,
    /// Stored bytes that were read.
    pub bytes: u64,
    /// Time it took.
    pub seconds: f64,
}

/// What was found until the work ended, and how it ended.
#[derive(Debug)]
pub struct Verified {
    /// The findings.
    pub report: VerifyReport,
    /// What kept the work from its end, if anything.
    pub outcome: Result<(), Error>,
}

impl Verified {
    /// The report for the store of a run that began at `begun`; `None` where the work was broken off and nothing wrong was
    /// found until then, so that there is nothing to tell.
    pub fn stored_report(&self, kind: ReportKind, begun: Timestamp) -> Option<Report> {
        let problems = self.report.problems.len() as u64;
        let tells = self.report.complete || problems > 0;
        tells.then(|| Report::new(kind, begun, problems))
    }
}

/// What comes together while several threads read.
struct Findings {
    begun: Instant,
    problems: Mutex<Vec<Problem>>,
    notes: Mutex<Vec<String>>,
    /// WAL files that are sound and lack their last frame.
    without_trailer: Mutex<BTreeSet<String>>,
    backups: AtomicU64,
    objects: AtomicU64,
    with_receipt: AtomicU64,
    unopened: AtomicU64,
    files: AtomicU64,
    pages: AtomicU64,
    segments: AtomicU64,
    segments_read: AtomicU64,
    bytes: AtomicU64,
}

impl Findings {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            begun: Instant::now(),
            problems: Mutex::default(),
            notes: Mutex::default(),
            without_trailer: Mutex::default(),
            backups: zero(),
            objects: zero(),
            with_receipt: zero(),
            unopened: zero(),
            files: zero(),
            pages: zero(),
            segments: zero(),
            segments_read: zero(),
            bytes: zero(),
        }
    }

    fn problem(&self, object: String, what: String) {
        let problem = Problem { object, what };
        let mut problems = lock(&self.problems);
        if !problems.contains(&problem) {
            tracing::error!("{}: {}", problem.object, problem.what);
            problems.push(problem);
        }
    }

    fn note(&self, note: String) {
        tracing::warn!("{note}");
        lock(&self.notes).push(note);
    }

    /// Takes what is wrong with `object` for a problem, and hands everything else back.
    fn judge<T>(&self, object: &str, outcome: Result<T, Error>) -> Result<Option<T>, Error> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_of_the_object() => {
                self.problem(object.to_owned(), wrong_with(object, &error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// An object was read to its end and nothing is wrong with it, unless it changed since the last time.
    fn sound(
        &self,
        receipts: Option<&Receipts>,
        sound: &Sound,
        digest: StoredDigest,
    ) -> Result<(), Error> {
        let Some(receipts) = receipts else {
            return Ok(());
        };
        let is_other = |earlier: &Receipt| {
            // Digests of two kinds tell nothing of each other.
            discriminant(&earlier.digest) == discriminant(&digest) && earlier.digest != digest
        };
        match receipts.earlier(sound.url, sound.modified) {
            Some(earlier) if is_other(&earlier) => {
                let what = format!(
                    "its bytes are not those that were verified at {}",
                    earlier.verified
                );
                self.problem(sound.url.to_owned(), what);
                Ok(())
            }
            _ => Ok(receipts.add(Receipt {
                object: sound.url.to_owned(),
                stored_bytes: sound.stored_bytes,
                modified: sound.modified,
                digest,
                depth: sound.depth,
                files: sound.files,
                verified: Timestamp::now(),
            })?),
        }
    }

    fn report(self, outcome: Result<(), Error>) -> Verified {
        let without_trailer = std::mem::take(&mut *lock(&self.without_trailer));
        if let Some(first) = without_trailer.first() {
            self.note(format!(
                "{} WAL files are sound and do not end in a trailer, {first} among them: they were cut there, or other \
                 tools wrote them",
                without_trailer.len()
            ));
        }
        let problems = self.problems.into_inner();
        let problems = problems.unwrap_or_else(std::sync::PoisonError::into_inner);
        let notes = self.notes.into_inner();
        let report = VerifyReport {
            ok: problems.is_empty() && outcome.is_ok(),
            complete: outcome.is_ok(),
            problems,
            notes: notes.unwrap_or_else(std::sync::PoisonError::into_inner),
            backups: self.backups.into_inner(),
            objects: self.objects.into_inner(),
            objects_with_receipt: self.with_receipt.into_inner(),
            objects_unopened: self.unopened.into_inner(),
            files: self.files.into_inner(),
            pages: self.pages.into_inner(),
            segments: self.segments.into_inner(),
            segments_read: self.segments_read.into_inner(),
            bytes: self.bytes.into_inner(),
            seconds: self.begun.elapsed().as_secs_f64(),
        };
        Verified { report, outcome }
    }
}

/// Backups whose `backup.json` cannot be read or is not there, and those that stand on such.
fn damaged_entries(repository: &Repository, catalog: &Catalog, findings: &Findings) {
    for damaged in &catalog.damaged {
        if let Some(object) = damaged.error.object() {
            findings.problem(object.to_owned(), wrong_with(object, &damaged.error));
        }
    }
    for backup in catalog.backups() {
        if let Err(broken) = catalog.chain(&backup.id) {
            let object = repository.layout().backup_json(&broken.ancestor);
            let what = format!(
                "it {}, and backup {} cannot be restored without",
                broken.problem, backup.id
            );
            findings.problem(repository.url(&object), what);
        }
    }
    for id in &catalog.unfinished {
        findings.note(format!(
            "backup {id} has no backup.json: it runs, failed, or somebody deleted the entry"
        ));
    }
}

/// What an error says is wrong with `object`, without saying its name again.
fn wrong_with(object: &str, error: &dyn std::error::Error) -> String {
    let text = output::chain(error);
    let what = text
        .strip_prefix(&format!("{object} is damaged: "))
        .or_else(|| text.strip_prefix(&format!("{object} ")));
    what.unwrap_or(&text).to_owned()
}

/// An object that was read to its end.
struct Sound<'a> {
    url: &'a str,
    stored_bytes: u64,
    modified: Timestamp,
    depth: Depth,
    files: u64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Notes which objects below `folder` were sound once and are gone, and forgets them.
fn note_absent(findings: &Findings, options: &Options, folder: &str, present: &HashSet<String>) {
    let Some(receipts) = &options.receipts else {
        return;
    };
    let absent = receipts.forget_absent(folder, present);
    if let Some(first) = absent.first() {
        findings.note(format!(
            "{} objects that were verified before are not there any more, {first} among them",
            absent.len()
        ));
    }
}
