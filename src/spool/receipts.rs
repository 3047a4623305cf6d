//! Receipts: what one call of the server leaves to a later one about the file of a segment.
//!
//! | part of the spool | what a receipt says |
//! | --- | --- |
//! | `pushed` | the segment is durable in the store: its own call is done |
//! | `fetched` | the file in the spool is the segment, whole and checked: it may be handed over |
//!
//! A receipt counts only for the very file, as it was then, and for the same store and cluster. Whatever does not prove that,
//! a torn receipt among it, counts for nothing: the work is done as if there were none.
//!
//! The proof is the file's device, inode, length, and times of change. Nobody can set the time of the last status change
//! (`ctime`), and every write moves it. A file that was changed within the clock's resolution before it was read may have been
//! changed after, without another time: its whole content must have the digest of what was read (decision 0058). A file that
//! was fetched is Walhalla's own, which nobody else writes to: it needs no digest.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use walhalla_postgres::{SegmentName, SystemIdentifier};

use super::{Part, Spool};
use crate::pipeline::streams;

/// Longest receipt that is read.
const LIMIT_BYTES: u64 = 64 << 10;
/// The file by which is tried whether receipts can be kept.
const TRIAL: &str = ".trial";
/// How coarse the times of files may be: two seconds on the coarsest file systems.
const TIME_RESOLUTION: Duration = Duration::from_secs(2);
/// What the digest of a receipt is derived for (BLAKE3's context).
const SEAL_PURPOSE: &str = "walhalla 2026-11-29 receipts for files of WAL segments";

/// A store, as the settings name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity(pub String);

/// Which file it is, and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    /// The same of the last change of anything about the file.
    changed: i64,
}

/// What a receipt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The segment is in the archive.
    Pushed,
    /// The file holds what the archive has.
    Fetched,
}

impl Kind {
    /// The part of the spool in which the receipts stand.
    pub fn part(self) -> &'static str {
        match self {
            Self::Pushed => "pushed",
            Self::Fetched => "fetched",
        }
    }
}

/// Which segment a file holds, and which store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Receipt {
    segment: String,
    system_identifier: String,
    store: StoreIdentity,
    file: FileState,
    /// When the file was read, in nanoseconds since 1970.
    read: i64,
    /// BLAKE3 of the segment, hexadecimal; of one that was pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_blake3: Option<String>,
}

/// The receipts of one kind for one data directory, cluster and store.
#[derive(Clone, Debug)]
pub struct Receipts {
    spool: Spool,
    kind: Kind,
    system_identifier: SystemIdentifier,
    store: StoreIdentity,
}

/// A segment's file just before it is read.
#[derive(Clone, Copy, Debug)]
pub struct BeforeRead {
    file: FileState,
    read: i64,
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000) + rest;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file may be changed after `read` without another time.
    fn is_younger_than_the_clock_tells(&self, read: i64) -> bool {
        let resolution = i64::try_from(TIME_RESOLUTION.as_nanos()).unwrap_or(i64::MAX);
        self.changed.max(self.modified).saturating_add(resolution) >= read
    }
}

impl BeforeRead {
    /// Looks at the file.
    ///
    /// # Errors
    /// The system's.
    pub fn look(path: &Path) -> io::Result<Self> {
        let read = since_1970(SystemTime::now());
        let file = FileState::of(&path.metadata()?);
        Ok(Self { file, read })
    }
}

impl Receipts {
    /// Those in `spool`.
    pub fn new(
        spool: Spool,
        kind: Kind,
        system_identifier: SystemIdentifier,
        store: StoreIdentity,
    ) -> Self {
        Self {
            spool,
            kind,
            system_identifier,
            store,
        }
    }

    /// Whether there is a receipt for the file at `path` as `segment`, as the file is now.
    ///
    /// # Errors
    /// The file or the spool cannot be read.
    pub fn has(&self, segment: SegmentName, path: &Path) -> io::Result<bool> {
        let Some(part) = self.spool.part(self.kind.part())? else {
            return Ok(false);
        };
        let Some(known) = self.read(&part, segment)? else {
            return Ok(false);
        };
        let mut file = File::open(path)?;
        let now = FileState::of(&file.metadata()?);
        if now != known.file {
            return Ok(false);
        }
        if self.kind == Kind::Fetched || !now.is_younger_than_the_clock_tells(known.read) {
            return Ok(true);
        }
        let digest = hex::encode(streams::blake3(&mut file)?);
        Ok(Some(digest) == known.content_blake3)
    }

