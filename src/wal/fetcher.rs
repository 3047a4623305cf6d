//! Fetching a WAL file from the archive.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as ErrorKindIo, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::segment_reader::ReadSegment;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, TimelineId, WalFileName};

use super::segment::ArchivedSegment;
use super::{Error, Mismatch, history_beside, tail};
use crate::durability::Durability;
use crate::failure::{Class, Failure as _};
use crate::pipeline::Packing;
use crate::repository::tails::TailFile;
use crate::repository::{Absence, ArchivedFile, LaterWal, ObjectError, Repository};

/// The names under which a server in recovery asks for files. It waits for the answer, and makes durable what it keeps when it
/// gives it its own name (xlogarchive.c, `KeepFileRestoredFromArchive`).
const MADE_DURABLE_BY_THE_SERVER: [&str; 2] = ["RECOVERYXLOG", "RECOVERYHISTORY"];
/// Permissions of new files: PostgreSQL's own, as WAL is not for everyone to read. A server whose group may not read it,
/// either, has an umask that takes that right away (file_perm.c, `pg_mode_mask`).
const PRIVATE: u32 = 0o640;

/// Where files come from and what they must look like.
#[derive(Clone, Debug)]
pub struct Fetcher<'a> {
    /// The archive.
    pub repository: &'a Repository,
    /// The cluster whose control file says what a segment must look like; without one, the
    /// segment's own first page does.
    pub cluster: Option<Cluster>,
    /// Whether the server takes an absent or unfinished segment for the end of the archive, and promotes there.
    pub ends_recovery: bool,
}

