//! A base backup over the replication protocol (`BASE_BACKUP`).
//!
//! ```text
//! to 14:   start, tablespaces ─▶ a copy for each archive ─▶ end
//! from 15: start, tablespaces ─▶ one copy: new archive, its bytes, new archive, … ─▶ end
//! ```
//!
//! The archive of the data directory comes last. Source: PostgreSQL's manual, "Streaming Replication Protocol", and
//! basebackup.c, basebackup_copy.c.

use std::path::PathBuf;

use bytes::Bytes;
use postgres_protocol::message::frontend;
use walhalla_postgres::{Lsn, TimelineId, Version};

use super::wire::{Fields, Message};
use super::{Error, Problem, Replication, Row, refusal, timeline};
use crate::server::data_directory::Tablespace;

/// `ERRCODE_DATA_CORRUPTED`: what the server says after the end when it read pages with wrong checksums.
const DATA_CORRUPTED: &str = "XX001";
/// What is around a path in the server's messages, in any of its languages.
const QUOTES: &str = "\"«»“”„";
/// Bytes of a manifest that are sent at a time.
const SENT_BYTES: usize = 64 << 10;

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its version.
    pub version: Version,
    /// What it calls the backup.
    pub label: String,
    /// How many kilobytes a second it sends at most.
    pub most_kilobytes_a_second: Option<u32>,
    /// Whether it counts beforehand how much it will send, for which it walks the data directory.
    pub sizes: Sizes,
    /// Whether only what changed since the backup whose manifest was sent before is wanted.
    pub extent: Extent,
}

/// Whether the server says how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// It does.
    Counted,
    /// It does not.
    Unknown,
}

/// How much of the cluster is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Full,
    /// What changed.
    Incremental,
}

/// A backup that the server has begun.
#[derive(Debug)]
pub struct Begun {
    /// Where replay begins.
    pub start: Lsn,
    /// On this timeline.
    pub timeline: TimelineId,
    /// The tablespaces outside of the data directory, in the order of their archives.
    pub tablespaces: Vec<Tablespace>,
    /// How much will be sent, if it was counted.
    pub size_bytes: Option<u64>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A new archive begins; the one before it has ended.
    Archive,
    /// More of the archive.
    Data(Bytes),
    /// The server leaves out what is at this path, which is neither file nor directory. It is below the data directory, or
    /// that of a file in a tablespace.
    LeftOut(PathBuf),
    /// All archives have come.
    End,
}

/// How a backup ended.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// Replay must come this far.
    pub stop: Lsn,
    /// What the server says of pages that it found damaged.
    pub damage: Option<String>,
}

impl Request {
    fn command(&self) -> String {
        let label = self.label.replace('\'', "''");
        let rate = self.most_kilobytes_a_second;
        let words = |words: &[Option<String>], between: &str| {
            let words: Vec<&str> = words.iter().flatten().map(String::as_str).collect();
            words.join(between)
        };
        let word = |word: &str| Some(word.to_owned());
        let counted = self.sizes == Sizes::Counted;
        if !self.version.has_base_backup_options() {
            let words = words(
                &[
                    Some(format!("LABEL '{label}'")),
                    counted.then(|| "PROGRESS".to_owned()),
                    word("FAST"),
                    word("NOWAIT"),
                    rate.map(|rate| format!("MAX_RATE {rate}")),
                    word("TABLESPACE_MAP"),
                ],
                " ",
            );
            return format!("BASE_BACKUP {words}");
        }
        let words = words(
            &[
                Some(format!("LABEL '{label}'")),
                counted.then(|| "PROGRESS".to_owned()),
                word("CHECKPOINT 'fast'"),
                word("WAIT false"),
                rate.map(|rate| format!("MAX_RATE {rate}")),
                word("TABLESPACE_MAP"),
                word("TARGET 'client'"),
                (self.extent == Extent::Incremental).then(|| "INCREMENTAL".to_owned()),
            ],
            ", ",
        );
        format!("BASE_BACKUP ({words})")
    }
}

impl Replication {
    /// Sends the manifest of the backup that an incremental one is to stand on (`UPLOAD_MANIFEST`, from 17 on).
    ///
    /// # Errors
    /// The session's.
    pub async fn upload_manifest(&mut self, manifest: &[u8]) -> Result<(), Error> {
        let doing = "UPLOAD_MANIFEST";
        let sent = async {
            self.command(doing).await?;
            let message = self.wire.receive().await?;
            match message.kind {
                b'G' => {}
                b'E' => return Err(refusal(doing, &message.body)),
                _ => return Err(Problem::Unexpected("no wish for the manifest")),
            }
            for bytes in manifest.chunks(SENT_BYTES) {
                self.copy_data(bytes).await?;
            }
            frontend::copy_done(&mut self.wire.output);
            self.wire.send().await?;
            self.rest_of_rows(doing, None).await
        };
        let sent = sent.await;
        sent.map(drop).map_err(|problem| self.error(problem))
    }

