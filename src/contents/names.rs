//! Names of relations and databases, out of the catalogs that a backup holds.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use walhalla_postgres::catalogs::{Catalogs, Names, is_map};

use super::reader::{self, Contents, FileError, FileHeader, Sink, Summed, Taken};
use crate::repository::BackupEntry;
use crate::threads::lock;

/// Longest catalog file that is read for names.
const CATALOG_LIMIT_BYTES: u64 = 256 << 20;

/// The names that a backup's catalogs tell; none where an older program kept the catalogs with everything else.
///
/// # Errors
/// Those of reading the part with the catalogs.
pub fn read(contents: &Contents) -> Result<Names, reader::Error> {
    let backup = contents.backup;
    let named = backup.catalogs.as_ref();
    let part = named.and_then(|named| backup.parts.iter().find(|part| part.name == *named));
    let Some(part) = part else {
        return Ok(Names::default());
    };
    let files = Files::default();
    contents.part(part, &files)?;
    Ok(files.names(backup))
}

/// The catalogs' files.
#[derive(Default)]
struct Files(Mutex<Vec<(PathBuf, Vec<u8>)>>);

impl Files {
    fn names(self, backup: &BackupEntry) -> Names {
        let files = self.0.into_inner().unwrap_or_default();
        let mut catalogs = Catalogs::default();
        for (path, bytes) in files.iter().filter(|(path, _)| is_map(path)) {
            catalogs.map(path, bytes);
        }
        let mut names = Names::default();
        for (path, bytes) in &files {
            if let Some(catalog) = catalogs.of(path) {
                names.read(catalog, bytes, backup.postgres_version);
            }
        }
        names
    }
}

impl Sink for Files {
    type Error = reader::Error;

    fn directory(&self, _: &Path, _: FileHeader) -> Result<(), Self::Error> {
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        _: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<Self::Error>> {
        let mut bytes = Vec::new();
        let read = content.take(CATALOG_LIMIT_BYTES).read_to_end(&mut bytes);
        read.map_err(FileError::Read)?;
        if bytes.len() as u64 == CATALOG_LIMIT_BYTES {
            tracing::warn!(
                "names in {} beyond 256 MiB are not read: some relations may have none",
                path.display()
            );
        }
        lock(&self.0).push((path.to_owned(), bytes));
        Ok(Taken::Content)
    }

    fn problem(&self, error: reader::Error) -> Result<(), Self::Error> {
        Err(error)
    }
}
