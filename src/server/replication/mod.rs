//! A server's replication protocol: WAL as it is written.
//!
//! ```text
//! Login ─▶ socket, TLS, password ─▶ commands ─▶ START_REPLICATION ─▶ WAL, keepalives ─▶ the timeline's end
//!   login, tls                      text rows                      ◀─ positions that are durable
//! ```
//!
//! Source: PostgreSQL's manual, "Streaming Replication Protocol". The driver does not speak it, so that the few messages are
//! here; those that a client sends, and SCRAM, are of the crate `postgres-protocol`.

pub mod base_backup;
mod error;
mod login;
mod tls;
mod wire;

use std::io;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use postgres_protocol::message::frontend;
use walhalla_postgres::{Lsn, SegmentSize, SystemIdentifier, TimelineId, Version};

use super::connection::{self, Attempt, Wanted, note};
use super::session::ways;
pub use error::{Error, Problem};
use error::{UNDEFINED_FILE, UNDEFINED_OBJECT, refusal};
use wire::{Fields, Message, Wire};

/// Which kind of session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// It takes commands of the replication protocol.
    Replication,
    /// It takes SQL.
    Sql,
}

/// A session without the driver.
#[derive(Debug)]
pub struct Replication {
    wire: Wire,
    place: String,
    /// `server_version`
    version_text: String,
    /// How long the server may take for an answer.
    patience: Duration,
}

/// What a server says of itself (`IDENTIFY_SYSTEM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Up to where its WAL is on its disk.
    pub flushed: Lsn,
}

/// What the server says next while it streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// WAL from a position on.
    Wal(Lsn, Bytes),
    /// That it is there.
    Alive(Answer),
    /// That its timeline has ended here.
    EndOfTimeline,
}

/// Whether the server wants to hear at once what is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// At once.
    Wanted,
    /// As usual.
    Unneeded,
}

/// What became of `START_REPLICATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// WAL comes.
    Streaming,
    /// The timeline has ended there: the next one, and where it begins.
    Ended(Option<(TimelineId, Lsn)>),
}

impl Replication {
    /// Connects as libpq's variables, service and password files say.
    ///
    /// # Errors
    /// Of the last way that was tried and that may lead somewhere later, or else of the last.
    pub async fn connect(session: Session) -> Result<Self, Error> {
        let ways = ways(None)?;
        let mut failures = Vec::new();
        for (attempt, wanted) in ways.tries() {
            match Self::attempt(attempt, &ways, session, wanted).await {
                Ok(connection) => return Ok(connection),
                Err(error) => note(&mut failures, attempt, error),
            }
        }
        // What may pass comes first: of several hosts, the one that is away may come back as the one that is wanted.
        let passing = failures.iter().rposition(|(_, error)| error.is_passing());
        let at = passing.or(failures.len().checked_sub(1));
        let nowhere = || super::Error::from(walhalla_postgres::Error::invalid("PGHOST", "")).into();
        Err(at.map_or_else(nowhere, |at| failures.swap_remove(at).1))
    }

    async fn attempt(
        attempt: &Attempt,
        ways: &connection::Connection,
        session: Session,
        wanted: Wanted,
    ) -> Result<Self, Error> {
        let place = format!("{} as role {:?}", attempt.place, attempt.login.user);
        let opened = login::open(&attempt.login, session);
        let opened = within(ways.timeout, opened).await;
        let (wire, version_text) = opened.map_err(|problem| Error::of(&place, problem))?;
        let mut connection = Self {
            wire,
            place,
            version_text,
            patience: ANSWERING,
        };
        let is_wanted = match wanted {
            Wanted::Any | Wanted::PreferStandby => true,
            Wanted::Primary | Wanted::ReadWrite => !connection.is_read_only().await?,
            Wanted::Standby | Wanted::ReadOnly => connection.is_read_only().await?,
        };
        let place = connection.place.clone();
        is_wanted
            .then_some(connection)
            .ok_or(Error::Unwanted { place })
    }

    /// A standby's sessions are, and only they unless that is set so.
    async fn is_read_only(&mut self) -> Result<bool, Error> {
        Ok(self.show("transaction_read_only").await? == "on")
    }

