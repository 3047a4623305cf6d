//! Asking the daemon.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{Answer, Request, Work, receive, send};
use super::sockets::must_be_own_listener;
use crate::spool::receipts::StoreIdentity;

/// How long the daemon is given for a segment that is pushed: its own requests end at about that time.
const PUSH_TIME: Duration = Duration::from_mins(1);
/// The same for one that is fetched.
const FETCH_TIME: Duration = Duration::from_secs(15);
/// The same once the server shuts down.
const STOPPING_TIME: Duration = Duration::from_secs(5);
/// How often the server is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// What the daemon at `socket` answers; `None` where none answers in time, as if there were none. The time is short where
/// `is_stopping` holds.
pub fn ask(socket: &Path, request: &Request, is_stopping: impl Fn() -> bool) -> Option<Answer> {
    let most = match request.work {
        Work::Push => PUSH_TIME,
        Work::Fetch => FETCH_TIME,
    };
    let connection = match connect(socket) {
        Ok(connection) => connection,
        Err(error) => {
            let is_absent = matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            );
            if !is_absent {
                not_used(socket, &error.to_string());
            }
            return None;
        }
    };
    let (sender, answers) = channel();
    let request = request.clone();
    // A daemon that hangs holds this thread only.
    thread::spawn(move || drop(sender.send(converse(connection, &request))));
    let (begun, mut stopping) = (Instant::now(), None);
    while begun.elapsed() < most {
        if is_stopping() && stopping.get_or_insert_with(Instant::now).elapsed() > STOPPING_TIME {
            break;
        }
        match answers.recv_timeout(INTERVAL) {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => {
                not_used(socket, &error.to_string());
                return None;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    not_used(socket, "it did not answer in time");
    None
}

/// Whether a daemon answers at `socket`.
pub fn answers(socket: &Path) -> bool {
    let nothing = Request {
        version: String::new(),
        store: StoreIdentity(String::new()),
        pgdata: PathBuf::new(),
        segment: String::new(),
        work: Work::Fetch,
    };
    let answer = ask(socket, &nothing, || false);
    matches!(answer, Some(Answer::Unfit(_)))
}

fn not_used(socket: &Path, reason: &str) {
    tracing::info!("the daemon at {} is not used: {reason}", socket.display());
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let connection = UnixStream::connect(socket)?;
    must_be_own_listener(&connection)?;
    Ok(connection)
}

fn converse(mut connection: UnixStream, request: &Request) -> io::Result<Answer> {
    send(&mut connection, request)?;
    receive(&mut connection)
}
