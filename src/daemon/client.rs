//! Asking the daemon.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Answer, Request, receive, send};
use super::sockets::must_be_own;

/// How long the daemon is given for a segment. Its own requests end before.
const MOST_WAITING: Duration = Duration::from_secs(90);

/// What the daemon at `socket` answers; `None` where none answers in time, as if there were none.
pub fn ask(socket: &Path, request: &Request) -> Option<Answer> {
    match ask_once(socket, request) {
        Ok(answer) => Some(answer),
        Err(error) => {
            let is_absent = matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            );
            if !is_absent {
                tracing::info!("the daemon at {} is not used: {error}", socket.display());
            }
            None
        }
    }
}

fn ask_once(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut connection = UnixStream::connect(socket)?;
    must_be_own(&connection)?;
    connection.set_read_timeout(Some(MOST_WAITING))?;
    connection.set_write_timeout(Some(MOST_WAITING))?;
    send(&mut connection, request)?;
    receive(&mut connection)
}