    /// Where the server is.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// `IDENTIFY_SYSTEM`
    ///
    /// # Errors
    /// The session's.
    pub async fn identify(&mut self) -> Result<Identity, Error> {
        let row = self.row("IDENTIFY_SYSTEM", "IDENTIFY_SYSTEM").await?;
        let text = |index: usize| {
            let field = row.get(index).and_then(Option::as_deref);
            String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
        };
        let parse = || {
            Ok::<_, Problem>(Identity {
                system_identifier: text(0).parse()?,
                timeline: timeline(&text(1))?,
                flushed: text(2).parse()?,
            })
        };
        parse().map_err(|problem| self.error(problem))
    }

    /// A setting of the server, as `SHOW` tells it.
    ///
    /// # Errors
    /// The session's.
    pub async fn show(&mut self, setting: &'static str) -> Result<String, Error> {
        let doing = format!("SHOW {setting}");
        self.text(&doing, &doing).await
    }

    /// The same of a size, in bytes.
    ///
    /// # Errors
    /// The session's.
    pub async fn shown_bytes(&mut self, setting: &'static str) -> Result<Option<u64>, Error> {
        Ok(bytes_of(&self.show(setting).await?))
    }

    /// The server's version.
    ///
    /// # Errors
    /// That Walhalla does not know it.
    pub fn version(&self) -> Result<Version, Error> {
        let version = Version::of_server_text(&self.version_text);
        version.map_err(|error| self.error(error.into()))
    }

    /// The server's version in its own words.
    pub fn version_text(&self) -> &str {
        &self.version_text
    }

    /// The server's clock, which it tells who asks for WAL.
    ///
    /// # Errors
    /// The session's.
    pub async fn clock(&mut self) -> Result<Timestamp, Error> {
        let Identity {
            timeline, flushed, ..
        } = self.identify().await?;
        self.start(None, flushed, timeline).await?;
        let patience = Some(self.patience);
        let clock = within(patience, self.told_clock()).await;
        let clock = clock.map_err(|problem| self.error(problem))?;
        self.end_of_timeline().await?;
        Ok(clock)
    }

    async fn told_clock(&mut self) -> Result<Timestamp, Problem> {
        self.copy_data(&status(Lsn::ZERO, Lsn::ZERO, ANSWER_AT_ONCE))
            .await?;
        loop {
            let message = self.wire.receive().await?;
            let at = match (message.kind, message.body.first()) {
                // Behind where the server's WAL ends.
                (b'd', Some(b'k')) => 9,
                // Behind where this WAL begins and the server's ends.
                (b'd', Some(b'w')) => 17,
                (b'E', _) => return Err(refusal("asking for the clock", &message.body)),
                (b'c', _) => return Err(Problem::Unexpected("an end of WAL")),
                _ => continue,
            };
            let bytes = message.body.get(at..).and_then(|rest| rest.first_chunk());
            let microseconds = bytes.map(|bytes| i64::from_be_bytes(*bytes) + EPOCH_MICROSECONDS);
            let clock = microseconds.and_then(|clock| Timestamp::from_microsecond(clock).ok());
            return clock.ok_or(Problem::Unexpected("a clock that is cut"));
        }
    }

    /// Length of the server's WAL segments.
    ///
    /// # Errors
    /// The session's.
    pub async fn segment_size(&mut self) -> Result<SegmentSize, Error> {
        if !self.version()?.shows_settings_to_replication() {
            // It is the same in all builds that are known; a segment's own header is compared with it.
            return Ok(SegmentSize::DEFAULT);
        }
        let setting = "wal_segment_size";
        let bytes = self.shown_bytes(setting).await?;
        let size = bytes.and_then(SegmentSize::new);
        let shown = bytes.unwrap_or_default().to_string();
        let unknown = walhalla_postgres::Error::invalid(setting, shown);
        size.ok_or_else(|| self.error(unknown.into()))
    }