impl Fetcher<'_> {
    /// Puts `file` at `path`. After `Ok` it is whole, checked and durable; before, `path` does not change.
    ///
    /// # Errors
    /// [`Error::NotArchived`] only when the store proved that the file is in none of its forms there.
    /// [`Error::Hole`] where that is not the end of the archive.
    pub fn fetch(&self, file: WalFileName, mut target: NewFile) -> Result<(), Error> {
        let path = target.path.clone();
        let path = path.as_path();
        let archived = self.find(file, path)??;
        let history = match file {
            WalFileName::Segment(name) | WalFileName::Partial(name, _) => {
                history_beside(self.repository, path, name.timeline)?
            }
            WalFileName::History(timeline)
            | WalFileName::BackupHistory(SegmentName { timeline, .. }, _) => {
                History::root(timeline)
            }
        };
        self.fetch_twice(file, &archived, &history, None, &mut target)?;
        target.finish()
    }

    /// Where a file is, or what to say of one that is in no form in the archive.
    fn find(&self, file: WalFileName, path: &Path) -> Result<Result<ArchivedFile, Error>, Error> {
        let WalFileName::Segment(name) = file else {
            return match self.repository.find_wal(file)? {
                Some(archived) => Ok(Ok(archived)),
                None => Ok(Err(self.absent(file, None, path)?)),
            };
        };
        let found = match self.before(name) {
            Some(before) if self.ends_recovery => self.repository.segment_or_later(name, before)?,
            _ => self.repository.segment_or_tail(name)?,
        };
        let Absence { later, tail } = match found {
            Ok(archived) => return Ok(Ok(archived)),
            Err(absence) => absence,
        };
        match self.absent(file, later, path)? {
            absent @ Error::NotArchived { .. } => Ok(self.tail(name, tail, path)?.ok_or(absent)),
            absent => Ok(Err(absent)),
        }
    }

    /// A segment that is not archived, as far as it was received, where the archive of its timeline ends before it.
    ///
    /// # Errors
    /// [`Error::Hole`] in archive recovery where another timeline left it: whether it is wanted to its end cannot be told here.
    fn tail(
        &self,
        name: SegmentName,
        files: Vec<TailFile>,
        path: &Path,
    ) -> Result<Option<ArchivedFile>, Error> {
        if files.is_empty() {
            return Ok(None);
        }
        let (Some(cluster), Some(before)) = (self.cluster, self.before(name)) else {
            return Ok(None);
        };
        let history = history_beside(self.repository, path, name.timeline)?;
        let tail = tail::for_server(self.repository, cluster, &history, name, files, path)?;
        let Some(tail) = tail else { return Ok(None) };
        let begin = name.number(cluster.segment_size);
        let end = begin.map_or(Lsn::ZERO, |number| {
            number.next().start(cluster.segment_size)
        });
        match self.repository.later_wal(name, before)? {
            LaterWal::Segment(_) => Ok(None),
            LaterWal::Timelines if self.was_left_before(name.timeline, end)? => {
                if !self.ends_recovery {
                    return Ok(None);
                }
                Err(Error::Hole {
                    file: WalFileName::Segment(name),
                    archive: self.repository.url(&tail.object().key),
                    later: "its begin was stored by wal-receive, and another timeline left it"
                        .to_owned(),
                })
            }
            LaterWal::Timelines | LaterWal::Nothing | LaterWal::NothingKnown => Ok(Some(tail)),
        }
    }

    /// Whether a later timeline left `timeline` before `end`.
    fn was_left_before(&self, timeline: TimelineId, end: Lsn) -> Result<bool, Error> {
        for later in self.repository.timelines()? {
            if later > timeline
                && let Some(history) = self.repository.history(later)?
                && history
                    .switch_from(timeline)
                    .is_some_and(|switch| switch < end)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The segment before `name` on its timeline, where it is known how long segments are.
    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        let size = self.cluster?.segment_size;
        let number = name.number(size)?;
        Some(SegmentNo(number.0.saturating_sub(1)).on(name.timeline, size))
    }

    /// What to say of a file that is in no form in the archive; of a segment, with what is archived after it.
    fn absent(
        &self,
        file: WalFileName,
        later: Option<LaterWal>,
        path: &Path,
    ) -> Result<Error, Error> {
        let object = self.repository.layout().wal(file, Packing::NONE);
        let archive = self.repository.url(&object.key);
        if !self.ends_recovery {
            return Ok(Error::NotArchived { file, archive });
        }
        let later = match file {
            WalFileName::Segment(name) => {
                if let Some(later) = later {
                    self.what_is_later(name, later, path)?
                } else {
                    self.repository.must_be_known()?;
                    None
                }
            }
            WalFileName::History(timeline) => {
                self.repository.must_be_known()?;
                self.what_is_of(timeline)?
            }
            WalFileName::Partial(..) | WalFileName::BackupHistory(..) => {
                // Of an absent file recovery makes the end of the archive, and of a store with nothing in
                // it, perhaps one that is not mounted, the end of the cluster.
                self.repository.must_be_known()?;
                None
            }
        };
        // Asked last: each question shows whether the first of two stores answers.
        if let Some(store) = self.repository.session().left_out() {
            let store = store.to_owned();
            return Err(Error::NotKnown { file, store });
        }
        Ok(match later {
            Some(later) => Error::Hole {
                file,
                archive,
                later: self.with_ledger(file, later),
            },
            None => Error::NotArchived { file, archive },
        })
    }

    /// What is `later` than a missing file, and what the ledger of gaps says of the file itself.
    fn with_ledger(&self, file: WalFileName, later: String) -> String {
        let WalFileName::Segment(name) = file else {
            return later;
        };
        match self.repository.why_missing(name) {
            Ok(Some(gap)) => format!("{later}; {gap}"),
            Ok(None) => later,
            Err(error) => {
                tracing::debug!("the ledger of gaps cannot be read: {error}");
                later
            }
        }
    }

    /// What shows that the archive does not end with the segment before `name`, if anything does: a later segment of its
    /// timeline, or a timeline that left it later.
    ///
    /// A segment from before its timeline began is no hole: a server asks for each segment on the newest timeline first.
    fn what_is_later(
        &self,
        name: SegmentName,
        later: LaterWal,
        path: &Path,
    ) -> Result<Option<String>, Error> {
        let size = self.cluster.map(|cluster| cluster.segment_size);
        let Some((size, number)) = size.and_then(|size| Some((size, name.number(size)?))) else {
            return Ok(None);
        };
        if later == LaterWal::NothingKnown {
            self.repository.must_be_known()?;
            if self.repository.has_lost_all_wal(name.timeline)? {
                let timeline = name.timeline.number();
                return Ok(Some(format!(
                    "there are backups of timeline {timeline}, and none of its WAL: see whether all of the store is there"
                )));
            }
        }
        match later {
            LaterWal::Segment(segment) => {
                let history = history_beside(self.repository, path, name.timeline)?;
                let begins_later = history
                    .spans()
                    .next_back()
                    .is_some_and(|(_, begin, _)| number < size.segment_of(begin));
                Ok((!begins_later).then(|| format!("{segment} is there")))
            }
            LaterWal::Timelines => self.left_later(name, number.next().start(size)),
            LaterWal::Nothing | LaterWal::NothingKnown => Ok(None),
        }
    }

    /// What shows that there is a timeline whose history is not archived: recovery would take it for one that nobody began,
    /// end before it, and give its number to another.
    fn what_is_of(&self, timeline: TimelineId) -> Result<Option<String>, Error> {
        let timelines = self.repository.timelines()?;
        if timelines.contains(&timeline) {
            return Ok(Some(format!(
                "WAL of timeline {} is there",
                timeline.number()
            )));
        }
        for later in timelines.into_iter().filter(|later| *later > timeline) {
            let history = self.repository.history(later)?;
            let mut ancestors = history.iter().flat_map(|history| &history.ancestors);
            if ancestors.any(|ancestor| ancestor.timeline == timeline) {
                return Ok(Some(format!("timeline {} comes from it", later.number())));
            }
        }
        Ok(None)
    }

    /// A timeline that left that of `name` at or after `end`, and so shows that the segment was filled.
    fn left_later(&self, name: SegmentName, end: Lsn) -> Result<Option<String>, Error> {
        for timeline in self.repository.timelines()? {
            if timeline <= name.timeline {
                continue;
            }
            let Some(history) = self.repository.history(timeline)? else {
                return Ok(Some(format!(
                    "WAL of timeline {} is there, and no history that tells where it began",
                    timeline.number()
                )));
            };
            let mut left = history.ancestors.iter();
            let left = left.find(|left| left.timeline == name.timeline && left.switch_lsn >= end);
            if let Some(left) = left {
                return Ok(Some(format!(
                    "timeline {timeline} left {} later, at {}",
                    name.timeline, left.switch_lsn
                )));
            }
        }
        Ok(None)
    }

    /// As [`Fetcher::fetch`], for a file that was found and whose timeline's history is known. A segment is checked as
    /// the one after `last`, so that a record that runs from one into the other is whole; returns its own check.
    ///
    /// One that arrives damaged is fetched once more: recovery stops at a damaged file, and a bit
    /// may have turned on the way.
    pub fn fetch_archived(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
        last: Option<ReadSegment>,
        mut target: NewFile,
    ) -> Result<Option<ReadSegment>, Error> {
        let check = self.fetch_twice(file, archived, history, last, &mut target)?;
        target.finish()?;
        Ok(check)
    }

    fn fetch_twice(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
        last: Option<ReadSegment>,
        target: &mut NewFile,
    ) -> Result<Option<ReadSegment>, Error> {
        match self.fetch_once(file, archived, history, last.clone(), target) {
            // The way can change bytes. It does not hide an object, and seldom changes the few of a header.
            Err(error) if error.class() == Class::Damaged => {
                tracing::warn!("{error}; it is fetched once more");
                target.restart()?;
                self.fetch_once(file, archived, history, last, target)
            }
            outcome => outcome,
        }
    }

    fn fetch_once(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
        last: Option<ReadSegment>,
        target: &mut NewFile,
    ) -> Result<Option<ReadSegment>, Error> {
        let name = match file {
            WalFileName::Segment(name) | WalFileName::Partial(name, _) => name,
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                return self.fetch_text(file, archived, target).map(|()| None);
            }
        };
        let segment = ArchivedSegment {
            repository: self.repository,
            archived,
            name,
            file,
            history,
            cluster: self.cluster,
        };
        let mut content = self.repository.urgent().open_archived(archived)?;
        let reader = segment.reader(last)?;
        let keep = |checked: &[u8]| target.write(checked);
        let read = segment.feed(reader, &mut content, |_, _| {}, keep)?;
        match self.ends_too_early(file, &read, &target.path)? {
            Some(unfinished) => Err(segment.mismatch(unfinished)),
            None => Ok(Some(read)),
        }
    }

    /// What is wrong with an archived segment that is not whole although the archive goes on after it: recovery would end
    /// in it.
    fn ends_too_early(
        &self,
        file: WalFileName,
        read: &ReadSegment,
        path: &Path,
    ) -> Result<Option<Mismatch>, Error> {
        let unfinished = read.unfinished().filter(|_| self.ends_recovery);
        let (Some(unfinished), WalFileName::Segment(name)) = (unfinished, file) else {
            return Ok(None);
        };
        let Some(before) = self.before(name) else {
            self.repository.must_be_known()?;
            return Ok(None);
        };
        let later = self.repository.later_wal(name, before)?;
        let later = self.what_is_later(name, later, path)?;
        Ok(later.map(|_| unfinished))
    }

    /// Reads a history or backup history file, which is handed over only when it reads as one.
    fn fetch_text(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        target: &mut NewFile,
    ) -> Result<(), Error> {
        let text = self.repository.urgent().read_text(&archived.object())?;
        if !walhalla_postgres::wal::reads_as(file, &text) {
            return Err(ObjectError::WalMismatch {
                object: self.repository.url(&archived.object().key),
                file,
                mismatch: Mismatch::Text,
            }
            .into());
        }
        target.write(&text)
    }
}

