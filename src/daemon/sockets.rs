//! The Unix socket: made for its owner only, and spoken on with processes of the same user only.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::fs::Mode;
use rustix::process::{Uid, geteuid};

/// Rights of the socket: its owner's only.
const SOCKET_MODE: u32 = 0o600;
/// What a umask has to take for that.
const OTHERS: u32 = 0o177;

/// Listens on a new socket at `path`. One that a dead daemon left is replaced.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] where a daemon listens, or something else than a socket stands there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if is_left_over(path)? {
        fs::remove_file(path)?;
    }
    // The socket is its owner's from the first moment on. No other thread makes files yet.
    let before = rustix::process::umask(Mode::from(OTHERS));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Whether a socket stands there on which nobody listens.
fn is_left_over(path: &Path) -> io::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// That the process that asks is of the same user.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] where it is not.
pub fn must_be_own(connection: &UnixStream) -> io::Result<()> {
    let peer = peer(connection)?;
    if peer == geteuid() {
        return Ok(());
    }
    Err(of_another(peer))
}

/// That the process that listens is of the same user, or root's: that is systemd where it opened the socket.
///
/// # Errors
/// As [`must_be_own`].
pub fn must_be_own_listener(connection: &UnixStream) -> io::Result<()> {
    let peer = peer(connection)?;
    if peer == geteuid() || peer.is_root() {
        return Ok(());
    }
    Err(of_another(peer))
}

/// The user of the other end. By nix, because rustix has no value for a process without a number here: that is one in another
/// container, which has a process namespace of its own.
fn peer(connection: &UnixStream) -> io::Result<Uid> {
    Ok(Uid::from_raw(
        getsockopt(connection, PeerCredentials)?.uid(),
    ))
}

fn of_another(user: Uid) -> io::Error {
    let problem = format!("the other end is a process of user {}", user.as_raw());
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
}

/// Which socket stands at a path: another daemon may put its own there.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_owners_and_one_that_was_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        must_be_own(&UnixStream::connect(&path).unwrap()).unwrap();
        let second = listen(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        drop(listen(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }
}