    /// Makes a physical slot that holds WAL from now on, unless there is one of this name.
    ///
    /// # Errors
    /// The session's.
    pub async fn create_slot(&mut self, slot: &str) -> Result<(), Error> {
        let doing = format!("creating replication slot {slot}");
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL RESERVE_WAL");
        match self.rows(&doing, &command).await {
            Err(error) if error.code() == Some(DUPLICATE_OBJECT) => Ok(()),
            created => created.map(drop),
        }
    }

    /// Makes a slot that holds WAL from now on until the session ends, of a server from 10 on.
    ///
    /// # Errors
    /// The session's.
    pub async fn create_temporary_slot(&mut self, slot: &str) -> Result<(), Error> {
        let doing = format!("creating temporary replication slot {slot}");
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY PHYSICAL RESERVE_WAL");
        self.rows(&doing, &command).await.map(drop)
    }

    /// Whether the server has removed the WAL that it was asked for.
    pub fn has_removed(error: &Error) -> bool {
        error.code() == Some(UNDEFINED_FILE)
    }

    /// Where a slot holds WAL from, of a server from 15 on; `None` where it holds none.
    ///
    /// # Errors
    /// The session's; [`Problem::Refused`] with `undefined_object` where there is no such slot.
    pub async fn slot_position(&mut self, slot: &str) -> Result<Option<Lsn>, Error> {
        let doing = format!("reading replication slot {slot}");
        let command = format!("READ_REPLICATION_SLOT \"{slot}\"");
        let row = self.row(&doing, &command).await?;
        let field = |index: usize| row.get(index).cloned().flatten();
        if field(0).is_none() {
            return Err(self.no_slot(slot));
        }
        self.lsn(field(1))
    }

    /// The same of an older server, which tells it to sessions for SQL only.
    ///
    /// # Errors
    /// The session's.
    pub async fn slot_position_by_sql(&mut self, slot: &str) -> Result<Option<Lsn>, Error> {
        let doing = format!("looking for replication slot {slot}");
        let slot_literal = slot.replace('\'', "''");
        let query = format!(
            "SELECT restart_lsn::pg_catalog.text FROM pg_catalog.pg_replication_slots \
             WHERE slot_name OPERATOR(pg_catalog.=) '{slot_literal}' AND slot_type OPERATOR(pg_catalog.=) 'physical'"
        );
        let rows = self.rows(&doing, &query).await?;
        match rows.into_iter().next() {
            Some(row) => self.lsn(row.into_iter().next().flatten()),
            None => Err(self.no_slot(slot)),
        }
    }

    /// The server's control file, where this user may read it.
    ///
    /// # Errors
    /// The session's.
    pub async fn control_file(&mut self) -> Result<Vec<u8>, Error> {
        let query =
            "SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file('global/pg_control'), 'hex')";
        let text = self.text("reading the control file", query).await?;
        let damaged = Problem::Unexpected("a control file that is not hexadecimal");
        hex::decode(text).map_err(|_| self.error(damaged))
    }

    /// The text of a timeline's history file.
    ///
    /// # Errors
    /// The session's.
    pub async fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, Error> {
        let number = timeline.number();
        let doing = format!("asking for the history of timeline {number}");
        let row = self
            .row(&doing, &format!("TIMELINE_HISTORY {number}"))
            .await?;
        let text = row.get(1).cloned().flatten();
        let missing = Problem::Unexpected("no content of a history file");
        Ok(text.ok_or_else(|| self.error(missing))?.to_vec())
    }

    /// Lets WAL come, of `timeline` from `from` on.
    ///
    /// # Errors
    /// The session's.
    pub async fn start(
        &mut self,
        slot: Option<&str>,
        from: Lsn,
        timeline: TimelineId,
    ) -> Result<Started, Error> {
        let number = timeline.number();
        let slot = slot.map(|slot| format!("SLOT \"{slot}\" "));
        let slot = slot.unwrap_or_default();
        let doing = format!("streaming WAL of timeline {number} from {from}");
        let command = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {number}");
        let patience = Some(self.patience);
        let started = async {
            self.command(&command).await?;
            let message = self.wire.receive().await?;
            match message.kind {
                b'W' => Ok(None),
                b'E' => Err(refusal(&doing, &message.body)),
                _ => self.rest_of_rows(&doing, Some(message)).await.map(Some),
            }
        };
        let started = within(patience, started).await;
        match started.map_err(|problem| self.error(problem))? {
            None => Ok(Started::Streaming),
            Some(rows) => Ok(Started::Ended(self.next_timeline(&rows)?)),
        }
    }

