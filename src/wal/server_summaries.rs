//! The server's own WAL summaries as a source of changed blocks: `pg_wal/summaries` of PostgreSQL 17 and later with
//! `summarize_wal = on`.
//!
//! ```text
//! names ─▶ those that cover each timeline's span ─▶ tables, in the WAL's order ─▶ Changes
//! ```
//!
//! A file's name says which WAL it summarizes (walsummary.c, `OpenWalSummaryFile`), and the files are one after the other
//! without a gap unless some were removed or WAL was written with `wal_level = minimal`, of which there are none
//! (walsummarizer.c, `SummarizeWAL`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use walhalla_postgres::block_table::{self, BlockTableDamage};
use walhalla_postgres::summary::Changes;
use walhalla_postgres::{History, Lsn, TimelineId, Version};

use super::Error;

const FOLDER: &str = "summaries";
const SUFFIX: &str = ".summary";

/// What the server's summaries tell of a stretch of WAL.
#[derive(Debug)]
pub enum Known {
    /// All blocks that it changed, and perhaps some that WAL just before or after it changed.
    Changes(Changes),
    /// Nothing, for this reason.
    Nothing(Gap),
}

/// Why the server's summaries do not tell what WAL changed.
#[derive(Debug, thiserror::Error)]
pub enum Gap {
    /// This version has none.
    #[error("PostgreSQL {0} keeps no WAL summaries")]
    Version(Version),
    /// WAL from here on is in no summary. When this is after all that there are, it may be made soon: the server
    /// completes a summary where the next checkpoint's redo begins, with a delay (walsummarizer.c,
    /// `SummarizeXlogRecord`, `summarizer_wait_for_wal`).
    #[error("no WAL summary of timeline {} has what begins at {at}", timeline.number())]
    Missing {
        /// The timeline.
        timeline: TimelineId,
        /// The first position that is in none.
        at: Lsn,
    },
    /// A file that is needed is not what the server wrote.
    #[error("the WAL summary {} is damaged: {damage}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: BlockTableDamage,
    },
}

/// What WAL from `from` to before `to` along `history` changed, as the summaries below `pgdata` tell it.
///
/// Whole summaries are taken in, as the server does it for its incremental backups
/// (basebackup_incremental.c, `PrepareForIncrementalBackup`), but in the WAL's order, and of a timeline that was left none
/// that goes on past the switch: what such a one has been cut back by may never have happened here.
///
/// # Errors
/// [`Error::Local`] when the folder or a file could not be read; all else that is wrong is a [`Gap`].
pub fn changes(
    pgdata: &Path,
    version: Version,
    history: &History,
    from: Lsn,
    to: Lsn,
) -> Result<Known, Error> {
    if !version.has_wal_summaries() {
        return Ok(Known::Nothing(Gap::Version(version)));
    }
    let folder = pgdata.join(version.wal_folder()).join(FOLDER);
    let files = list(&folder)?;
    let needed = match needed(&files, history, from, to) {
        Ok(needed) => needed,
        Err(gap) => return Ok(Known::Nothing(gap)),
    };
    let mut changes = Changes::default();
    for file in needed {
        match read(&folder, file)? {
            Known::Changes(later) => changes.extend(later),
            Known::Nothing(gap) => return Ok(Known::Nothing(gap)),
        }
    }
    Ok(Known::Changes(changes))
}

/// Whether the one that begins at `lsn` may be on its way: there are summaries, and all end before. The server makes them
/// one after the other.
///
/// # Errors
/// [`Error::Local`] when the folder could not be read.
pub fn may_reach(pgdata: &Path, version: Version, lsn: Lsn) -> Result<bool, Error> {
    let folder = pgdata.join(version.wal_folder()).join(FOLDER);
    let files = list(&folder)?;
    Ok(!files.is_empty() && files.iter().all(|file| file.end <= lsn))
}

/// A summary by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    timeline: TimelineId,
    begin: Lsn,
    end: Lsn,
}

