//! Why a session failed, and what helps.

use std::io;

use bytes::Bytes;

use super::wire::Fields;
use crate::failure::{Advice, Failure};
use crate::server;
use crate::server::connection::Tried;

pub(super) const UNDEFINED_OBJECT: &str = "42704";
const OBJECT_IN_USE: &str = "55006";
const TOO_MANY_CONNECTIONS: &str = "53300";
pub(super) const UNDEFINED_FILE: &str = "58P01";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const NOT_IN_PREREQUISITE_STATE: &str = "55000";

/// What went wrong with a session.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The connection broke, or there was none.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The server said no.
    #[error("{doing} failed: {message} (SQLSTATE {code})")]
    Refused {
        /// What was asked of it.
        doing: String,
        /// Its SQLSTATE.
        code: String,
        /// Its words.
        message: String,
    },
    /// It did not answer in time.
    #[error("it did not answer within {0} s")]
    TimedOut(u64),
    /// It does not encrypt, and that is demanded.
    #[error("the server does not encrypt connections, and PGSSLMODE demands it")]
    NoTls,
    /// Encryption failed.
    #[error("the connection could not be encrypted")]
    Tls(#[source] io::Error),
    /// It asks for a password and there is none.
    #[error("the server asks for a password and none is set")]
    NoPassword,
    /// It does not know the password, or the one who answers is not the server.
    #[error("SCRAM failed: the password is wrong, or this is not the server that knows it")]
    Scram(#[source] io::Error),
    /// It asks for what is not known here.
    #[error("the server asks for a way of logging in that Walhalla does not know")]
    Unsupported,
    /// It does not say what the protocol tells.
    #[error("the server sent {0}")]
    Unexpected(&'static str),
    /// A text of it cannot be understood.
    #[error(transparent)]
    Format(#[from] walhalla_postgres::Error),
}

/// A problem, and with which server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings of the connection.
    #[error(transparent)]
    Settings(#[from] server::Error),
    /// A session.
    #[error("PostgreSQL at {place}: {problem}")]
    Session {
        /// The socket, or host and port.
        place: String,
        /// What went wrong.
        problem: Problem,
        /// What is beneath it.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A server of another kind than is asked for.
    #[error("the server at {place} is not of the kind that PGTARGETSESSIONATTRS asks for")]
    Unwanted {
        /// The socket, or host and port.
        place: String,
    },
}

/// What an error message of the server says.
pub(super) fn refusal(doing: &str, body: &Bytes) -> Problem {
    let mut fields = Fields(body.clone());
    let (mut code, mut message) = (String::new(), String::new());
    while let Some(kind) = fields.u8().filter(|kind| *kind != 0) {
        let Some(text) = fields.text() else { break };
        match kind {
            b'C' => code = text,
            b'M' => message = text,
            _ => {}
        }
    }
    Problem::Refused {
        doing: doing.to_owned(),
        code,
        message,
    }
}

impl Error {
    pub(super) fn of(place: &str, problem: Problem) -> Self {
        let (problem, source) = match problem {
            Problem::Broken(source) => {
                let kind = source.kind();
                (Problem::Broken(kind.into()), Some(source.into()))
            }
            Problem::Tls(source) => (Problem::Tls(source.kind().into()), Some(source.into())),
            Problem::Scram(source) => (Problem::Scram(source.kind().into()), Some(source.into())),
            problem => (problem, None),
        };
        Self::Session {
            place: place.to_owned(),
            problem,
            source,
        }
    }

    /// The server's SQLSTATE, if it said no.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Session {
                problem: Problem::Refused { code, .. },
                ..
            } => Some(code),
            _ => None,
        }
    }

    /// Whether it may be otherwise later: the server is away, starts or stops, has no place left, or still holds the slot for
    /// a connection that is gone.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Settings(_) => false,
            Self::Unwanted { .. } => true,
            Self::Session { problem, .. } => match problem {
                Problem::Broken(_) | Problem::TimedOut(_) => true,
                Problem::Refused { code, .. } => {
                    code.starts_with("57P")
                        || code.starts_with("08")
                        || code.starts_with("53")
                        || code == OBJECT_IN_USE
                }
                _ => false,
            },
        }
    }
}

impl Tried for Error {
    fn is_without_tls(&self) -> bool {
        matches!(
            self,
            Self::Session {
                problem: Problem::NoTls,
                ..
            }
        )
    }
}

impl Failure for Error {
    fn hint(&self) -> Option<Advice> {
        let problem = match self {
            Self::Settings(error) => return error.hint(),
            Self::Unwanted { .. } => {
                let text = "name a server of that kind in PGHOST, or change PGTARGETSESSIONATTRS (any, primary, standby, …)";
                return Some(text.into());
            }
            Self::Session { problem, .. } => problem,
        };
        let text = match problem {
            Problem::Broken(_) | Problem::TimedOut(_) => {
                "PGHOST, PGPORT, PGUSER and PGPASSFILE say how to connect, as for pg_receivewal"
            }
            Problem::NoPassword | Problem::Scram(_) => {
                "PGPASSFILE or PGPASSWORD give the password; in a password file the database is `replication` or *"
            }
            Problem::Refused { code, .. } => match code.as_str() {
                UNDEFINED_OBJECT => "--create-slot makes the slot",
                OBJECT_IN_USE => {
                    "another receiver uses the slot, or the server has not noticed yet that the last one is gone; each needs a \
                     slot of its own"
                }
                UNDEFINED_FILE => {
                    "the server has removed this WAL: what is missing in the archive must come by wal-push; take a base backup, and \
                     use --slot, which keeps WAL until it is stored"
                }
                INSUFFICIENT_PRIVILEGE => {
                    "the role needs the attribute REPLICATION: ALTER ROLE name REPLICATION"
                }
                TOO_MANY_CONNECTIONS => {
                    "each receiver and standby takes one of max_wal_senders; it must be above 0, with wal_level = replica"
                }
                NOT_IN_PREREQUISITE_STATE => {
                    "set wal_level = replica, and max_wal_senders and max_replication_slots above 0, and restart the server"
                }
                "28000" => "pg_hba.conf needs a line for the database `replication` and this user",
                "28P01" => {
                    "the password is wrong; in a password file the database is `replication` or *"
                }
                _ => return None,
            },
            Problem::Tls(_) | Problem::NoTls => {
                "PGSSLMODE and PGSSLROOTCERT say what is demanded of the server's certificate"
            }
            Problem::Unsupported | Problem::Unexpected(_) | Problem::Format(_) => return None,
        };
        Some(text.into())
    }
}