    /// The next WAL, which must be from `from` on; `None` where its timeline has ended.
    ///
    /// # Errors
    /// The session's. A server that sends no WAL for as long as an answer may take is given up, whatever else it says.
    pub async fn next_wal(&mut self, from: Lsn) -> Result<Option<Bytes>, Error> {
        let patience = Some(self.patience);
        let next = async {
            loop {
                let message = self.wire.receive().await?;
                match understood(message)? {
                    Some(Received::Wal(at, bytes)) if at == from => return Ok(Some(bytes)),
                    Some(Received::Wal(..)) => {
                        return Err(Problem::Unexpected("WAL of another position than was due"));
                    }
                    Some(Received::EndOfTimeline) => return Ok(None),
                    // Who does not answer is taken for gone. Nothing is called durable: no commit is to wait for this session.
                    Some(Received::Alive(Answer::Wanted)) => {
                        self.copy_data(&status(Lsn::ZERO, Lsn::ZERO, 0)).await?;
                    }
                    Some(Received::Alive(Answer::Unneeded)) | None => {}
                }
            }
        };
        let next = within(patience, next).await;
        next.map_err(|problem| self.error(problem))
    }

    /// What the server says next. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// The session's.
    pub async fn next(&mut self) -> Result<Received, Error> {
        loop {
            let message = self.wire.receive().await;
            let message = message.map_err(|error| self.error(error.into()))?;
            let received = understood(message).map_err(|problem| self.error(problem))?;
            if let Some(received) = received {
                return Ok(received);
            }
        }
    }

    /// The same, if it has been said.
    ///
    /// # Errors
    /// The session's.
    pub fn heard(&mut self) -> Result<Option<Received>, Error> {
        loop {
            let message = self.wire.received();
            let Some(message) = message.map_err(|error| self.error(error.into()))? else {
                return Ok(None);
            };
            let received = understood(message).map_err(|problem| self.error(problem))?;
            if received.is_some() {
                return Ok(received);
            }
        }
    }

    /// Tells the server what was received, and what of it is durable.
    ///
    /// # Errors
    /// The session's.
    pub async fn report(&mut self, received: Lsn, durable: Lsn) -> Result<(), Error> {
        let sent = self.copy_data(&status(received, durable, 0)).await;
        sent.map_err(|problem| self.error(problem))
    }

    async fn copy_data(&mut self, body: &[u8]) -> Result<(), Problem> {
        frontend::CopyData::new(body)?.write(&mut self.wire.output);
        Ok(self.wire.send().await?)
    }

    /// Ends the stream after the timeline's end: the next timeline, and where it begins.
    ///
    /// # Errors
    /// The session's.
    pub async fn end_of_timeline(&mut self) -> Result<Option<(TimelineId, Lsn)>, Error> {
        frontend::copy_done(&mut self.wire.output);
        let patience = Some(self.patience);
        let rows = async {
            self.wire.send().await?;
            self.rest_of_rows("ending a timeline", None).await
        };
        let rows = within(patience, rows).await;
        let rows = rows.map_err(|problem| self.error(problem))?;
        self.next_timeline(&rows)
    }

    /// Ends the stream and the session, as far as that is still possible.
    pub async fn close(mut self) {
        frontend::copy_done(&mut self.wire.output);
        frontend::terminate(&mut self.wire.output);
        drop(tokio::time::timeout(CLOSING, self.wire.send()).await);
    }

    fn next_timeline(&self, rows: &[Row]) -> Result<Option<(TimelineId, Lsn)>, Error> {
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let text = |index: usize| {
            let field = row.get(index).and_then(Option::as_deref);
            String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
        };
        let parse = || Ok::<_, Problem>((timeline(&text(0))?, text(1).parse()?));
        parse().map(Some).map_err(|problem| self.error(problem))
    }

