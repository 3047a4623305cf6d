//! One connection of a client, and what becomes of its requests.

use std::future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader, sink};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use super::http::{Framing, Head};
use super::{Ending, Fault, Side, State};

const BUFFER_BYTES: usize = 64 << 10;

/// How long a client may go on sending what the server did not want to the end.
const LINGER: Duration = Duration::from_secs(2);

/// Why a connection does not go on.
enum Stop {
    /// A fault, or an end in order.
    End(Ending),
    Io,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

struct Peer {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

struct Line {
    client: Peer,
    server: Option<Peer>,
    state: Arc<State>,
}

/// Serves a client's requests, one after the other.
pub(super) async fn serve(client: TcpStream, state: Arc<State>) {
    let mut line = Line {
        client: Peer::new(client),
        server: None,
        state,
    };
    loop {
        match line.exchange().await {
            Ok(()) => {}
            Err(Stop::End(Ending::Reset)) => return line.client.reset(),
            Err(Stop::End(Ending::Silence)) => future::pending().await,
            Err(Stop::End(Ending::Close) | Stop::Io) => return,
        }
    }
}

impl Line {
    /// One request and its answer.
    async fn exchange(&mut self) -> Result<(), Stop> {
        let head = Head::read(&mut self.client.reader).await?;
        let head = head.ok_or(Stop::End(Ending::Close))?;
        let (method, target) = head.words();
        let fault = self.state.meet(method, target);
        sleep(self.state.latency()).await;
        match fault {
            Some(Fault::Answer(answer)) => {
                let framing = head.request_framing();
                let mut whole = Passage::new(&self.state, Side::Request, None);
                whole
                    .carry(&mut self.client.reader, &mut sink(), framing)
                    .await?;
                let message = answer.message(method);
                Ok(self.client.writer.write_all(&message).await?)
            }
            Some(Fault::Break {
                side: Side::Request,
                after_bytes: 0,
                ending,
            }) => Err(Stop::End(ending)),
            fault => self.forward(&head, fault.as_ref()).await,
        }
    }

    async fn forward(&mut self, head: &Head, fault: Option<&Fault>) -> Result<(), Stop> {
        let server = match self.server.take() {
            Some(server) => server,
            None => Peer::new(TcpStream::connect(self.state.server).await?),
        };
        let server = self.server.insert(server);
        let client = &mut self.client;
        server.writer.write_all(&head.raw).await?;
        let mut up = Passage::new(&self.state, Side::Request, fault);
        let mut down = Passage::new(&self.state, Side::Answer, fault);
        let body = up.carry(
            &mut client.reader,
            &mut server.writer,
            head.request_framing(),
        );
        // A server may answer before it has the whole body and hang up: then its answer still counts.
        let body = async {
            match body.await {
                Err(Stop::Io) => Ok(false),
                sent => sent.map(|()| true),
            }
        };
        let answer = async {
            match fault {
                Some(Fault::LoseAnswer(ending)) => {
                    down.answer(&mut server.reader, &mut sink(), head.words().0)
                        .await?;
                    Err(Stop::End(*ending))
                }
                _ => {
                    down.answer(&mut server.reader, &mut client.writer, head.words().0)
                        .await
                }
            }
        };
        let (whole_body, ()) = tokio::try_join!(body, answer)?;
        if whole_body {
            return Ok(());
        }
        // Closed at once, the client's host would drop the answer.
        let mut nowhere = sink();
        let rest = tokio::io::copy_buf(&mut client.reader, &mut nowhere);
        drop(timeout(LINGER, rest).await);
        Err(Stop::End(Ending::Close))
    }
}

impl Peer {
    fn new(socket: TcpStream) -> Self {
        // Small pieces shall arrive as such; a connection that is gone already shows soon.
        drop(socket.set_nodelay(true));
        let (reader, writer) = socket.into_split();
        Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, reader),
            writer,
        }
    }

    fn reset(self) {
        drop(self.writer.as_ref().set_zero_linger());
        // Dropped otherwise, the half would close its direction in order first.
        self.writer.forget();
    }
}