impl File {
    /// Reads a name (walsummary.c, `IsWalSummaryFilename`).
    fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(SUFFIX)?;
        let is_digit = |digit: u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
        if digits.len() != 40 || !digits.bytes().all(is_digit) {
            return None;
        }
        let lsn = |text| u64::from_str_radix(text, 16).ok().map(Lsn);
        Some(Self {
            timeline: digits.get(..8)?.parse().ok()?,
            begin: lsn(digits.get(8..24)?)?,
            end: lsn(digits.get(24..)?)?,
        })
    }

    fn name(&self) -> String {
        let (begin, end) = (self.begin.0, self.end.0);
        format!("{}{begin:016X}{end:016X}{SUFFIX}", self.timeline)
    }
}

/// The summaries in a folder, in order of where they begin; none where there is no folder.
fn list(folder: &Path) -> Result<Vec<File>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::local("list", folder)(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::local("list", folder))?;
        files.extend(entry.file_name().to_str().and_then(File::parse));
    }
    files.sort_unstable_by_key(|file| (file.begin, file.end));
    Ok(files)
}

/// The files that together cover WAL from `from` to before `to`, in its order (walsummary.c, `FilterWalSummaries` and
/// `WalSummariesAreComplete`).
fn needed<'a>(
    files: &'a [File],
    history: &History,
    from: Lsn,
    to: Lsn,
) -> Result<Vec<&'a File>, Gap> {
    if from > to {
        let timeline = history.timeline_at(from);
        return Err(Gap::Missing { timeline, at: from });
    }
    let mut needed = Vec::new();
    for (timeline, begin, switch) in history.spans() {
        let end = switch.map_or(to, |switch| switch.min(to));
        let is_of_here = |file: &&File| {
            file.timeline == timeline && switch.is_none_or(|switch| file.end <= switch)
        };
        let mut at = begin.max(from);
        for file in files.iter().filter(is_of_here) {
            if at < end && file.begin <= at && at < file.end {
                needed.push(file);
                at = file.end;
            }
        }
        if at < end {
            return Err(Gap::Missing { timeline, at });
        }
    }
    Ok(needed)
}