    fn lsn(&self, field: Option<Bytes>) -> Result<Option<Lsn>, Error> {
        let parse = |text: Bytes| String::from_utf8_lossy(&text).parse();
        let lsn = field.map(parse).transpose();
        lsn.map_err(|error: walhalla_postgres::Error| self.error(error.into()))
    }

    fn no_slot(&self, slot: &str) -> Error {
        self.error(Problem::Refused {
            doing: format!("reading replication slot {slot}"),
            code: UNDEFINED_OBJECT.to_owned(),
            message: format!("physical replication slot \"{slot}\" does not exist"),
        })
    }

    async fn text(&mut self, doing: &str, query: &str) -> Result<String, Error> {
        let row = self.row(doing, query).await?;
        let field = row.into_iter().next().flatten().unwrap_or_default();
        Ok(String::from_utf8_lossy(&field).into_owned())
    }

    async fn row(&mut self, doing: &str, query: &str) -> Result<Row, Error> {
        let rows = self.rows(doing, query).await?;
        let none = Problem::Unexpected("no row as its answer");
        rows.into_iter().next().ok_or_else(|| self.error(none))
    }

    async fn rows(&mut self, doing: &str, query: &str) -> Result<Vec<Row>, Error> {
        let patience = Some(self.patience);
        let rows = async {
            self.command(query).await?;
            self.rest_of_rows(doing, None).await
        };
        let rows = within(patience, rows).await;
        rows.map_err(|problem| self.error(problem))
    }

    async fn command(&mut self, query: &str) -> Result<(), Problem> {
        frontend::query(query, &mut self.wire.output)?;
        Ok(self.wire.send().await?)
    }

    /// The rows of an answer, to its end.
    async fn rest_of_rows(
        &mut self,
        doing: &str,
        first: Option<Message>,
    ) -> Result<Vec<Row>, Problem> {
        let (mut rows, mut refused, mut next) = (Vec::new(), None, first);
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => self.wire.receive().await?,
            };
            match message.kind {
                b'D' => {
                    rows.push(row(message.body).ok_or(Problem::Unexpected("a row that is cut"))?);
                }
                b'E' => refused = Some(refusal(doing, &message.body)),
                b'Z' => return refused.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    fn error(&self, problem: Problem) -> Error {
        Error::of(&self.place, problem)
    }
}

/// What the server is told of the WAL that was received. Nothing is replayed here.
fn status(received: Lsn, durable: Lsn, answer: u8) -> BytesMut {
    // The server uses it for nothing but its view.
    let now = Timestamp::now().as_microsecond() - EPOCH_MICROSECONDS;
    let mut body = BytesMut::with_capacity(34);
    body.put_u8(b'r');
    body.put_u64(received.0);
    body.put_u64(durable.0);
    body.put_u64(0);
    body.put_i64(now);
    body.put_u8(answer);
    body
}

/// The begin of 2000, from which PostgreSQL counts, in microseconds since 1970.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
const ANSWER_AT_ONCE: u8 = 1;

/// Fields of a row.
type Row = Vec<Option<Bytes>>;

/// How long a server may take for an answer.
const ANSWERING: Duration = Duration::from_mins(1);
/// How long the end of a session is waited for.
const CLOSING: Duration = Duration::from_secs(2);
const DUPLICATE_OBJECT: &str = "42710";

async fn within<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .unwrap_or(Err(Problem::TimedOut(limit.as_secs()))),
        None => work.await,
    }
}

fn timeline(text: &str) -> Result<TimelineId, Problem> {
    let number = text.parse().ok().and_then(TimelineId::new);
    Ok(number.ok_or_else(|| walhalla_postgres::Error::invalid("timeline", text))?)
}

