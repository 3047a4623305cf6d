//! The directory in which the open segment stands.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use walhalla_postgres::{SegmentName, SystemIdentifier};

use super::Error;
use crate::repository::layout::RunId;
use crate::wal;

/// The list of runs whose objects may be in the store.
const RUNS: &str = "runs";
/// Runs that are remembered; of older ones objects may stay.
const MOST_RUNS: usize = 1000;

/// A receiver's own directory. Of what a former one left there only the list of its runs is read: what they stored may be
/// taken away once it is archived otherwise.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    runs: Vec<(SegmentName, RunId)>,
    /// Held as long as the receiver lives.
    _lock: File,
}

impl Spool {
    /// The directory for a cluster and a slot, below `spool`; emptied.
    ///
    /// # Errors
    /// [`Error::SpoolInUse`], and that it cannot be written to.
    pub(super) fn open(
        spool: &Path,
        system_identifier: SystemIdentifier,
        slot: Option<&str>,
    ) -> Result<Self, Error> {
        let slot = slot.map_or_else(String::new, |slot| format!("-{slot}"));
        let folder = spool.join(format!("wal-receive-{system_identifier}{slot}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(wal::Error::local("create", folder)(error).into());
            }
            Ok(()) | Err(_) => {}
        }
        let lock = File::open(&folder).map_err(wal::Error::local("open", &folder))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::SpoolInUse(folder));
        }
        let text = fs::read_to_string(folder.join(RUNS)).unwrap_or_default();
        let spool = Self {
            runs: text.lines().filter_map(run).collect(),
            folder,
            _lock: lock,
        };
        spool.empty()?;
        Ok(spool)
    }

    fn empty(&self) -> Result<(), wal::Error> {
        let entries = fs::read_dir(&self.folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in entries.map_err(wal::Error::local("read", &self.folder))? {
            if entry.file_name() != RUNS {
                fs::remove_file(entry.path()).map_err(wal::Error::local("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Where a WAL file of this name is to stand.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The runs that stored something of a segment.
    pub(super) fn runs_of(&self, segment: SegmentName) -> Vec<RunId> {
        let of_segment = self.runs.iter().filter(|(of, _)| *of == segment);
        of_segment.map(|(_, run)| *run).collect()
    }

    /// The segments of which runs stored something.
    pub(super) fn segments(&self) -> Vec<SegmentName> {
        let mut segments: Vec<_> = self.runs.iter().map(|(segment, _)| *segment).collect();
        segments.sort_unstable();
        segments.dedup();
        segments
    }

    /// Notes that a run stores something of a segment.
    pub(super) fn add_run(&mut self, segment: SegmentName, run: RunId) {
        self.runs.push((segment, run));
        let more = self.runs.len().saturating_sub(MOST_RUNS);
        self.runs.drain(..more);
        self.write_runs();
    }

    /// Forgets the runs of a segment.
    pub(super) fn forget(&mut self, segment: SegmentName) {
        let before = self.runs.len();
        self.runs.retain(|(of, _)| *of != segment);
        if self.runs.len() < before {
            self.write_runs();
        }
    }

    /// Writes the list anew. When it is lost, objects stay in the store longer than they had to.
    fn write_runs(&self) {
        let lines = self.runs.iter();
        let lines: Vec<String> = lines
            .map(|(segment, run)| format!("{segment} {run}\n"))
            .collect();
        let (new, path) = (self.path("runs.new"), self.path(RUNS));
        let written = fs::write(&new, lines.concat()).and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            tracing::debug!("could not write {}: {error}", path.display());
        }
    }
}

fn run(line: &str) -> Option<(SegmentName, RunId)> {
    let (segment, run) = line.split_once(' ')?;
    Some((segment.parse().ok()?, run.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_has_one_user_and_keeps_the_list_of_runs_only() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Spool::open(dir.path(), SystemIdentifier(7), Some("s"));
        let segment: SegmentName = "000000010000000000000003".parse().unwrap();
        let run = RunId::random();
        let mut spool = open().unwrap();
        spool.add_run(segment, run);
        std::fs::write(spool.path("000000010000000000000003"), "left").unwrap();
        assert!(matches!(open(), Err(Error::SpoolInUse(_))));
        assert!(Spool::open(dir.path(), SystemIdentifier(7), None).is_ok());
        drop(spool);
        let mut spool = open().unwrap();
        assert!(!spool.path("000000010000000000000003").exists());
        assert_eq!(spool.runs_of(segment), [run]);
        assert_eq!(spool.segments(), [segment]);
        spool.forget(segment);
        drop(spool);
        assert!(open().unwrap().segments().is_empty());
    }
}
