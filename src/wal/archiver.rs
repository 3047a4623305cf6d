//! Pushing a WAL file into the archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use walhalla_providers::ErrorKind;

use super::pages::{Cluster, Extent, SegmentCheck};
use super::reader::Record;
use super::summary::{Summarizer, Summary, stored};
use super::{Error, Mismatch, record};
use crate::output;
use crate::pipeline::{self, Encryption, Pipeline, StoredObject, streams};
use crate::postgres::{ControlFile, Lsn, SegmentName, WalFileName};
use crate::repository::{Repository, layout::Object};

/// How long a summary's upload is tried: it can be made later, and the server waits for the push.
const SUMMARY_DEADLINE: Duration = Duration::from_secs(10);

/// A segment's summary, or the record for whose sake there is none.
type Summarized = Result<Summary, (Lsn, record::Damage)>;

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The file is in the archive now.
    Stored(StoredObject),
    /// It was there before, with the same content.
    AlreadyThere,
}

/// One push: a file, its name and its cluster.
pub struct Archiver<'a> {
    /// Where it goes.
    pub repository: &'a Repository,
    /// Compresses and encrypts it.
    pub pipeline: &'a Pipeline,
    /// The cluster it must belong to.
    pub control: &'a ControlFile,
}

impl Archiver<'_> {
    /// Stores `path` as `file`. After `Ok` it is in the archive, durably.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a file that does not belong under its name; [`Error::OtherContent`]
    /// when the archive holds another. Nothing is stored then.
    pub fn push(&self, path: &Path, file: WalFileName) -> Result<Pushed, Error> {
        // A file archived under other settings has another key, which creating this one would not
        // notice; its own key is asked for too, for stores whose creates are not what they should be.
        if self.is_archived(path, file, None)? {
            self.make_up_for(path, file);
            return Ok(Pushed::AlreadyThere);
        }
        let pipeline = match file {
            WalFileName::Segment(_) | WalFileName::Partial(_) => self.pipeline.clone(),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => self.pipeline.framed(),
        };
        let object = self.repository.layout.wal(file, pipeline.packing());
        match self.store(path, file, &object, &pipeline) {
            Ok((stored, summary)) => {
                // Two servers with different settings create different objects, and neither create notices the other.
                // Of the two, one at least sees both now, and both do when they try again.
                self.is_archived(path, file, Some(&object))?;
                self.keep(summary, file);
                Ok(Pushed::Stored(stored))
            }
            Err(Error::Pipeline(pipeline::Error::Store(error)))
                if error.kind == ErrorKind::AlreadyExists =>
            {
                let pushed = self.same_content(path, file, &object)?;
                self.make_up_for(path, file);
                Ok(pushed)
            }
            Err(error) => Err(error),
        }
    }

    /// Stores the summary of a segment that was archived before, unless there is one: the push may have ended between the
    /// two.
    fn make_up_for(&self, path: &Path, file: WalFileName) {
        let WalFileName::Segment(segment) = file else {
            return;
        };
        let is_there = || {
            let listed = self.hasty().list_summaries(segment.timeline, Some(segment));
            listed.is_ok_and(|listed| listed.contains_key(&segment))
        };
        let read = || {
            let mut source = Source::open(path, file, self)?;
            let mut buffer = vec![0; pipeline::BLOCK_SIZE_BYTES];
            while source.read(&mut buffer)? > 0 {}
            Ok::<_, Error>(source.summary())
        };
        if !is_there()
            && let Ok(summary) = read()
        {
            self.keep(summary, file);
        }
    }

    fn store(
        &self,
        path: &Path,
        file: WalFileName,
        object: &Object,
        pipeline: &Pipeline,
    ) -> Result<(StoredObject, Option<Summarized>), Error> {
        let mut source = Source::open(path, file, self)?;
        // The header comes first, so the content is read once before.
        let content_sha256 = match object.packing.encryption {
            Encryption::None => None,
            Encryption::Age => Some(sha256(path)?),
        };
        let mut writer = pipeline.create_whole(&object.key, object.name(), content_sha256)?;
        loop {
            let room = writer.room().map_err(writing)?;
            let count = source.read(room)?;
            if count == 0 {
                let stored = writer.finish()?;
                let summary = source
                    .summary()
                    .map(|summary| summary.map(|summary| summary.of(&stored)));
                return Ok((stored, summary));
            }
            writer.fill(count);
        }
    }

    /// The repository, for what is not waited for long.
    fn hasty(&self) -> Repository {
        Repository {
            store: self.repository.store.within(SUMMARY_DEADLINE),
            ..self.repository.clone()
        }
    }

    /// Stores the summary of a segment that is archived; whatever hinders it, the segment stays archived.
    fn keep(&self, summary: Option<Summarized>, file: WalFileName) {
        let Some(summary) = summary else { return };
        let pipeline = self.pipeline.within(SUMMARY_DEADLINE);
        let reason = match summary {
            Err((lsn, damage)) => format!("the record at {lsn} cannot be understood: {damage}"),
            Ok(summary) => match stored::write(&self.hasty(), &pipeline, &summary) {
                Ok(_) => return,
                Err(error) => output::chain(&error),
            },
        };
        tracing::warn!(
            "{file} is archived, its summary is not: {reason}; `walhalla wal-summarize` makes up for it"
        );
    }

    /// Whether the archive holds the file in any form but the one that was just created.
    ///
    /// # Errors
    /// [`Error::OtherContent`] when one of the forms has other content.
    fn is_archived(
        &self,
        path: &Path,
        file: WalFileName,
        created: Option<&Object>,
    ) -> Result<bool, Error> {
        let mut is_there = false;
        for form in self.repository.wal_forms(file) {
            match form {
                Ok(archived) if created == Some(&archived.object) => {}
                Ok(archived) => {
                    self.same_content(path, file, &archived.object)?;
                    is_there = true;
                }
                // Whether a missing store may be made is for the store to say.
                Err(error) if error.kind == ErrorKind::StoreMissing => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(is_there)
    }

    fn same_content(
        &self,
        path: &Path,
        file: WalFileName,
        archived: &Object,
    ) -> Result<Pushed, Error> {
        if sha256(path)? == self.repository.content_sha256(archived)? {
            Ok(Pushed::AlreadyThere)
        } else {
            Err(Error::OtherContent {
                file,
                object: self.repository.url(&archived.key),
            })
        }
    }
}

fn sha256(path: &Path) -> Result<[u8; 32], Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    streams::sha256(&mut file).map_err(Error::local("read", path))
}

