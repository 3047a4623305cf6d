//! Pushing a WAL file into the archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use walhalla_postgres::control::ClusterSecret;
use walhalla_postgres::segment::MOST_PARTIALS;
use walhalla_postgres::summary::{Summarizer, Summary};
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::record;
use walhalla_postgres::wal::segment_reader::{Extent, KnownCluster, ReadSegment, SegmentReader};
use walhalla_postgres::{ControlFile, History, Lsn, SegmentName, TimelineId, WalFileName};
use walhalla_providers::ErrorKind;

use super::mirror::{Followed, Mirror};
use super::{Error, Mismatch};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::encryption::ContentDigest;
use crate::pipeline::{self, Content, Encryption, ObjectWriter, Pipeline, StoredObject, streams};
use crate::repository::{Repository, layout::Object};
use crate::wal::stored_summary;

/// How long a summary's upload is tried, and waited for once its segment is safe: it can be made later, and the server waits
/// for the push.
const SUMMARY_DEADLINE: Duration = Duration::from_secs(3);

/// What keys for digests are derived for (BLAKE3's context).
const DIGEST_PURPOSE: &str = "walhalla 2026-11-28 digests of WAL files in age headers";

/// A segment's summary, or the record for whose sake there is none.
type Summarized = Result<Summary, (Lsn, record::RecordNotUnderstood)>;

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The file is in the archive now.
    Stored {
        /// The object.
        object: StoredObject,
        /// BLAKE3 of the segment, if it is one.
        content_blake3: Option<[u8; 32]>,
    },
    /// It was there before, with the same content.
    AlreadyThere,
}

/// What is known of the cluster whose files are pushed.
#[derive(Clone)]
pub struct Origin {
    /// What all of its segments have in common.
    pub cluster: Cluster,
    /// The timeline that its server is on.
    pub timeline: TimelineId,
    /// What only its servers know, where it is known here.
    pub secret: Option<ClusterSecret>,
}

impl From<&ControlFile> for Origin {
    fn from(control: &ControlFile) -> Self {
        Self {
            cluster: control.into(),
            timeline: control.timeline,
            secret: control.secret.clone(),
        }
    }
}

/// One push: a file, its name and its cluster.
#[derive(Clone)]
pub struct Archiver<'a> {
    /// Where it goes.
    pub repository: &'a Repository,
    /// Compresses and encrypts it.
    pub pipeline: &'a Pipeline,
    /// The cluster it must belong to.
    pub origin: Origin,
    /// Whether the server is in recovery: it then receives WAL and writes none.
    pub in_recovery: bool,
    /// The second store, if there is one.
    pub mirror: Option<&'a Mirror>,
}

/// A summary on its way to the store beside the last questions that a push asks.
struct SummaryUpload {
    summary: Arc<Summarized>,
    /// Whether it was stored, `false` where there was one; or why not.
    outcome: mpsc::Receiver<Result<bool, String>>,
    /// What it goes through.
    pipeline: Pipeline,
}

/// A file that was just stored.
struct Stored {
    object: StoredObject,
    content_blake3: Option<[u8; 32]>,
    summary: Option<Summarized>,
}

/// How far a segment's file holds WAL.
struct Survey {
    /// After the last whole record, or the segment's end.
    valid_until: Lsn,
    /// Where no page of this segment follows any more.
    stopped_at: Option<Lsn>,
    /// Length of what is valid.
    valid_bytes: u64,
    /// Whether the segment is finished.
    is_whole: bool,
}

impl SummaryUpload {
    /// Waits for one without which the second store can do.
    fn end(&self) {
        if let Ok(Err(reason)) = self.wait() {
            tracing::debug!("the mirror lacks a summary: {reason}");
        }
    }

    /// What became of it, unless that takes too long. The time does not count in which summaries wait for their turn: where
    /// there is a rate, segments go first.
    fn wait(&self) -> Result<Result<bool, String>, RecvTimeoutError> {
        loop {
            match self.outcome.recv_timeout(SUMMARY_DEADLINE) {
                Err(RecvTimeoutError::Timeout) if self.pipeline.is_held_back() => {}
                outcome => return outcome,
            }
        }
    }
}

