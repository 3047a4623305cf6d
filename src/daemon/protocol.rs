//! What is said on the socket: one line of JSON there, one back, and the end of the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spool::receipts::StoreIdentity;

/// Longest line.
const LIMIT_BYTES: u64 = 64 << 10;

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The version of who asks: only the same version is answered.
    pub version: String,
    /// The store of who asks.
    pub store: StoreIdentity,
    /// The data directory, an absolute path.
    pub pgdata: PathBuf,
    /// The segment's name.
    pub segment: String,
    /// What is to be done with it.
    pub work: Work,
}

/// What is to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Push it, and what is ready beside it.
    Push,
    /// Fetch it into the spool, and the next ones.
    Fetch,
}

/// What the daemon says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// There is a receipt now, if the spool could be written.
    Done,
    /// The work was tried and failed.
    Failed(Failed),
    /// The daemon does not do this: it has another version or store, or ends. Who asks works alone.
    Unfit(String),
}

/// Why the work failed, as a command would say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The error with its causes.
    pub message: String,
    /// What helps.
    pub hint: Option<String>,
}

/// Sends a line.
///
/// # Errors
/// The connection's.
pub fn send(connection: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    connection.write_all(&line)
}

/// Receives a line.
///
/// # Errors
/// The connection's; [`io::ErrorKind::UnexpectedEof`] where it ends within the line, and
/// [`io::ErrorKind::InvalidData`] for what is no such line.
pub fn receive<T: DeserializeOwned>(connection: &mut impl Read) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(connection.take(LIMIT_BYTES)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_through_and_what_is_cut_or_no_line_is_an_error() {
        let answers = [
            Answer::Done,
            Answer::Unfit("another version".to_owned()),
            Answer::Failed(Failed {
                message: "two\nlines".to_owned(),
                hint: None,
            }),
        ];
        for answer in answers {
            let mut line = Vec::new();
            send(&mut line, &answer).unwrap();
            assert_eq!(receive::<Answer>(&mut line.as_slice()).unwrap(), answer);
            for length in 0..line.len() {
                assert!(receive::<Answer>(&mut &line[..length]).is_err());
            }
        }
        let noise = b"\xff{}\n".as_slice();
        let wrong = receive::<Request>(&mut { noise }).unwrap_err();
        assert_eq!(wrong.kind(), io::ErrorKind::InvalidData);
        let long = vec![b' '; 1 << 20];
        assert!(receive::<Request>(&mut long.as_slice()).is_err());
    }
}
