//! `relations.json`: which files of relations a backup holds, and how long each is.
//!
//! It is what a delta must know of its parent, and says no more than sizes: it is stored without encryption, so that a
//! host that cannot read the past takes deltas.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use walhalla_postgres::{ControlFile, Fork, RelationFile};

use super::reader;
use crate::paths::{PathList, PathMap};
use crate::repository::{BackupEntry, Repository};
use crate::server::data_directory::Listing;

/// The files of relations, main and init forks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Relations {
    /// Length of a block, in bytes.
    pub block_size: u32,
    /// Most blocks that a file has (`RELSEG_SIZE`).
    pub blocks_per_file: u32,
    /// When the `PG_VERSION` of each database's folder was written, seconds since 1970: once, when the folder was made.
    pub databases: BTreeMap<String, i64>,
    /// Whole blocks of each file; stored by its folder and name.
    #[serde(rename = "folders", with = "folders")]
    pub files: PathMap<u32>,
}

impl Relations {
    /// The databases of a data directory as it was walked; [`Relations::with_files`] adds the files.
    pub fn of(listing: &Listing, control: &ControlFile) -> Self {
        let mut databases = BTreeMap::new();
        for file in listing.files.iter() {
            if let Some((folder, "PG_VERSION")) = split(&file.path) {
                databases.insert(folder.to_owned(), file.modified);
            }
        }
        Self {
            block_size: control.block_size_bytes,
            blocks_per_file: control.blocks_per_file,
            databases,
            files: PathMap::default(),
        }
    }

    /// The same with the files of the listing that the backup holds, by their positions. Others vanished before they were read.
    #[must_use]
    pub fn with_files(self, listing: &Listing, holds: impl Fn(usize) -> bool) -> Self {
        let block_size = u64::from(self.block_size.max(1));
        let mut files = PathList::default();
        for (position, file) in listing.files.iter().enumerate() {
            let has_name = file.path.to_str().is_some();
            if has_name && file.relation.is_some_and(is_kept) && holds(position) {
                let blocks = u32::try_from(file.size_bytes / block_size);
                files.push(&file.path, blocks.unwrap_or(u32::MAX));
            }
        }
        Self {
            // A walk shows each once.
            files: files.into_map().unwrap_or_default(),
            ..self
        }
    }

    /// Writes it as it is stored.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut out, self)?;
        out.write_all(b"\n")
    }

    /// What is stored of a backup; `None` where an older program stored nothing.
    ///
    /// # Errors
    /// The repository's, and that the object is damaged.
    pub fn read(
        repository: &Repository,
        backup: &BackupEntry,
    ) -> Result<Option<Self>, reader::Error> {
        let Some(stored) = &backup.relations else {
            return Ok(None);
        };
        let parse = |json: &mut dyn Read| serde_json::from_reader(BufReader::new(json));
        reader::read_list(repository, backup, stored, parse).map(Some)
    }

    /// Length in blocks of the file at `path`; `None` for one that the backup does not hold.
    pub fn blocks(&self, path: &Path) -> Option<u32> {
        self.files.get(path).copied()
    }

    /// Length in bytes of the file at `path`, as [`Relations::blocks`].
    pub fn size_bytes(&self, path: &Path) -> Option<u64> {
        let blocks = self.blocks(path)?;
        Some(u64::from(blocks) * u64::from(self.block_size))
    }

    /// When the database's folder of a file was made, as far as is known.
    pub fn made(&self, path: &Path) -> Option<i64> {
        let (folder, _) = split(path)?;
        self.databases.get(folder).copied()
    }
}

/// Whether a delta may leave out blocks of a file. The other forks are short, and not all that changes them is in the WAL.
pub fn is_kept(file: RelationFile) -> bool {
    match file.fork {
        Fork::Main | Fork::Init => true,
        Fork::FreeSpaceMap | Fork::VisibilityMap => false,
    }
}

fn split(path: &Path) -> Option<(&str, &str)> {
    Some((path.parent()?.to_str()?, path.file_name()?.to_str()?))
}

/// Files by their folders: `{"base/5": {"16384": 7}}`.
mod folders {
    use std::fmt;
    use std::path::Path;

    use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
    use serde::ser::{Serialize, Serializer};

    use crate::paths::{Folder, PathList, PathMap};

    pub(super) fn serialize<S: Serializer>(files: &PathMap<u32>, to: S) -> Result<S::Ok, S::Error> {
        let folders = files.folders();
        to.collect_map(
            folders.map(|folder| (folder.path().to_string_lossy().into_owned(), Names(folder))),
        )
    }

    /// The names in a folder.
    struct Names<'a>(Folder<'a, u32>);

    impl Serialize for Names<'_> {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            let names = self.0.names();
            to.collect_map(names.map(|(name, blocks)| (name.to_string_lossy(), blocks)))
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PathMap<u32>, D::Error> {
        let mut files = PathList::default();
        from.deserialize_map(FoldersVisitor(&mut files))?;
        let twice = |path: std::path::PathBuf| {
            D::Error::custom(format!("{} is there twice", path.display()))
        };
        files.into_map().map_err(twice)
    }

    struct FoldersVisitor<'a>(&'a mut PathList<u32>);

    impl<'de> Visitor<'de> for FoldersVisitor<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("folders")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut folders: A) -> Result<(), A::Error> {
            while let Some(folder) = folders.next_key()? {
                folders.next_value_seed(NamesVisitor {
                    files: self.0,
                    folder,
                })?;
            }
            Ok(())
        }
    }

    struct NamesVisitor<'a> {
        files: &'a mut PathList<u32>,
        folder: String,
    }

    impl<'de> DeserializeSeed<'de> for NamesVisitor<'_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
            from.deserialize_map(self)
        }
    }

    impl<'de> Visitor<'de> for NamesVisitor<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("files and their lengths")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut names: A) -> Result<(), A::Error> {
            while let Some((name, blocks)) = names.next_entry::<String, u32>()? {
                self.files.push(&Path::new(&self.folder).join(name), blocks);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_read_back() {
        let json = r#"{"block_size":8192,"blocks_per_file":131072,"databases":{"base/5":7},"folders":{"global":{"1260":1},"base/5":{"16384":2,"16384.1":3}}}"#;
        let relations: Relations = serde_json::from_str(json).unwrap();
        assert_eq!(relations.blocks(Path::new("base/5/16384.1")), Some(3));
        assert_eq!(relations.size_bytes(Path::new("global/1260")), Some(8192));
        assert_eq!(relations.blocks(Path::new("base/5/1")), None);
        let mut written = Vec::new();
        relations.write(&mut written).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), format!("{json}\n"));
        let twice = json.replace("16384.1", "16384");
        assert!(serde_json::from_str::<Relations>(&twice).is_err());
    }
}