impl Archiver<'_> {
    /// Stores `path` as `file`. After `Ok` what is valid in it is in the archive, durably.
    ///
    /// A segment under its full name is only stored when it is whole. The unfinished last one of a timeline that was left
    /// is stored as a partial one.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a file that does not belong under its name; [`Error::OtherContent`]
    /// when the archive holds another. Nothing is stored then.
    pub fn push(&self, path: &Path, file: WalFileName) -> Result<Pushed, Error> {
        let segment = match file {
            WalFileName::Partial(name, _) => return self.push_partial(path, name),
            WalFileName::Segment(name) => name,
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                return self.push_named(path, file);
            }
        };
        match self.push_named(path, file) {
            Err(refusal @ (Error::Mismatch { .. } | Error::OtherContent { .. })) => {
                self.push_unfinished(path, segment, refusal)
            }
            outcome => outcome,
        }
    }

    /// The same for a segment for which the server's own call is still to come: it is stored if it is whole. What else is to
    /// be done with one that is not is left to that call.
    ///
    /// # Errors
    /// As [`Archiver::push`].
    pub fn push_ahead(&self, path: &Path, segment: SegmentName) -> Result<Pushed, Error> {
        self.push_named(path, WalFileName::Segment(segment))
    }

    fn push_named(&self, path: &Path, file: WalFileName) -> Result<Pushed, Error> {
        // A file archived under other settings has another key, which creating this one would not
        // notice; its own key is asked for too, for stores whose creates are not what they should be.
        if self.is_archived(path, file, None)? {
            self.store_missing_summary(path, file);
            self.mirror_all(file)?;
            return Ok(Pushed::AlreadyThere);
        }
        let pipeline = self.pipeline.urgent();
        let pipeline = match file {
            WalFileName::Segment(_) | WalFileName::Partial(..) => pipeline,
            WalFileName::History(_) | WalFileName::BackupHistory(..) => pipeline.framed(),
        };
        let object = self.repository.layout().wal(file, pipeline.packing());
        match self.store(path, file, &object, &pipeline) {
            Ok(Stored {
                object: stored,
                content_blake3,
                summary,
            }) => {
                let upload = summary.map(|summary| {
                    self.begin_summary(Arc::new(summary), self.hasty(), self.pipeline)
                });
                // Two servers with different settings create different objects, and neither create notices the other.
                // Of the two, one at least sees both now, and both do when they try again.
                if let Err(error) = self.is_archived(path, file, Some(&object)) {
                    self.take_back(&error, &object);
                    return Err(error);
                }
                let mirrored = self.mirror_stored(file, &object, upload.as_ref());
                if let Some(upload) = upload {
                    self.end_summary(&upload, file);
                }
                mirrored?;
                Ok(Pushed::Stored {
                    object: stored,
                    content_blake3,
                })
            }
            Err(Error::Pipeline(pipeline::Error::Store(error)))
                if error.kind == ErrorKind::AlreadyExists =>
            {
                let pushed = self.same_content(path, file, &object)?;
                self.store_missing_summary(path, file);
                self.mirror_all(file)?;
                Ok(pushed)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the second store what was just stored, and its summary.
    fn mirror_stored(
        &self,
        file: WalFileName,
        object: &Object,
        upload: Option<&SummaryUpload>,
    ) -> Result<(), Error> {
        let Some(mirror) = self.mirror else {
            return Ok(());
        };
        let followed = mirror.follow(self.repository, file, object)?;
        if let (Followed::Now, Some(upload)) = (followed, upload) {
            let second = mirror.second.within(SUMMARY_DEADLINE);
            let summary = Arc::clone(&upload.summary);
            self.begin_summary(summary, second, &mirror.pipeline).end();
        }
        Ok(())
    }

    /// Gives the second store what was in the first before.
    fn mirror_all(&self, file: WalFileName) -> Result<(), Error> {
        if let Some(mirror) = self.mirror {
            mirror.follow_all(self.repository, file)?;
        }
        Ok(())
    }

    /// Removes what was just created beside another server's, which may be acknowledged: whoever asks for the file would get
    /// the one or the other.
    fn take_back(&self, error: &Error, created: &Object) {
        if !matches!(error, Error::OtherContent { .. }) {
            return;
        }
        let keys = std::slice::from_ref(&created.key);
        if self.repository.remove(keys).is_err() {
            tracing::warn!(
                "{} was stored beside it and could not be removed: remove it",
                self.repository.url(&created.key)
            );
        }
    }

    /// Stores an unfinished segment under the first name that is free or holds all that is valid in it: several servers may
    /// have had it, one longer than the other.
    fn push_partial(&self, path: &Path, name: SegmentName) -> Result<Pushed, Error> {
        for number in 1..=MOST_PARTIALS {
            match self.push_named(path, WalFileName::Partial(name, number)) {
                // Without the identity it cannot be compared, and is kept beside the other.
                Err(Error::OtherContent { .. }) if number < MOST_PARTIALS => {}
                Err(error) if error.is_locked() && number < MOST_PARTIALS => {}
                outcome => {
                    if number > 1 && outcome.is_ok() {
                        let file = WalFileName::Partial(name, number);
                        tracing::info!(
                            "other servers archived less of the unfinished {name}: it is kept as {file}"
                        );
                    }
                    return outcome;
                }
            }
        }
        Err(mismatch_at(
            path,
            WalFileName::Partial(name, MOST_PARTIALS),
            Mismatch::Text,
        ))
    }

    /// A segment that was refused under its full name: the unfinished last one of a timeline that was left is safe when all
    /// that is valid in it is archived, under whatever name.
    fn push_unfinished(
        &self,
        path: &Path,
        name: SegmentName,
        refusal: Error,
    ) -> Result<Pushed, Error> {
        let Ok(survey) = self.survey(path, name) else {
            return Err(refusal);
        };
        if survey.is_whole || !self.was_left(path, name, &survey)? {
            return Err(refusal);
        }
        if self.has_form_with(path, name, survey.valid_bytes)? {
            self.mirror_all(WalFileName::Segment(name))?;
            return Ok(Pushed::AlreadyThere);
        }
        let pushed = self.push_partial(path, name)?;
        tracing::info!(
            "{name} is unfinished, its WAL ends at {}; its timeline was left there, and it is archived as a partial segment",
            survey.valid_until
        );
        Ok(pushed)
    }

    /// Whether the first `bytes` of a segment's file are archived under its full name, in one form at least.
    fn has_form_with(&self, path: &Path, name: SegmentName, bytes: u64) -> Result<bool, Error> {
        match self.has_begin(path, name, bytes) {
            Err(Error::OtherContent { .. }) => Ok(false),
            has_begin => has_begin,
        }
    }

    /// Whether the archived segment begins with the first `bytes` of a file; `false` where nothing is archived that can be
    /// read here.
    ///
    /// # Errors
    /// [`Error::OtherContent`] where what is archived begins otherwise.
    pub fn has_begin(&self, path: &Path, name: SegmentName, bytes: u64) -> Result<bool, Error> {
        let file = WalFileName::Segment(name);
        let mut other = None;
        for form in self.repository.wal_forms(file)? {
            let object = form.object();
            let mut content = match self.repository.open(&object) {
                Err(error) if error.is_locked() => continue,
                content => content?,
            };
            if self.begins_alike(path, file, &object, &mut content, bytes)? {
                self.settle(&object)?;
                return Ok(true);
            }
            other = Some(object);
        }
        match other {
            Some(object) => Err(Error::OtherContent {
                file,
                object: self.repository.url(&object.key),
            }),
            None => Ok(false),
        }
    }

    /// Whether a segment that is not whole is the last one of a timeline that was left: by the server itself, which
    /// is on a later one that left it in this segment or before, or never was on it; or, for a server in recovery, by the one that it follows, at exactly
    /// the place where the segment's WAL ends. Anything else is a segment that was cut.
    fn was_left(&self, path: &Path, name: SegmentName, survey: &Survey) -> Result<bool, Error> {
        let size = self.origin.cluster.segment_size;
        let Some(number) = name.number(size) else {
            return Ok(false);
        };
        let own = self.origin.timeline;
        if own > name.timeline {
            let history = super::history_beside(self.repository, path, own)?;
            let left = history.switch_from(name.timeline);
            return Ok(!history.ancestors.is_empty()
                && left.is_none_or(|left| left < number.next().start(size)));
        }
        if !self.in_recovery {
            return Ok(false);
        }
        let is_left_here = |history: &History| {
            let mut left = history.ancestors.iter();
            left.any(|left| {
                let at = left.switch_lsn;
                left.timeline == name.timeline
                    && (at == survey.valid_until || Some(at) == survey.stopped_at)
            })
        };
        if super::histories_beside(path)?.iter().any(is_left_here) {
            return Ok(true);
        }
        for timeline in self.repository.timelines()? {
            if timeline > name.timeline
                && let Some(history) = self.repository.history(timeline)?
                && is_left_here(&history)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How far a segment's file holds WAL.
    fn survey(&self, path: &Path, name: SegmentName) -> Result<Survey, Error> {
        let source = Source::open(path, WalFileName::Partial(name, 1), self)?;
        let (read, _) = source
            .read_to_end()?
            .ok_or_else(|| mismatch_at(path, WalFileName::Segment(name), Mismatch::Text))?;
        let size = self.origin.cluster.segment_size;
        let begin = name
            .number(size)
            .map_or(Lsn::ZERO, |number| number.start(size));
        let valid_until = read.valid_until();
        Ok(Survey {
            valid_until,
            stopped_at: read.stopped_at(),
            valid_bytes: valid_until.0.saturating_sub(begin.0),
            is_whole: read.unfinished().is_none(),
        })
    }

    /// Stores the summary of a segment that was archived before, unless there is one: the push may have ended between the
    /// two.
    fn store_missing_summary(&self, path: &Path, file: WalFileName) {
        let WalFileName::Segment(segment) = file else {
            return;
        };
        let is_there = || self.hasty().has_summary(segment).unwrap_or(false);
        let read = || Source::open(path, file, self)?.read_to_end();
        if !is_there()
            && let Ok(Some(read)) = read()
            && let Some(summary) = summary_of(read)
        {
            self.store_summary(&summary, file);
        }
    }

    fn store(
        &self,
        path: &Path,
        file: WalFileName,
        object: &Object,
        pipeline: &Pipeline,
    ) -> Result<Stored, Error> {
        let source = Source::open(path, file, self)?;
        // The header comes first, so the content is read once before.
        let digest = match (object.packing.encryption, self.key()) {
            (Encryption::Age, Some(key)) => Some(keyed_digest(path, &key)?),
            (Encryption::None, _) | (Encryption::Age, None) => None,
        };
        let mut writer = pipeline.create_whole(&object.key, object.name(), digest)?;
        let read = match source.write_to(&mut writer) {
            Ok(read) => read,
            Err(error) => {
                writer.discard();
                return Err(error);
            }
        };
        let object = writer.finish()?;
        let content_blake3 = read.as_ref().and_then(|(read, _)| read.blake3());
        let summary = read
            .and_then(summary_of)
            .map(|summary| summary.map(|summary| stored_summary::of_stored(summary, &object)));
        Ok(Stored {
            object,
            content_blake3,
            summary,
        })
    }

    /// The key of the digests by which the cluster's servers know what they pushed without reading it.
    fn key(&self) -> Option<[u8; 32]> {
        let secret = self.origin.secret.as_ref()?;
        Some(secret.key(DIGEST_PURPOSE, self.origin.cluster.system_identifier))
    }

    /// The repository, for what is not waited for long.
    fn hasty(&self) -> Repository {
        self.repository.within(SUMMARY_DEADLINE)
    }

    /// Begins to store the summary of a segment that is archived in `repository`, on a thread of its own.
    fn begin_summary(
        &self,
        summary: Arc<Summarized>,
        repository: Repository,
        pipeline: &Pipeline,
    ) -> SummaryUpload {
        let (outcome, receiver) = mpsc::channel();
        let key = self.key();
        let pipeline = pipeline.within(SUMMARY_DEADLINE).for_derived();
        let own_pipeline = pipeline.clone();
        let upload = Arc::clone(&summary);
        std::thread::spawn(move || {
            let stored = match &*upload {
                Ok(summary) => {
                    stored_summary::write_new(&repository, &pipeline, summary, key.as_ref())
                        .map(|stored| stored.is_some())
                        .map_err(|error| output::chain(&error))
                }
                Err((lsn, damage)) => Err(not_understood(*lsn, *damage)),
            };
            // Nobody waits for it any more.
            drop(outcome.send(stored));
        });
        SummaryUpload {
            summary,
            outcome: receiver,
            pipeline: own_pipeline,
        }
    }

    /// Waits for a summary's upload, not for long: the server waits. Whatever hinders it, the segment stays archived.
    fn end_summary(&self, upload: &SummaryUpload, file: WalFileName) {
        let reason = match upload.wait() {
            Ok(Ok(true)) => return,
            // There is one, which may be another segment's of that name.
            Ok(Ok(false)) => return self.store_summary(&upload.summary, file),
            Ok(Err(reason)) => reason,
            Err(_) => format!(
                "storing it takes longer than {} s",
                SUMMARY_DEADLINE.as_secs()
            ),
        };
        warn_of_missing(file, &reason);
    }

    /// Stores the summary of a segment that is archived; whatever hinders it, the segment stays archived.
    fn store_summary(&self, summary: &Summarized, file: WalFileName) {
        let pipeline = self.pipeline.within(SUMMARY_DEADLINE).for_derived();
        let reason = match summary {
            Err((lsn, damage)) => not_understood(*lsn, *damage),
            Ok(summary) => {
                match stored_summary::write(&self.hasty(), &pipeline, summary, self.key().as_ref())
                {
                    Ok(_) => return,
                    Err(error) => output::chain(&error),
                }
            }
        };
        warn_of_missing(file, &reason);
    }

    /// Whether the archive holds the file in any form but the one that was just created.
    ///
    /// # Errors
    /// [`Error::OtherContent`] when one of the forms has other content.
    pub fn is_archived(
        &self,
        path: &Path,
        file: WalFileName,
        created: Option<&Object>,
    ) -> Result<bool, Error> {
        let forms = match self.repository.wal_forms(file) {
            // Whether a missing store may be made is for the store to say.
            Err(error) if error.kind == ErrorKind::StoreMissing => Vec::new(),
            forms => forms?,
        };
        let others = forms.iter().filter(|form| created != Some(&form.object()));
        let mut is_there = false;
        for form in others {
            self.same_content(path, file, &form.object())?;
            is_there = true;
        }
        Ok(is_there)
    }

    /// That the archive holds all that is valid in a file. What stands behind a segment's last record is nobody's WAL:
    /// zeros on one server, and what was recycled on another.
    fn same_content(
        &self,
        path: &Path,
        file: WalFileName,
        archived: &Object,
    ) -> Result<Pushed, Error> {
        let is_same = match self.repository.urgent().open(archived) {
            Ok(mut content) => match file {
                WalFileName::Segment(name) | WalFileName::Partial(name, _) => {
                    let is_partial = matches!(file, WalFileName::Partial(..));
                    let survey = self.survey(path, name).ok();
                    // Of a segment that was refused as cut nothing is known; its timeline may have been left, though.
                    let survey = survey.filter(|survey| is_partial || survey.is_whole);
                    let whole_bytes = self.origin.cluster.segment_size.bytes();
                    let valid_bytes = survey.map_or(whole_bytes, |survey| survey.valid_bytes);
                    self.begins_alike(path, file, archived, &mut content, valid_bytes)?
                }
                WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                    let known = streams::sha256(&mut content);
                    let known =
                        known.map_err(|source| self.repository.damaged(&archived.key, source))?;
                    sha256(path)? == known
                }
            },
            Err(locked) if locked.is_locked() => {
                match (self.repository.named_digest(archived)?, self.key()) {
                    (Some(ContentDigest::Keyed(known)), Some(key)) => {
                        known == keyed_digest(path, &key)?
                    }
                    (Some(ContentDigest::Sha256(known)), _) => known == sha256(path)?,
                    (Some(ContentDigest::Keyed(_)), None) | (None, _) => return Err(locked.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        if is_same {
            self.settle(archived)?;
            return Ok(Pushed::AlreadyThere);
        }
        Err(Error::OtherContent {
            file,
            object: self.repository.url(&archived.key),
        })
    }

    /// Whoever is told that a file is archived removes it: another push may have died just before what it stored was durable.
    fn settle(&self, archived: &Object) -> Result<(), Error> {
        Ok(self.repository.session().settle(&archived.key)?)
    }

    /// Whether the first `valid_bytes` of a segment's file and of what is archived are the same.
    ///
    /// # Errors
    /// [`Error::OtherSegmentSize`] where the archived one has another length.
    fn begins_alike(
        &self,
        path: &Path,
        file: WalFileName,
        archived: &Object,
        content: &mut Content,
        valid_bytes: u64,
    ) -> Result<bool, Error> {
        let mut own = File::open(path).map_err(Error::local("open", path))?;
        let (mut ours, mut theirs) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
        let mut left = valid_bytes;
        let mut is_begin = true;
        while left > 0 {
            let ours =
                streams::read_full(&mut own, &mut ours).map_err(Error::local("read", path))?;
            let theirs = streams::read_full(content, &mut theirs)
                .map_err(|source| self.repository.damaged(&archived.key, source))?;
            if std::mem::take(&mut is_begin) {
                self.must_have_the_size(file, archived, theirs)?;
            }
            let now = ours.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if now == 0 || ours.get(..now) != theirs.get(..now) {
                return Ok(false);
            }
            left -= now as u64;
        }
        Ok(true)
    }

    /// That an archived segment was made by a cluster with segments of this length.
    fn must_have_the_size(
        &self,
        file: WalFileName,
        archived: &Object,
        begin: &[u8],
    ) -> Result<(), Error> {
        let own = self.origin.cluster;
        match Cluster::of_first_page(begin, own.system_identifier) {
            Some(other) if other.segment_size != own.segment_size => Err(Error::OtherSegmentSize {
                file,
                object: self.repository.url(&archived.key),
                archived: other.segment_size,
                now: own.segment_size,
            }),
            _ => Ok(()),
        }
    }
}

fn not_understood(lsn: Lsn, damage: record::RecordNotUnderstood) -> String {
    format!("the record at {lsn} cannot be understood: {damage}")
}

fn warn_of_missing(file: WalFileName, reason: &str) {
    tracing::warn!(
        "{file} is archived, its summary is not: {reason}; `walhalla wal-summarize` makes up for it"
    );
}

/// Bytes that are compared at a time.
const COMPARED_BYTES: usize = 1 << 18;
/// Bytes of a file that are read at a time: few enough to be in the core's cache while they are checked and hashed.
const READ_BYTES: usize = 1 << 17;

fn sha256(path: &Path) -> Result<[u8; 32], Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    streams::sha256(&mut file).map_err(Error::local("read", path))
}

fn keyed_digest(path: &Path, key: &[u8; 32]) -> Result<[u8; 32], Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    streams::keyed_digest(&mut file, key).map_err(Error::local("read", path))
}

/// A WAL file, checked while it is read.
struct Source<'a> {
    file: File,
    path: &'a Path,
    name: WalFileName,
    /// Of a segment.
    reader: Option<SegmentReader>,
    /// Of a whole segment.
    summarizer: Option<Summarizer>,
    left_bytes: u64,
}

/// A segment that was read to its end, and what makes its summary if it is a whole one.
type ReadWithSummarizer = (ReadSegment, Option<Summarizer>);

impl<'a> Source<'a> {
    fn open(path: &'a Path, name: WalFileName, archiver: &Archiver) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::local("open", path))?;
        let size_bytes = file
            .metadata()
            .map_err(Error::local("look at", path))?
            .len();
        let (reader, summarizer) = match name {
            WalFileName::Segment(segment) => {
                let reader = segment_reader(path, segment, size_bytes, Extent::Whole, archiver)?;
                (Some(reader), Some(Summarizer::new(segment)))
            }
            WalFileName::Partial(segment, _) => {
                let reader = segment_reader(path, segment, size_bytes, Extent::Partial, archiver)?;
                (Some(reader), None)
            }
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                check_text(path, name)?;
                (None, None)
            }
        };
        Ok(Self {
            file,
            path,
            name,
            reader,
            summarizer,
            left_bytes: size_bytes,
        })
    }

    /// Reads on into the begin of `room` and checks what is read; 0 at the end.
    fn read(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        let wanted = room
            .len()
            .min(READ_BYTES)
            .min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
        let room = room.get_mut(..wanted).unwrap_or_default();
        self.file
            .read_exact(room)
            .map_err(Error::local("read", self.path))?;
        self.left_bytes -= wanted as u64;
        if let Some(reader) = &mut self.reader {
            let summarizer = &mut self.summarizer;
            let fed = reader.feed(room, |cluster, record| {
                if let Some(summarizer) = summarizer {
                    summarizer.record(record, cluster.version);
                }
            });
            fed.map_err(|mismatch| mismatch_at(self.path, self.name, mismatch))?;
        }
        Ok(wanted)
    }

    /// Reads all of it into an object. A whole segment's file that holds none is refused.
    fn write_to(mut self, writer: &mut ObjectWriter) -> Result<Option<ReadWithSummarizer>, Error> {
        loop {
            let room = writer.room().map_err(writing)?;
            let count = self.read(room)?;
            if count == 0 {
                return self.finish();
            }
            writer.fill(count);
        }
    }

    /// Reads all of it; `None` for what is no segment.
    fn read_to_end(mut self) -> Result<Option<ReadWithSummarizer>, Error> {
        let mut buffer = vec![0; READ_BYTES];
        while self.read(&mut buffer)? > 0 {}
        self.ended()
    }

    /// What was read to its end; a whole segment's file that holds none is refused.
    fn finish(self) -> Result<Option<ReadWithSummarizer>, Error> {
        let (path, name) = (self.path, self.name);
        let is_segment = matches!(name, WalFileName::Segment(_));
        let read = self.ended()?;
        let unfinished = read.as_ref().and_then(|(read, _)| read.unfinished());
        match unfinished.filter(|_| is_segment) {
            Some(mismatch) => Err(mismatch_at(path, name, mismatch)),
            None => Ok(read),
        }
    }

    fn ended(self) -> Result<Option<ReadWithSummarizer>, Error> {
        let Some(reader) = self.reader else {
            return Ok(None);
        };
        let read = reader
            .finish()
            .map_err(|mismatch| mismatch_at(self.path, self.name, mismatch))?;
        Ok(Some((read, self.summarizer)))
    }
}

/// The summary of a whole segment.
fn summary_of((read, summarizer): ReadWithSummarizer) -> Option<Summarized> {
    Some(summarizer?.finish(&read))
}

fn segment_reader(
    path: &Path,
    name: SegmentName,
    size_bytes: u64,
    extent: Extent,
    archiver: &Archiver,
) -> Result<SegmentReader, Error> {
    let cluster = archiver.origin.cluster;
    let history = super::history_beside(archiver.repository, path, name.timeline)?;
    let file = match extent {
        Extent::Whole => WalFileName::Segment(name),
        Extent::Partial => WalFileName::Partial(name, 1),
    };
    SegmentReader::begin(KnownCluster::Whole(cluster), &history, name, extent, None)
        .and_then(|reader| cluster.must_have_length(size_bytes).map(|()| reader))
        .map(SegmentReader::hashing)
        .map_err(|mismatch| mismatch_at(path, file, mismatch))
}

/// Checks that a history or backup history file reads as one.
fn check_text(path: &Path, name: WalFileName) -> Result<(), Error> {
    let text = std::fs::read(path).map_err(Error::local("read", path))?;
    if walhalla_postgres::wal::reads_as(name, &text) {
        Ok(())
    } else {
        Err(mismatch_at(path, name, Mismatch::Text))
    }
}

fn mismatch_at(path: &Path, file: WalFileName, mismatch: Mismatch) -> Error {
    Error::Mismatch {
        path: path.to_owned(),
        file,
        mismatch,
    }
}

/// The pipeline's error, which came through [`io::Write`].
fn writing(error: io::Error) -> Error {
    match error.downcast::<pipeline::Error>() {
        Ok(error) => Error::Pipeline(error),
        Err(source) => Error::Local {
            doing: "write",
            path: "the pipeline".into(),
            source,
        },
    }
}
