//! Whether a restore waits for the disk.

use std::fs::File;
use std::io;

/// Whether what was written survives a crash of the machine, once its writer goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It does.
    #[default]
    Durable,
    /// It does not: nobody waits for the disk, and nobody hears of what could not be written. Only for what is thrown away.
    Unsynced,
}

impl Durability {
    /// Waits until a file, or the entries of a directory, are on the disk; where that is not wanted, does nothing.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(self, file: &File) -> io::Result<()> {
        match self {
            Self::Durable => file.sync_all(),
            Self::Unsynced => Ok(()),
        }
    }

    /// What a user must know of a directory that was restored so.
    pub fn caution(self) -> Option<&'static str> {
        match self {
            Self::Durable => None,
            Self::Unsynced => Some(
                "--no-sync: the restore ends before the files are on the disk. If this machine crashes after that, the directory \
                 can be damaged without a sign of it: remove it then. Restore without --no-sync whatever you want to keep",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose fsync fails: procfs has none.
    #[cfg(target_os = "linux")]
    #[test]
    fn unsynced_does_not_ask_the_disk() {
        let file = File::open("/proc/self/status").unwrap();
        Durability::Durable.sync(&file).unwrap_err();
        Durability::Unsynced.sync(&file).unwrap();
    }

    #[test]
    fn only_what_is_not_durable_needs_a_caution() {
        assert_eq!(Durability::default().caution(), None);
        assert!(Durability::Unsynced.caution().is_some());
    }
}
