//! Relations and the files that they are kept in (relpath.c, relfilelocator.h).

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// OIDs of the tablespaces inside the data directory (pg_tablespace.dat): `base` and `global`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// The one of shared relations.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// A relation's files: tablespace, database and file number (`RelFileLocator`; `RelFileNode` before 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelationFiles {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database; 0 for shared relations.
    pub database: u32,
    /// The number that names the files.
    pub number: u32,
}

/// A relation's fork (relpath.h, `ForkNumber`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fork {
    /// The data itself.
    #[serde(rename = "main")]
    Main,
    /// The free space map.
    #[serde(rename = "fsm")]
    FreeSpaceMap,
    /// The visibility map.
    #[serde(rename = "vm")]
    VisibilityMap,
    /// What an unlogged relation begins anew from.
    #[serde(rename = "init")]
    Init,
}

impl Fork {
    /// Every fork, in the order of its number in records.
    pub const ALL: [Self; 4] = [
        Self::Main,
        Self::FreeSpaceMap,
        Self::VisibilityMap,
        Self::Init,
    ];

    /// By its number in records.
    pub(crate) fn of_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Its name (relpath.c, `forkNames`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::FreeSpaceMap => "fsm",
            Self::VisibilityMap => "vm",
            Self::Init => "init",
        }
    }
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As `pg_waldump` shows it: tablespace, database and file number, `1663/5/16384`.
impl fmt::Display for RelationFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.number)
    }
}

impl From<RelationFiles> for String {
    fn from(files: RelationFiles) -> Self {
        files.to_string()
    }
}

impl TryFrom<String> for RelationFiles {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut numbers = text.split('/').map(str::parse);
        match (
            numbers.next(),
            numbers.next(),
            numbers.next(),
            numbers.next(),
        ) {
            (Some(Ok(tablespace)), Some(Ok(database)), Some(Ok(number)), None) => Ok(Self {
                tablespace,
                database,
                number,
            }),
            _ => Err("these are no relation's files"),
        }
    }
}

/// One of the files of a relation's fork: `16384_fsm.2`. A fork is kept in files of up to `RELSEG_SIZE` blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationFile {
    /// The relation.
    pub files: RelationFiles,
    /// The fork.
    pub fork: Fork,
    /// Which of the fork's files, from 0.
    pub segment: u32,
}

impl RelationFile {
    /// The relation file at `path` below a data directory; `None` for every other file, temporary relations among them.
    pub fn of_path(path: &Path) -> Option<Self> {
        let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
        let (tablespace, database, name) = match *parts?.as_slice() {
            ["global", name] => (GLOBAL_TABLESPACE, 0, name),
            ["base", database, name] => (DEFAULT_TABLESPACE, digits(database)?, name),
            ["pg_tblspc", tablespace, _, database, name] => {
                (digits(tablespace)?, digits(database)?, name)
            }
            _ => return None,
        };
        let (number, fork, segment) = parse_name(name)?;
        Some(Self {
            files: RelationFiles {
                tablespace,
                database,
                number,
            },
            fork,
            segment,
        })
    }
}

/// relfilenumber, then an optional fork, then an optional segment (reinit.c, `parse_filename_for_nontemp_relation`).
pub fn parse_name(name: &str) -> Option<(u32, Fork, u32)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, digits(segment)?),
        None => (name, 0),
    };
    let (number, fork) = stem
        .split_once('_')
        .map_or((stem, "main"), |(number, fork)| (number, fork));
    let fork = Fork::ALL.into_iter().find(|known| known.name() == fork)?;
    Some((digits(number)?, fork, segment))
}

/// A number written in decimal digits only, without a sign.
pub fn digits(text: &str) -> Option<u32> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_files_are_told_from_other_files() {
        let file = RelationFile::of_path(Path::new("base/5/16384_fsm.2")).unwrap();
        let number = file.files.number;
        assert_eq!(
            (number, file.fork, file.segment),
            (16384, Fork::FreeSpaceMap, 2)
        );
        let in_tablespace = Path::new("pg_tblspc/16400/PG_17_202406281/5/16385_init");
        let file = RelationFile::of_path(in_tablespace).unwrap();
        assert_eq!(file.files.to_string(), "16400/5/16385");
        assert_eq!(file.fork, Fork::Init);
        let shared = RelationFile::of_path(Path::new("global/1262")).unwrap();
        assert_eq!(shared.files.to_string(), "1664/0/1262");
        for path in [
            "base/5/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/16384_xyz",
            "base/5/16384.a",
            "base/5/t3_16384",
            "base/5/_fsm",
            "base/5/x/16384",
            "pg_xact/0000",
        ] {
            assert_eq!(RelationFile::of_path(Path::new(path)), None, "{path}");
        }
    }
}