    /// Has the server begin a backup, which takes as long as its checkpoint.
    ///
    /// # Errors
    /// The session's.
    pub async fn begin_backup(&mut self, request: &Request) -> Result<Begun, Error> {
        let begun = self.begun(request).await;
        begun.map_err(|problem| self.error(problem))
    }

    async fn begun(&mut self, request: &Request) -> Result<Begun, Problem> {
        self.command(&request.command()).await?;
        let start = self.rows_of_result().await?;
        let (start, timeline) = position(&start)?;
        let rows = self.rows_of_result().await?;
        let mut begun = Begun {
            start,
            timeline,
            tablespaces: Vec::new(),
            size_bytes: None,
        };
        for row in &rows {
            let text = |index| field(row, index);
            if let Some(kilobytes) = text(2).and_then(|size| size.parse::<u64>().ok()) {
                begun.size_bytes = Some(begun.size_bytes.unwrap_or(0) + (kilobytes << 10));
            }
            // The data directory has neither.
            let (Some(oid), Some(location)) = (text(0), text(1)) else {
                continue;
            };
            let oid = oid.parse();
            let oid = oid.map_err(|_| Problem::Unexpected("a tablespace without a number"))?;
            let location = PathBuf::from(location);
            begun.tablespaces.push(Tablespace { oid, location });
        }
        Ok(begun)
    }

    /// What comes next of a backup that has begun.
    ///
    /// # Errors
    /// The session's.
    pub async fn next_piece(&mut self, version: Version) -> Result<Piece, Error> {
        loop {
            let message = self.wire.receive().await;
            let message = message.map_err(|error| self.error(error.into()))?;
            if let Some(path) = left_out(&message) {
                return Ok(Piece::LeftOut(path));
            }
            let piece = if version.has_base_backup_options() {
                piece_of_one_copy(&message)
            } else {
                piece_of_copies(&message)
            };
            if let Some(piece) = piece.map_err(|problem| self.error(problem))? {
                return Ok(piece);
            }
        }
    }

    /// The end of a backup of which all pieces have come.
    ///
    /// # Errors
    /// The session's.
    pub async fn end_backup(&mut self) -> Result<Stopped, Error> {
        let ended = self.ended().await;
        ended.map_err(|problem| self.error(problem))
    }

    async fn ended(&mut self) -> Result<Stopped, Problem> {
        let (mut rows, mut damage) = (Vec::new(), None);
        loop {
            let message = self.wire.receive().await?;
            match message.kind {
                b'D' => rows.push(row(&message)?),
                b'E' => match refusal("BASE_BACKUP", &message.body) {
                    Problem::Refused { code, message, .. } if code == DATA_CORRUPTED => {
                        damage = Some(message);
                    }
                    problem => return Err(problem),
                },
                b'Z' => break,
                _ => {}
            }
        }
        let (stop, _) = position(&rows)?;
        Ok(Stopped { stop, damage })
    }

    /// The rows of one of several results.
    async fn rows_of_result(&mut self) -> Result<Vec<Row>, Problem> {
        let mut rows = Vec::new();
        loop {
            let message = self.wire.receive().await?;
            match message.kind {
                b'D' => rows.push(row(&message)?),
                b'C' => return Ok(rows),
                b'E' => return Err(refusal("BASE_BACKUP", &message.body)),
                b'Z' => return Err(Problem::Unexpected("an end where its backup begins")),
                _ => {}
            }
        }
    }
}

fn row(message: &Message) -> Result<Row, Problem> {
    super::row(message.body.clone()).ok_or(Problem::Unexpected("a row that is cut"))
}

fn field(row: &Row, index: usize) -> Option<String> {
    let field = row.get(index)?.as_ref()?;
    Some(String::from_utf8_lossy(field).into_owned())
}

/// A position and its timeline.
fn position(rows: &[Row]) -> Result<(Lsn, TimelineId), Problem> {
    let row = rows
        .first()
        .ok_or(Problem::Unexpected("a backup without a position"))?;
    let text = |index| field(row, index).unwrap_or_default();
    Ok((text(0).parse()?, timeline(&text(1))?))
}

/// What a warning says that the server leaves out, of which its files have no trace: `skipping special file "./base/5"`
/// (basebackup.c, `sendDir`). The words are in the server's language; the function's name and the path are not.
fn left_out(message: &Message) -> Option<PathBuf> {
    if message.kind != b'N' {
        return None;
    }
    let mut fields = Fields(message.body.clone());
    let (mut is_warning, mut is_walk, mut words) = (false, false, String::new());
    while let Some(kind) = fields.u8().filter(|kind| *kind != 0) {
        let text = fields.text()?;
        match kind {
            b'V' => is_warning = text == "WARNING",
            b'R' => is_walk = text == "sendDir",
            b'M' => words = text,
            _ => {}
        }
    }
    if !is_warning || !is_walk {
        return None;
    }
    let path = words.split(|quote| QUOTES.contains(quote)).nth(1);
    let path = path.unwrap_or(&words).trim();
    Some(PathBuf::from(path.strip_prefix("./").unwrap_or(path)))
}