fn read(folder: &Path, file: &File) -> Result<Known, Error> {
    let path = folder.join(file.name());
    let mut input = match std::fs::File::open(&path) {
        Ok(input) => input,
        // The server removes those that are older than wal_summary_keep_time.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Known::Nothing(Gap::Missing {
                timeline: file.timeline,
                at: file.begin,
            }));
        }
        Err(error) => return Err(Error::local("open", path)(error)),
    };
    match block_table::read(&mut input) {
        Ok(changes) => Ok(Known::Changes(changes)),
        Err(block_table::Error::Damaged(damage)) => {
            Ok(Known::Nothing(Gap::Damaged { path, damage }))
        }
        Err(block_table::Error::Read(error)) => Err(Error::local("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use walhalla_postgres::block_table::testing::{Stored, table};

    use super::*;

    const TABLE: [u32; 4] = [1663, 5, 16384, 0];

    fn file(timeline: u32, range: Range<u64>) -> File {
        File {
            timeline: TimelineId::new(timeline).unwrap(),
            begin: Lsn(range.start),
            end: Lsn(range.end),
        }
    }

    /// Timeline 1 up to 100, 2 up to 200, then 3.
    fn history() -> History {
        let text = "1\t0/64\tx\n2\t0/C8\tx\n";
        History::parse(TimelineId::new(3).unwrap(), text.as_bytes()).unwrap()
    }

    /// The files that are needed, by their places, or the position that is missing and its timeline.
    fn places(files: &[File], range: Range<u64>) -> Result<Vec<usize>, (u32, u64)> {
        match needed(files, &history(), Lsn(range.start), Lsn(range.end)) {
            Ok(needed) => Ok(needed
                .iter()
                .map(|file| files.iter().position(|other| other == *file).unwrap())
                .collect()),
            Err(Gap::Missing { timeline, at }) => Err((timeline.number(), at.0)),
            Err(gap) => panic!("{gap}"),
        }
    }

    #[test]
    fn names_are_read_as_the_server_writes_them() {
        let name = "000000010000000A0000002800000010000000FF.summary";
        let read = File::parse(name).unwrap();
        assert_eq!(read, file(1, 0xA_0000_0028..0x10_0000_00FF));
        assert_eq!(read.name(), name);
        for name in [
            "temp.summary",
            "000000010000000A0000002800000010000000FF",
            "000000010000000a0000002800000010000000FF.summary",
            "000000000000000A0000002800000010000000FF.summary",
            "000000010000000A0000002800000010000000F\u{142}.summary",
        ] {
            assert_eq!(File::parse(name), None, "{name}");
        }
    }

    #[test]
    fn files_are_needed_as_far_as_they_cover_each_timeline() {
        let files = [file(1, 10..60), file(1, 60..100), file(2, 100..200)];
        let more = [&files[..], &[file(3, 200..300), file(3, 300..400)]].concat();
        assert_eq!(places(&more, 60..300), Ok(vec![1, 2, 3]));
        assert_eq!(places(&more, 59..301), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(places(&more, 120..180), Ok(vec![2]));
        assert_eq!(places(&more, 120..120), Ok(vec![]));
        assert_eq!(places(&more, 9..20), Err((1, 9)));
        assert_eq!(places(&more, 350..401), Err((3, 400)));
        let backwards = Range {
            start: 120,
            end: 119,
        };
        assert_eq!(places(&more, backwards), Err((2, 120)));
        assert_eq!(places(&files, 60..201), Err((3, 200)));
        assert_eq!(places(&files[1..], 20..80), Err((1, 20)));
        assert_eq!(places(&[], 20..80), Err((1, 20)));
        let hole = [file(1, 10..60), file(1, 61..100)];
        assert_eq!(places(&hole, 20..80), Err((1, 60)));
    }

    #[test]
    fn files_that_overlap_are_all_taken_unless_one_says_it_all() {
        let files = [file(1, 10..30), file(1, 10..50), file(1, 20..40)];
        assert_eq!(places(&files, 10..45), Ok(vec![0, 1]));
        assert_eq!(places(&files, 35..45), Ok(vec![1]));
    }

    #[test]
    fn a_file_of_a_timeline_that_was_left_is_not_taken_past_the_switch() {
        let files = [file(1, 10..60), file(1, 60..101), file(2, 100..200)];
        assert_eq!(places(&files, 20..150), Err((1, 60)));
        assert_eq!(places(&files, 20..80), Err((1, 60)));
        assert_eq!(places(&files, 100..150), Ok(vec![2]));
    }

    #[test]
    fn what_is_cut_off_later_is_forgotten_and_what_is_damaged_is_told() {
        let pgdata = tempfile::tempdir().unwrap();
        let folder = pgdata.path().join("pg_wal").join("summaries");
        let all = || {
            let version = Version::parse("17").unwrap();
            changes(pgdata.path(), version, &history(), Lsn(20), Lsn(90)).unwrap()
        };
        assert!(matches!(
            all(),
            Known::Nothing(Gap::Missing { at: Lsn(20), .. })
        ));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |file: File, limit, blocks: &[u16]| {
            let entry = Stored {
                place: TABLE,
                limit,
                chunks: vec![blocks.to_vec()],
            };
            let bytes = table(&[entry]);
            std::fs::write(folder.join(file.name()), &bytes).unwrap();
            bytes
        };
        write(file(1, 20..50), u32::MAX, &[9, 3, 5]);
        let bytes = write(file(1, 50..90), 5, &[7]);
        let Known::Changes(known) = all() else {
            panic!("not known")
        };
        let (_, changed) = known.iter().next().unwrap();
        assert_eq!(
            (changed.limit, &*changed.blocks),
            (Some(5), &[3..4, 7..8][..])
        );
        std::fs::write(folder.join(file(1, 50..90).name()), &bytes[1..]).unwrap();
        assert!(matches!(all(), Known::Nothing(Gap::Damaged { .. })));
    }
}