/// A file that appears under its name whole, or not at all; durably, but where the server sees to that.
///
/// Of two processes that make the same file the newer one wins: it takes away the other's temporary file, so that one
/// which was left behind cannot put its own in the place of what was acknowledged since.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    durability: Durability,
    finished: bool,
}

/// What temporary files end in; before it stand the file's name and 16 hexadecimal digits.
const TEMPORARY: &str = ".walhalla.tmp";

/// The name of the file that a temporary one of a [`NewFile`] was to become.
pub fn of_temporary(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(TEMPORARY)?;
    let (target, random) = stem.rsplit_once('.').unwrap_or((stem, ""));
    let is_random = random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Without the digits, as earlier versions named them.
    Some(if is_random { target } else { stem })
}

impl NewFile {
    /// Begins a file that will be at `path`, and takes away what other processes began there.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let mut name: OsString = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}{TEMPORARY}", fastrand::u64(..)));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&temporary);
        let file = file.map_err(Error::local("create", &temporary))?;
        let new = Self {
            file,
            path: path.to_owned(),
            temporary,
            durability: Durability::Durable,
            finished: false,
        };
        new.take_over()?;
        Ok(new)
    }

    fn take_over(&self) -> Result<(), Error> {
        let folder = folder_of(&self.path);
        let entries = std::fs::read_dir(folder).map_err(Error::local("read", folder))?;
        for entry in entries {
            let name = entry.map_err(Error::local("read", folder))?.file_name();
            let target = name.to_str().and_then(of_temporary);
            let is_others = Some(&*name) != self.temporary.file_name();
            if is_others
                && target.is_some()
                && target == self.path.file_name().and_then(OsStr::to_str)
            {
                let other = self.path.with_file_name(&name);
                match std::fs::remove_file(&other) {
                    Err(error) if error.kind() != ErrorKindIo::NotFound => {
                        return Err(Error::local("remove", other)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(bytes)
            .map_err(Error::local("write", &self.temporary))
    }

    /// Adds all that `input` holds.
    pub fn copy(&mut self, input: &mut impl Read) -> Result<(), Error> {
        std::io::copy(input, &mut self.file)
            .map(drop)
            .map_err(Error::local("write", &self.temporary))
    }

    /// Begins anew.
    fn restart(&mut self) -> Result<(), Error> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(Error::local("empty", &self.temporary))
    }

    /// Puts the file at `source`, which is whole and durable, in place: by its name where that can be, else by copying it. Gives
    /// itself back where `source` is gone.
    ///
    /// # Errors
    /// As [`NewFile::finish`].
    pub fn hand_over(mut self, source: &Path) -> Result<Option<Self>, Error> {
        // Exchanged, not renamed: a newer process may have taken the temporary file away, and must not meet it again.
        let exchanged = renameat_with(CWD, source, CWD, &self.temporary, RenameFlags::EXCHANGE);
        if exchanged.is_ok() {
            let spooled = File::open(&self.temporary).and_then(|spooled| {
                // Whoever made it may have had another umask.
                spooled.set_permissions(self.file.metadata()?.permissions())?;
                Ok(spooled)
            });
            self.file = spooled.map_err(Error::local("open", &self.temporary))?;
        } else {
            let mut spooled = match File::open(source) {
                Err(error) if error.kind() == ErrorKindIo::NotFound => return Ok(Some(self)),
                opened => opened.map_err(Error::local("open", source))?,
            };
            self.copy(&mut spooled)?;
        }
        self.finish()?;
        // It is in place; whatever is left in the spool goes with the rest of it.
        drop(std::fs::remove_file(source));
        Ok(None)
    }

    /// The same file, which [`NewFile::finish`] puts in place so: durably unless this says otherwise.
    #[must_use]
    pub fn with(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Puts the file in place, durably where that is wanted and nobody else sees to it.
    ///
    /// # Errors
    /// [`Error::Superseded`] when another process began the same file since.
    pub fn finish(mut self) -> Result<(), Error> {
        let name = self.path.file_name();
        let is_servers =
            name.is_some_and(|name| MADE_DURABLE_BY_THE_SERVER.iter().any(|its| name == *its));
        let durability = if is_servers {
            Durability::Unsynced
        } else {
            self.durability
        };
        let synced = durability.sync(&self.file);
        synced.map_err(Error::local("fsync", &self.temporary))?;
        std::fs::rename(&self.temporary, &self.path).map_err(|error| match error.kind() {
            ErrorKindIo::NotFound => Error::Superseded(self.path.clone()),
            _ => Error::local("rename", &self.temporary)(error),
        })?;
        self.finished = true;
        if durability == Durability::Unsynced {
            return Ok(());
        }
        let folder = folder_of(&self.path);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::local("fsync", folder))
    }
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the error that led here is the one to report.
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_process_that_was_left_behind_never_changes_what_a_newer_one_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("RECOVERYXLOG");
        let mut old = NewFile::create(&path).unwrap();
        old.write(b"old").unwrap();
        let mut new = NewFile::create(&path).unwrap();
        new.write(b"new").unwrap();
        new.finish().unwrap();
        old.write(b"er").unwrap();
        assert!(matches!(old.finish(), Err(Error::Superseded(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["RECOVERYXLOG"]);
    }

    #[test]
    fn a_file_that_is_handed_over_leaves_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, source) = (dir.path().join("RECOVERYXLOG"), dir.path().join("spooled"));
        std::fs::write(&source, b"spooled").unwrap();
        let old = NewFile::create(&path).unwrap();
        let new = NewFile::create(&path).unwrap();
        assert!(new.hand_over(&source).unwrap().is_none());
        assert_eq!(std::fs::read(&path).unwrap(), b"spooled");
        assert_eq!(names(dir.path()), ["RECOVERYXLOG"]);

        std::fs::write(&source, b"late").unwrap();
        assert!(matches!(old.hand_over(&source), Err(Error::Superseded(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"spooled");

        // What is gone is fetched as if it had never been there.
        let again = NewFile::create(&path).unwrap();
        let mut again = again.hand_over(&dir.path().join("gone")).unwrap().unwrap();
        again.write(b"fetched").unwrap();
        again.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"fetched");
    }

    #[test]
    fn temporary_files_of_the_dead_go_and_those_of_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        for left in [
            "a.walhalla.tmp",
            "a.0123456789abcdef.walhalla.tmp",
            "b.0123456789abcdef.walhalla.tmp",
        ] {
            std::fs::write(dir.path().join(left), "left").unwrap();
        }
        NewFile::create(&dir.path().join("a"))
            .unwrap()
            .finish()
            .unwrap();
        assert_eq!(names(dir.path()), ["a", "b.0123456789abcdef.walhalla.tmp"]);
    }

    #[test]
    fn no_link_is_followed_for_a_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("a.walhalla.tmp")).unwrap();
        NewFile::create(&dir.path().join("a"))
            .unwrap()
            .finish()
            .unwrap();
        assert!(!elsewhere.exists());
    }
}
