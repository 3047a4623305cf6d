//! This host: whose the files are, what another user left behind, and whether there is room.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::output::look::bytes;
use crate::users;

/// Files that are looked at in a store or a spool: enough to find what does not belong.
const MOST_FILES: usize = 100_000;
/// Files of another user that are named.
const NAMED: usize = 5;
/// Segments for which the spool should have room: what is fetched or received ahead.
const SPOOLED_SEGMENTS: u64 = 16;

/// Whether commands run here as the user who owns the data directory.
pub fn owner(pgdata: &Path) -> Finding {
    let check = "user";
    let found = match fs::metadata(pgdata) {
        Ok(found) => found,
        Err(error) => {
            let text = format!("the data directory cannot be read: {error}");
            return Finding::failed(check, pgdata.display(), text);
        }
    };
    let own = rustix::process::geteuid().as_raw();
    if found.uid() == own {
        return Finding::ok(check, pgdata.display());
    }
    Finding::warning(
        check,
        pgdata.display(),
        format!(
            "this runs as {}, and the server as {}: run it as the server's user (sudo -u postgres walhalla check …)",
            users::shown(own),
            users::shown(found.uid())
        ),
    )
}

/// Whether everything below `folder` belongs to the user `uid`, who is to write to it.
pub fn belongings(check: &'static str, folder: &Path, uid: u32) -> Finding {
    let mut foreign: Vec<String> = Vec::new();
    let mut left = MOST_FILES;
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        if let Err(error) = look_into(&next, uid, &mut folders, &mut foreign, &mut left) {
            let text = format!("{} cannot be read: {error}", next.display());
            return Finding::failed(check, folder.display(), text);
        }
    }
    let Some(first) = foreign.first() else {
        return Finding::ok(check, folder.display());
    };
    let more = foreign.len().saturating_sub(NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let named: Vec<&str> = foreign.iter().take(NAMED).map(String::as_str).collect();
    let what = if foreign.len() == 1 {
        format!("{first} belongs to another user than the server's")
    } else {
        format!(
            "these belong to another user than the server's: {}{more}",
            named.join(", ")
        )
    };
    Finding::failed(
        check,
        folder.display(),
        format!(
            "{what}; a command that ran as root left them, and the server's calls cannot change them.\n\
             Give them back: chown -R --reference PGDATA {}",
            folder.display()
        ),
    )
}

fn look_into(
    folder: &Path,
    uid: u32,
    folders: &mut Vec<PathBuf>,
    foreign: &mut Vec<String>,
    left: &mut usize,
) -> std::io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let is_foreign = |found: &Metadata| found.uid() != uid;
    for entry in entries {
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        let path = entry?.path();
        let Ok(found) = fs::symlink_metadata(&path) else {
            // It went while it was looked at.
            continue;
        };
        if is_foreign(&found) {
            foreign.push(path.display().to_string());
        }
        if found.is_dir() {
            folders.push(path);
        }
    }
    Ok(())
}

/// Whether the file system of the spool has room for segments of `segment_bytes` that are fetched or received ahead.
pub fn room(folder: &Path, segment_bytes: u64) -> Finding {
    let check = "room in the spool";
    let existing = { folder.ancestors() }.find(|path| path.exists());
    let free = existing.and_then(|path| {
        let found = rustix::fs::statvfs(path).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    });
    let wanted = segment_bytes.saturating_mul(SPOOLED_SEGMENTS);
    match free {
        Some(free) if free < wanted => Finding::warning(
            check,
            folder.display(),
            format!(
                "{} are free there, and {} are wanted for WAL that is fetched ahead; make room, or set spool_dir",
                bytes(free),
                bytes(wanted)
            ),
        ),
        Some(free) => Finding::ok(check, folder.display()).noting(format!("{} free", bytes(free))),
        None => Finding::warning(
            check,
            folder.display(),
            "how much is free there cannot be told",
        ),
    }
}

/// Whether a file with a secret is for its owner only.
pub fn secret(check: &'static str, file: &Path) -> Finding {
    match fs::metadata(file) {
        Ok(found) if users::is_open_to_others(&found) => Finding::warning(
            check,
            file.display(),
            format!(
                "others than its owner may read it (mode {:03o}): chmod 600 {}",
                found.mode() & 0o777,
                file.display()
            ),
        ),
        Ok(_) => Finding::ok(check, file.display()),
        Err(error) => Finding::failed(check, file.display(), format!("it cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn files_of_another_user_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        std::fs::create_dir(dir.path().join("wal")).unwrap();
        std::fs::write(dir.path().join("wal/one"), "").unwrap();
        let found = belongings("spool", dir.path(), own);
        assert_eq!(found.state, State::Ok);
        let found = belongings("spool", dir.path(), own + 1);
        assert_eq!(found.state, State::Failed);
        assert!(found.problem.unwrap().contains("wal/one"));
        let none = belongings("spool", &dir.path().join("none"), own);
        assert_eq!(none.state, State::Ok);
    }

    #[test]
    fn a_full_disk_and_an_open_secret_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("not/made/yet");
        assert_eq!(room(&spool, 1).state, State::Ok);
        assert_eq!(room(&spool, u64::MAX / 16).state, State::Warning);
        let file = dir.path().join("key");
        std::fs::write(&file, "").unwrap();
        let with_mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&file, mode).unwrap();
            secret("identity", &file).state
        };
        assert_eq!(with_mode(0o600), State::Ok);
        assert_eq!(with_mode(0o644), State::Warning);
        assert_eq!(secret("identity", &spool).state, State::Failed);
    }
}