    /// As [`Receipts::has`]; the receipt goes. One that stayed would answer for a segment that was taken out of the archive since.
    ///
    /// # Errors
    /// As [`Receipts::has`]; the receipt cannot be removed.
    pub fn take(&self, segment: SegmentName, path: &Path) -> io::Result<bool> {
        let has = self.has(segment, path)?;
        if has && let Some(part) = self.spool.part(self.kind.part())? {
            part.remove(&segment.to_string())?;
        }
        Ok(has)
    }

    /// That receipts can be kept.
    ///
    /// # Errors
    /// The system's.
    pub fn try_out(&self) -> io::Result<()> {
        let part = self.spool.make_part(self.kind.part())?;
        part.write(TRIAL, b"")?;
        part.remove(TRIAL)
    }

    /// Keeps a receipt for the file at `path` as `segment`, unless it has changed since `before`. What the kind says must be
    /// true already. One for a pushed segment has the BLAKE3 hash of its content.
    ///
    /// # Errors
    /// The spool cannot be written.
    pub fn keep(
        &self,
        segment: SegmentName,
        path: &Path,
        before: BeforeRead,
        content_blake3: Option<[u8; 32]>,
    ) -> io::Result<()> {
        if BeforeRead::look(path)?.file != before.file {
            return Ok(());
        }
        let receipt = Receipt {
            segment: segment.to_string(),
            system_identifier: self.system_identifier.to_string(),
            store: self.store.clone(),
            file: before.file,
            read: before.read,
            content_blake3: content_blake3.map(hex::encode),
        };
        let part = self.spool.make_part(self.kind.part())?;
        part.write(&segment.to_string(), &sealed(&receipt)?)
    }

    /// Removes all but those of segments for which `is_kept` holds.
    ///
    /// # Errors
    /// The spool cannot be read or written.
    pub fn retain(&self, is_kept: impl Fn(SegmentName) -> bool) -> io::Result<()> {
        let Some(part) = self.spool.part(self.kind.part())? else {
            return Ok(());
        };
        for name in part.names()? {
            if !name.parse::<SegmentName>().is_ok_and(&is_kept) {
                part.remove(&name)?;
            }
        }
        Ok(())
    }

    /// The receipt for `segment` of this cluster and this store.
    fn read(&self, part: &Part, segment: SegmentName) -> io::Result<Option<Receipt>> {
        let bytes = part.read(&segment.to_string(), LIMIT_BYTES)?;
        let known = bytes.as_deref().and_then(unsealed);
        Ok(known.filter(|known| {
            known.segment == segment.to_string()
                && known.system_identifier == self.system_identifier.to_string()
                && known.store == self.store
        }))
    }
}

fn since_1970(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(0))
}

/// The text of a receipt: a line of JSON, and a line with the digest of the first one. Files in the spool are not
/// waited for until they are on the disk, so that a crash may leave a part of one.
fn sealed(receipt: &Receipt) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(receipt)?;
    Ok(format!("{json}\n{}\n", seal(&json)).into_bytes())
}

fn unsealed(bytes: &[u8]) -> Option<Receipt> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (json, digest) = text.split_once('\n')?;
    if digest.strip_suffix('\n')? != seal(json) {
        return None;
    }
    serde_json::from_str(json).ok()
}