/// To 14 each archive is a copy of its own.
fn piece_of_copies(message: &Message) -> Result<Option<Piece>, Problem> {
    match message.kind {
        b'H' => Ok(Some(Piece::Archive)),
        b'd' => Ok(Some(Piece::Data(message.body.clone()))),
        // The rows with the end of the backup follow the last archive.
        b'T' => Ok(Some(Piece::End)),
        b'E' => Err(refusal("BASE_BACKUP", &message.body)),
        _ => Ok(None),
    }
}

/// From 15 on the first byte of each message says what it is (basebackup_copy.c, `bbsink_copystream`).
fn piece_of_one_copy(message: &Message) -> Result<Option<Piece>, Problem> {
    match message.kind {
        b'd' => {
            let mut fields = Fields(message.body.clone());
            match fields.u8() {
                Some(b'n') => Ok(Some(Piece::Archive)),
                Some(b'd') => Ok(Some(Piece::Data(fields.0))),
                // How far it is.
                Some(b'p') => Ok(None),
                _ => Err(Problem::Unexpected(
                    "a message within a backup that is no part of it",
                )),
            }
        }
        b'c' => Ok(Some(Piece::End)),
        b'E' => Err(refusal("BASE_BACKUP", &message.body)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: &str) -> Request {
        Request {
            version: Version::parse(version).unwrap(),
            label: "it's".to_owned(),
            most_kilobytes_a_second: Some(1024),
            sizes: Sizes::Unknown,
            extent: Extent::Full,
        }
    }

    #[test]
    fn each_version_is_asked_as_it_understands() {
        assert_eq!(
            request("14").command(),
            "BASE_BACKUP LABEL 'it''s' FAST NOWAIT MAX_RATE 1024 TABLESPACE_MAP"
        );
        let request = Request {
            sizes: Sizes::Counted,
            extent: Extent::Incremental,
            ..request("17")
        };
        assert_eq!(
            request.command(),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, MAX_RATE 1024, TABLESPACE_MAP, \
             TARGET 'client', INCREMENTAL)"
        );
    }

    #[test]
    fn a_path_that_the_server_leaves_out_is_known_in_any_language() {
        let notice = |fields: &[&str]| {
            let body: Vec<u8> = fields
                .iter()
                .flat_map(|field| [field.as_bytes(), b"\0"].concat())
                .collect();
            let body = Bytes::from([body, vec![0]].concat());
            left_out(&Message { kind: b'N', body })
        };
        let path = Some(PathBuf::from("base/16388"));
        for words in [
            "Mskipping special file \"./base/16388\"",
            "Müberspringe besondere Datei »./base/16388«",
            "Mignore le fichier spécial «\u{a0}./base/16388\u{a0}»",
            "Mспециальный файл \"./base/16388\" пропускается",
        ] {
            assert_eq!(
                notice(&["SX", "VWARNING", "C01000", words, "RsendDir"]),
                path
            );
        }
        let checksum = "Mchecksum verification failed in file \"./base/5/16384\", block 3";
        assert_eq!(notice(&["VWARNING", checksum, "RsendFile"]), None);
        assert_eq!(notice(&["VNOTICE", "Mx \"./y\"", "RsendDir"]), None);
    }

    #[test]
    fn both_forms_are_understood() {
        let message = |kind, body: &'static [u8]| Message {
            kind,
            body: Bytes::from_static(body),
        };
        let data = |bytes| Some(Piece::Data(Bytes::from_static(bytes)));
        let old = |kind, body| piece_of_copies(&message(kind, body)).unwrap();
        assert_eq!(old(b'H', b""), Some(Piece::Archive));
        assert_eq!(old(b'd', b"dx"), data(b"dx"));
        assert_eq!(old(b'c', b""), None);
        assert_eq!(old(b'T', b""), Some(Piece::End));
        let new = |kind, body| piece_of_one_copy(&message(kind, body)).unwrap();
        assert_eq!(new(b'H', b""), None);
        assert_eq!(new(b'd', b"nbase.tar\0\0"), Some(Piece::Archive));
        assert_eq!(new(b'd', b"dx"), data(b"x"));
        assert_eq!(new(b'd', b"p\0\0\0\0\0\0\0\x09"), None);
        assert_eq!(new(b'c', b""), Some(Piece::End));
        assert!(piece_of_one_copy(&message(b'd', b"")).is_err());
    }
}