/// What passes in one direction, and what is done to it.
struct Passage<'a> {
    state: &'a State,
    side: Side,
    fault: Option<&'a Fault>,
    passed: u64,
}

impl<'a> Passage<'a> {
    fn new(state: &'a State, side: Side, fault: Option<&'a Fault>) -> Self {
        Self {
            state,
            side,
            fault,
            passed: 0,
        }
    }

    /// The answers to a request with this method, the interim ones too.
    async fn answer(
        &mut self,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        method: &str,
    ) -> Result<(), Stop> {
        loop {
            let head = Head::read(from).await?.ok_or(Stop::End(Ending::Close))?;
            sleep(self.state.latency()).await;
            to.write_all(&head.raw).await?;
            let framing = head.answer_framing(method);
            self.carry(from, to, framing).await?;
            let is_last = framing == Framing::UntilClose
                || head
                    .header("connection")
                    .is_some_and(|value| value.eq_ignore_ascii_case("close"));
            if is_last {
                return Err(Stop::End(Ending::Close));
            }
            if !head.is_interim() {
                return Ok(());
            }
        }
    }

    async fn carry(
        &mut self,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        framing: Framing,
    ) -> Result<(), Stop> {
        match framing {
            Framing::Length(length) => self.bytes(from, to, length).await,
            Framing::UntilClose => match self.bytes(from, to, u64::MAX).await {
                Err(Stop::End(Ending::Close)) => Ok(()),
                other => other,
            },
            Framing::Chunked => self.chunks(from, to).await,
        }
    }

    async fn chunks(
        &mut self,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Stop> {
        loop {
            let size = line(from, to).await?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).unwrap();
            self.bytes(from, to, size).await?;
            // Behind data an empty line; behind the last chunk trailers up to one.
            while !line(from, to).await?.trim().is_empty() {}
            if size == 0 {
                return Ok(());
            }
        }
    }

    /// So many bytes of a body.
    async fn bytes(
        &mut self,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut left: u64,
    ) -> Result<(), Stop> {
        while left > 0 {
            let most = usize::try_from(left.min(self.until_break()?)).unwrap_or(usize::MAX);
            let available = from.fill_buf().await?;
            if available.is_empty() {
                return Err(Stop::End(Ending::Close));
            }
            let length = available.len().min(most).min(self.piece());
            let mut piece = available[..length].to_vec();
            self.spoil(&mut piece);
            to.write_all(&piece).await?;
            from.consume(length);
            let length = length as u64;
            self.passed += length;
            left -= length;
            let passed = self.state.passed(self.side);
            passed.fetch_add(length, Ordering::Relaxed);
            self.rest().await;
        }
        Ok(())
    }

    /// How many bytes pass before the connection ends.
    fn until_break(&self) -> Result<u64, Stop> {
        match self.fault {
            Some(Fault::Break {
                side,
                after_bytes,
                ending,
            }) if *side == self.side => match after_bytes.saturating_sub(self.passed) {
                0 => Err(Stop::End(*ending)),
                bytes => Ok(bytes),
            },
            _ => Ok(u64::MAX),
        }
    }

    fn piece(&self) -> usize {
        match self.fault {
            Some(Fault::Slow { side, bytes, .. }) if *side == self.side => *bytes,
            _ => usize::MAX,
        }
    }

    async fn rest(&self) {
        match self.fault {
            Some(Fault::Slow { side, every, .. }) if *side == self.side => sleep(*every).await,
            _ => {}
        }
    }

    fn spoil(&self, piece: &mut [u8]) {
        let Some(Fault::Flip { side, at }) = self.fault else {
            return;
        };
        let place = at.checked_sub(self.passed).map(usize::try_from);
        if let Some(Ok(place)) = place
            && *side == self.side
            && let Some(byte) = piece.get_mut(place)
        {
            *byte ^= 0x10;
        }
    }
}

/// Passes a line on; returns it.
async fn line(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<String, Stop> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line).await? == 0 {
        return Err(Stop::End(Ending::Close));
    }
    to.write_all(&line).await?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}
