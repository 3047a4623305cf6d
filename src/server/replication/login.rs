//! From an address to a session that takes commands.

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use sqlx::postgres::PgSslMode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::wire::{Duplex, Fields, Message, Wire};
use super::{Problem, Session, refusal, tls};
use crate::server::connection::{Endpoint, Login};

/// Types of the server's messages.
const AUTHENTICATION: u8 = b'R';
const ERROR: u8 = b'E';
const READY: u8 = b'Z';
const PARAMETER: u8 = b'S';

/// A connection over which nothing comes is given up after two minutes.
const KEEPALIVE_AFTER_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// Opens a session of this kind; the server says its version.
pub(super) async fn open(login: &Login, session: Session) -> Result<(Wire, String), Problem> {
    let stream = connect(login).await?;
    let mut wire = Wire::new(stream);
    let mut parameters = vec![
        ("user", login.user.as_str()),
        ("database", login.database.as_str()),
        ("application_name", login.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    if let Some(options) = &login.options {
        parameters.push(("options", options));
    }
    if session == Session::Replication {
        parameters.push(("replication", "true"));
    }
    frontend::startup_message(parameters, &mut wire.output)?;
    wire.send().await?;
    authenticate(&mut wire, login, session).await?;
    let mut version = String::new();
    loop {
        let message = wire.receive().await?;
        match message.kind {
            READY => return Ok((wire, version)),
            PARAMETER => {
                let mut fields = Fields(message.body);
                if let (Some("server_version"), Some(value)) =
                    (fields.text().as_deref(), fields.text())
                {
                    version = value;
                }
            }
            ERROR => return Err(refusal("opening a session", &message.body)),
            _ => {}
        }
    }
}

async fn connect(login: &Login) -> Result<Box<dyn Duplex>, Problem> {
    let (host, port) = match &login.endpoint {
        Endpoint::Socket(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        Endpoint::Tcp(host, port) => (host, *port),
    };
    let mut stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    if matches!(login.encryption, PgSslMode::Disable) {
        return Ok(Box::new(stream));
    }
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // One byte, and nothing behind it: what somebody put there would be taken for the server's.
    match stream.read_u8().await? {
        b'S' => {
            let encrypted = tls::encrypt(stream, host, login).await;
            Ok(Box::new(encrypted.map_err(Problem::Tls)?))
        }
        _ => Err(Problem::NoTls),
    }
}

/// Lets the system notice that the other end is gone, while the server has nothing to say for as long as its checkpoint takes.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_AFTER_SECONDS)?;
    setsockopt(
        stream,
        sockopt::TcpKeepInterval,
        &KEEPALIVE_INTERVAL_SECONDS,
    )?;
    Ok(setsockopt(
        stream,
        sockopt::TcpKeepCount,
        &KEEPALIVE_PROBES,
    )?)
}

async fn authenticate(wire: &mut Wire, login: &Login, session: Session) -> Result<(), Problem> {
    let password = match session {
        Session::Replication => &login.replication_password,
        Session::Sql => &login.password,
    };
    let password = || password.as_deref().ok_or(Problem::NoPassword);
    loop {
        let message = wire.receive().await?;
        if message.kind == ERROR {
            return Err(refusal("logging in", &message.body));
        }
        let mut fields = asked(&message)?;
        match fields.i32() {
            Some(0) => return Ok(()),
            Some(3) => frontend::password_message(password()?.as_bytes(), &mut wire.output)?,
            Some(5) => {
                let salt = fields
                    .bytes(4)
                    .and_then(|salt| <[u8; 4]>::try_from(&salt[..]).ok());
                let salt = salt.ok_or(Problem::Unexpected("a salt that is cut"))?;
                let hash = md5_hash(login.user.as_bytes(), password()?.as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), &mut wire.output)?;
            }
            Some(10) => {
                scram(wire, fields, password()?).await?;
                continue;
            }
            _ => return Err(Problem::Unsupported),
        }
        wire.send().await?;
    }
}

/// What an authentication request says.
fn asked(message: &Message) -> Result<Fields, Problem> {
    if message.kind == AUTHENTICATION {
        Ok(Fields(message.body.clone()))
    } else {
        Err(Problem::Unexpected("no question for a password"))
    }
}

/// SCRAM-SHA-256, in which the server shows too that it knows the password.
async fn scram(wire: &mut Wire, mut mechanisms: Fields, password: &str) -> Result<(), Problem> {
    let mut is_known = false;
    while let Some(mechanism) = mechanisms.text().filter(|name| !name.is_empty()) {
        is_known |= mechanism == SCRAM_SHA_256;
    }
    if !is_known {
        return Err(Problem::Unsupported);
    }
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut wire.output)?;
    wire.send().await?;
    let challenge = sasl(wire, 11).await?;
    scram.update(&challenge).map_err(Problem::Scram)?;
    frontend::sasl_response(scram.message(), &mut wire.output)?;
    wire.send().await?;
    let proof = sasl(wire, 12).await?;
    scram.finish(&proof).map_err(Problem::Scram)
}

/// The next message of the exchange, which must be of this step.
async fn sasl(wire: &mut Wire, step: i32) -> Result<bytes::Bytes, Problem> {
    let message = wire.receive().await?;
    if message.kind == ERROR {
        return Err(refusal("logging in", &message.body));
    }
    let mut fields = asked(&message)?;
    match fields.i32() {
        Some(kind) if kind == step => Ok(fields.0),
        _ => Err(Problem::Unexpected("another step of SCRAM")),
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}
