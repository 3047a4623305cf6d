//! As much of HTTP/1.1 as tells where a message ends.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Longest head that is read.
const MOST_HEAD_BYTES: usize = 64 << 10;

/// The head of a request or an answer, as it came.
pub(super) struct Head {
    pub(super) raw: Vec<u8>,
    text: String,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// The next head; `None` where the peer closed the connection instead.
    pub(super) async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n\r\n") {
            if from.read_until(b'\n', &mut raw).await? == 0 {
                return Ok(None);
            }
            assert!(raw.len() < MOST_HEAD_BYTES, "a head without end");
        }
        let text = String::from_utf8_lossy(&raw).into_owned();
        Ok(Some(Self { raw, text }))
    }

    /// The first line's words: method and target, or version and status.
    pub(super) fn words(&self) -> (&str, &str) {
        let mut words = self.text.split_whitespace();
        (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        )
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.text.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    pub(super) fn request_framing(&self) -> Framing {
        self.framing().unwrap_or(Framing::Length(0))
    }

    /// Of the answer to a request with this method.
    pub(super) fn answer_framing(&self, method: &str) -> Framing {
        let is_bodyless = method == "HEAD" || matches!(self.words().1, "204" | "304");
        if is_bodyless || self.is_interim() {
            return Framing::Length(0);
        }
        self.framing().unwrap_or(Framing::UntilClose)
    }

    /// Whether another answer follows.
    pub(super) fn is_interim(&self) -> bool {
        self.words().1.starts_with('1')
    }

    fn framing(&self) -> Option<Framing> {
        let is_chunked = self
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if is_chunked {
            return Some(Framing::Chunked);
        }
        let length = self.header("content-length")?;
        Some(Framing::Length(length.parse().unwrap()))
    }
}
