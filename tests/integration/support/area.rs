//! A directory of a test's own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::host;

/// A directory that belongs to the unprivileged user and is removed at the end, unless `WALHALLA_TEST_KEEP` is set.
///
/// Declare it before the clusters in it, so that they are stopped before their files go.
pub struct Area {
    dir: TempDir,
}

impl Area {
    pub fn new() -> Self {
        // A short name: the paths of Unix sockets below it end at 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("wh-")
            .tempdir_in(&host().scratch)
            .unwrap();
        host().give_to_user(dir.path());
        let mut area = Self { dir };
        if std::env::var_os("WALHALLA_TEST_KEEP").is_some() {
            println!("kept: {}", area.keep().display());
        }
        area
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        host().give_to_user(&path);
        path
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        host().give_to_user(&path);
        path
    }

    /// Leaves the directory where it is, for somebody to look into.
    pub fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    /// Removes a directory and all in it.
    pub fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.path(name)).unwrap();
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }
}