fn seal(json: &str) -> String {
    hex::encode(blake3::derive_key(SEAL_PURPOSE, json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, FileTimes};
    use std::os::unix::fs::FileExt as _;

    use super::*;

    const OLD: Duration = Duration::from_secs(10);

    struct Site {
        dir: tempfile::TempDir,
        receipts: Receipts,
        segment: SegmentName,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let receipts = Self::of(&dir, 7, "file:///store");
            let site = Self {
                receipts,
                segment: "000000010000000000000002".parse().unwrap(),
                dir,
            };
            fs::write(site.path(), "a segment").unwrap();
            site
        }

        fn of(dir: &tempfile::TempDir, cluster: u64, store: &str) -> Receipts {
            let pgdata = dir.path().join("data");
            fs::create_dir_all(&pgdata).unwrap();
            let spool = Spool::of(&pgdata, None).unwrap();
            let identifier = SystemIdentifier(cluster);
            Receipts::new(
                spool,
                Kind::Pushed,
                identifier,
                StoreIdentity(store.to_owned()),
            )
        }

        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("segment")
        }

        /// Keeps a receipt as if the file had been read so long after its last change.
        fn keep(&self, age: Duration) {
            let mut before = BeforeRead::look(&self.path()).unwrap();
            before.read = before.file.changed + i64::try_from(age.as_nanos()).unwrap();
            let digest = *blake3::hash(&fs::read(self.path()).unwrap()).as_bytes();
            let kept = { &self.receipts }.keep(self.segment, &self.path(), before, Some(digest));
            kept.unwrap();
        }

        fn has(&self) -> bool {
            { &self.receipts }.has(self.segment, &self.path()).unwrap()
        }

        fn text(&self) -> std::path::PathBuf {
            let folder = self.receipts.spool.path().join(Kind::Pushed.part());
            folder.join(self.segment.to_string())
        }
    }

    #[test]
    fn only_the_very_file_has_a_receipt() {
        let site = Site::new();
        assert!(!site.has());
        site.keep(OLD);
        assert!(site.has());
        let other: SegmentName = "000000020000000000000002".parse().unwrap();
        assert!(!site.receipts.has(other, &site.path()).unwrap());

        // Another file of the same content, length and time.
        let modified = fs::metadata(site.path()).unwrap().modified().unwrap();
        fs::copy(site.path(), site.dir.path().join("copy")).unwrap();
        fs::rename(site.dir.path().join("copy"), site.path()).unwrap();
        let times = FileTimes::new().set_modified(modified);
        File::options()
            .write(true)
            .open(site.path())
            .unwrap()
            .set_times(times)
            .unwrap();
        assert!(!site.has());
    }

    #[test]
    fn a_file_that_was_changed_and_got_its_time_back_has_none() {
        let site = Site::new();
        site.keep(OLD);
        let modified = fs::metadata(site.path()).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let file = File::options().write(true).open(site.path()).unwrap();
        file.write_all_at(b"A", 0).unwrap();
        file.set_times(FileTimes::new().set_modified(modified))
            .unwrap();
        assert!(!site.has());
    }

    #[test]
    fn of_a_file_that_was_just_changed_the_content_counts() {
        let site = Site::new();
        site.keep(Duration::from_millis(1));
        assert!(site.has());
        let mut known = unsealed(&fs::read(site.text()).unwrap()).unwrap();
        known.content_blake3 = Some(hex::encode([0; 32]));
        fs::write(site.text(), sealed(&known).unwrap()).unwrap();
        assert!(!site.has());
    }

    /// It is Walhalla's own, and its times are enough.
    #[test]
    fn a_fetched_file_that_was_just_written_needs_no_digest() {
        let site = Site::new();
        let kept = |kind| {
            let receipts = Receipts {
                kind,
                ..site.receipts.clone()
            };
            let before = BeforeRead::look(&site.path()).unwrap();
            receipts
                .keep(site.segment, &site.path(), before, None)
                .unwrap();
            receipts.has(site.segment, &site.path()).unwrap()
        };
        assert!(kept(Kind::Fetched));
        assert!(!kept(Kind::Pushed));
    }

    #[test]
    fn a_file_that_changed_meanwhile_gets_none() {
        let site = Site::new();
        let before = BeforeRead::look(&site.path()).unwrap();
        fs::write(site.path(), "another length").unwrap();
        let kept = { &site.receipts }.keep(site.segment, &site.path(), before, Some([0; 32]));
        kept.unwrap();
        assert!(!site.text().exists());
    }

    #[test]
    fn another_cluster_or_store_knows_nothing_of_it() {
        let site = Site::new();
        site.keep(OLD);
        for (cluster, store) in [(8, "file:///store"), (7, "file:///other")] {
            let others = Site::of(&site.dir, cluster, store);
            assert!(!others.has(site.segment, &site.path()).unwrap());
        }
    }

    #[test]
    fn a_torn_or_changed_receipt_counts_for_nothing() {
        let site = Site::new();
        site.keep(OLD);
        let text = fs::read(site.text()).unwrap();
        for length in 0..text.len() {
            fs::write(site.text(), &text[..length]).unwrap();
            assert!(!site.has(), "{length} bytes of {}", text.len());
        }
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            fs::write(site.text(), &changed).unwrap();
            assert!(!site.has(), "with byte {at} changed");
        }
        fs::write(site.text(), &text).unwrap();
        assert!(site.has());
    }

    #[test]
    fn receipts_that_nobody_will_ask_for_go() {
        let site = Site::new();
        site.keep(OLD);
        fs::write(site.text().with_file_name(".0123.tmp"), "left").unwrap();
        site.receipts
            .retain(|segment| segment == site.segment)
            .unwrap();
        assert!(site.has());
        let names = || fs::read_dir(site.text().parent().unwrap()).unwrap().count();
        assert_eq!(names(), 1);
        site.receipts.retain(|_| false).unwrap();
        assert_eq!(names(), 0);
    }
}