/// A WAL file, checked while it is read.
struct Source<'a> {
    file: File,
    path: &'a Path,
    name: WalFileName,
    check: Option<SegmentCheck>,
    summarizer: Option<Summarizer>,
    left_bytes: u64,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path, name: WalFileName, archiver: &Archiver) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::local("open", path))?;
        let size_bytes = file
            .metadata()
            .map_err(Error::local("look at", path))?
            .len();
        let segment =
            |name, extent| segment_check(path, name, size_bytes, extent, archiver).map(Some);
        let check = match name {
            WalFileName::Segment(segment_name) => segment(segment_name, Extent::Whole)?,
            WalFileName::Partial(segment_name) => segment(segment_name, Extent::Partial)?,
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                check_text(path, name)?;
                None
            }
        };
        let summarizer = match name {
            WalFileName::Segment(segment) => Some(Summarizer::new(segment)),
            _ => None,
        };
        Ok(Self {
            file,
            path,
            name,
            check,
            summarizer,
            left_bytes: size_bytes,
        })
    }

    /// The summary of a whole segment that was read to its end.
    fn summary(self) -> Option<Summarized> {
        let check = self.check?;
        Some(self.summarizer?.finish(&check))
    }

    /// Reads whole pages into `room` while there are any; 0 at the end.
    fn read(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        let wanted = room
            .len()
            .min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
        let room = room.get_mut(..wanted).unwrap_or_default();
        self.file
            .read_exact(room)
            .map_err(Error::local("read", self.path))?;
        self.left_bytes -= wanted as u64;
        if let Some(check) = &mut self.check {
            let (summarizer, version) = (&mut self.summarizer, check.cluster().version);
            let mut show = |record: &Record| {
                if let Some(summarizer) = summarizer {
                    summarizer.record(record, version);
                }
            };
            check
                .pages_showing(room, &mut show)
                .map_err(|mismatch| mismatch_at(self.path, self.name, mismatch))?;
        }
        Ok(wanted)
    }
}

fn segment_check(
    path: &Path,
    name: SegmentName,
    size_bytes: u64,
    extent: Extent,
    archiver: &Archiver,
) -> Result<SegmentCheck, Error> {
    let cluster = Cluster::from(archiver.control);
    let history = super::history_beside(archiver.repository, path, name.timeline)?;
    let file = match extent {
        Extent::Whole => WalFileName::Segment(name),
        Extent::Partial => WalFileName::Partial(name),
    };
    SegmentCheck::new(cluster, history, name, size_bytes, extent)
        .map(SegmentCheck::hashing)
        .map_err(|mismatch| mismatch_at(path, file, mismatch))
}

/// Checks that a history or backup history file reads as one.
fn check_text(path: &Path, name: WalFileName) -> Result<(), Error> {
    let text = std::fs::read(path).map_err(Error::local("read", path))?;
    if super::reads_as(name, &text) {
        Ok(())
    } else {
        Err(mismatch_at(path, name, Mismatch::Text))
    }
}

fn mismatch_at(path: &Path, file: WalFileName, mismatch: Mismatch) -> Error {
    Error::Mismatch {
        place: path.display().to_string(),
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
