//! Messages of PostgreSQL's protocol over a socket.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest message of a server that is read. The longest of replication has 128 KiB of WAL, or a timeline's history.
const MESSAGE_LIMIT_BYTES: u32 = 16 << 20;
/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;

/// A socket, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A message of the server's: its type and its content.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) body: Bytes,
}

/// One connection's messages.
pub(super) struct Wire {
    stream: Box<dyn Duplex>,
    input: BytesMut,
    /// What is to be sent next.
    pub(super) output: BytesMut,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::new(),
        }
    }

    /// The next message. Nothing is lost when the wait for it is given up.
    pub(super) async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.received()? {
                return Ok(message);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next message, if all of it has come.
    pub(super) fn received(&mut self) -> io::Result<Option<Message>> {
        let mut begin = self.input.as_ref();
        if begin.len() < 5 {
            return Ok(None);
        }
        let kind = begin.get_u8();
        let length = begin.get_u32();
        if !(4..=MESSAGE_LIMIT_BYTES).contains(&length) {
            let reason = format!("a message of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX) - 4;
        if begin.len() < length {
            return Ok(None);
        }
        self.input.advance(5);
        let body = self.input.split_to(length).freeze();
        Ok(Some(Message { kind, body }))
    }

    /// Sends what was put into the output. A wait that is given up leaves the connection useless.
    pub(super) async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        self.stream.flush().await
    }
}

/// Takes numbers and texts off a message's begin; `None` where it ends before.
pub(super) struct Fields(pub(super) Bytes);

impl Fields {
    pub(super) fn u8(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.0.get_u8())
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        (self.0.len() >= 2).then(|| self.0.get_u16())
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        (self.0.len() >= 4).then(|| self.0.get_i32())
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        (self.0.len() >= 8).then(|| self.0.get_u64())
    }

    pub(super) fn bytes(&mut self, count: usize) -> Option<Bytes> {
        (self.0.len() >= count).then(|| self.0.split_to(count))
    }

    /// A text up to its zero byte.
    pub(super) fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}