/// A number with a unit, as `SHOW` spells it.
fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text.strip_prefix(digits)? {
        "B" | "" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// What a message says while the server streams.
fn understood(message: Message) -> Result<Option<Received>, Problem> {
    match message.kind {
        b'd' => streamed(message.body).map(Some),
        b'c' => Ok(Some(Received::EndOfTimeline)),
        b'E' => Err(refusal("streaming WAL", &message.body)),
        // The server shuts down, and has sent all.
        b'C' => Err(Problem::Broken(io::ErrorKind::ConnectionAborted.into())),
        _ => Ok(None),
    }
}

/// What a message within the stream says.
fn streamed(body: Bytes) -> Result<Received, Problem> {
    let mut fields = Fields(body);
    let cut = || Problem::Unexpected("a message that is cut");
    match fields.u8() {
        Some(b'w') => {
            let start = Lsn(fields.u64().ok_or_else(cut)?);
            // Its end of WAL and its clock.
            fields.bytes(16).ok_or_else(cut)?;
            Ok(Received::Wal(start, fields.0))
        }
        Some(b'k') => {
            fields.bytes(16).ok_or_else(cut)?;
            Ok(Received::Alive(match fields.u8() {
                Some(1) => Answer::Wanted,
                _ => Answer::Unneeded,
            }))
        }
        _ => Err(Problem::Unexpected(
            "a message within the stream that is neither WAL nor a sign of life",
        )),
    }
}

fn row(body: Bytes) -> Option<Row> {
    let mut fields = Fields(body);
    let count = fields.u16()?;
    let mut row = Vec::new();
    for _ in 0..count {
        let length = fields.i32()?;
        row.push(match usize::try_from(length) {
            Ok(length) => Some(fields.bytes(length)?),
            Err(_) => None,
        });
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("16MB", Some(16 << 20)),
            ("1GB", Some(1 << 30)),
            ("2048kB", Some(2 << 20)),
            ("16777216", Some(16 << 20)),
            ("16TBs", None),
            ("MB", None),
            ("99999999999999999GB", None),
        ] {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_sends_no_wal_is_given_up_whatever_else_it_says() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut connection = Replication {
            wire: Wire::new(Box::new(near)),
            place: "db1".to_owned(),
            version_text: "17.1".to_owned(),
            patience: Duration::from_millis(100),
        };
        let message = |length: u32, body: &[&[u8]]| {
            let head = [&b"d"[..], &(length + 4).to_be_bytes()].concat();
            [head, body.concat()].concat()
        };
        let wal = message(28, &[b"w", &7_u64.to_be_bytes(), &[0; 16], b"wal"]);
        let alive = message(18, &[b"k", &[0; 16], &[ANSWER_AT_ONCE]]);
        far.write_all(&[&wal[..], &alive, &wal].concat())
            .await
            .unwrap();
        let next = connection.next_wal(Lsn(7)).await.unwrap();
        assert_eq!(next.as_deref(), Some(&b"wal"[..]));
        // What is due follows what came.
        let error = connection.next_wal(Lsn(10)).await.unwrap_err();
        assert!(error.to_string().contains("another position"), "{error}");
        let mut answer = [0; 39];
        far.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..6], *b"d\0\0\0\x26r");
        assert_eq!(answer[6..30], [0; 24], "something was called durable");
        far.write_all(&alive).await.unwrap();
        let error = connection.next_wal(Lsn(10)).await.unwrap_err();
        let is_silence = matches!(
            &error,
            Error::Session {
                problem: Problem::TimedOut(_),
                ..
            }
        );
        assert!(is_silence && error.is_passing(), "{error}");
    }

    #[test]
    fn messages_that_are_cut_are_no_reason_to_panic() {
        let wal = [&b"w"[..], &[0; 24], b"bytes"].concat();
        assert!(matches!(
            streamed(Bytes::from(wal.clone())).unwrap(),
            Received::Wal(Lsn(0), bytes) if bytes == "bytes"
        ));
        for length in 0..25 {
            assert!(streamed(Bytes::from(wal[..length].to_vec())).is_err());
        }
        let cells = [&[0, 2, 0, 0, 0, 1][..], b"a", &[255; 4]].concat();
        let read = row(Bytes::from(cells.clone())).unwrap();
        assert_eq!(read, [Some(Bytes::from_static(b"a")), None]);
        for length in 0..cells.len() {
            assert_eq!(row(Bytes::from(cells[..length].to_vec())), None);
        }
        let error = [&b"SERROR\0C42704\0Mno such slot\0"[..], &[0]].concat();
        for length in 0..=error.len() {
            refusal("x", &Bytes::from(error[..length].to_vec()));
        }
    }
}
