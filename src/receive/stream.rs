//! One timeline's stream: WAL in, positions out.

use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use walhalla_postgres::{Lsn, TimelineId, WalFileName};

use super::segment::OpenSegment;
use super::source::{Source, Target};
use super::tail::{TailWriter, sweep};
use super::{Error, Storing};
use crate::output;
use crate::pipeline::Pipeline;
use crate::repository::layout::RunId;
use crate::server::replication::{self, Answer, Received, Replication};
use crate::session::StoreSession;
use crate::wal::archiver::Archiver;

/// How often the server is told where things are while nothing changes, and while the store takes long. It gives a receiver
/// up after `wal_sender_timeout`, a minute by default.
const REPORTING_INTERVAL: Duration = Duration::from_secs(10);

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By a signal. All that came is in the store.
    Stopped,
    /// With its timeline. All that came is in the store.
    Timeline,
}

/// A stream and where it goes.
pub(super) struct Stream<'a> {
    pub(super) session: &'a StoreSession,
    pub(super) pipeline: &'a Pipeline,
    pub(super) storing: Storing,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) target: &'a mut Target,
    pub(super) source: &'a mut Source,
    pub(super) timeline: TimelineId,
    /// Up to where everything was stored.
    pub(super) reached: &'a mut Option<(TimelineId, Lsn)>,
}

/// How far things are.
struct Progress {
    open: OpenSegment,
    tail: Option<TailWriter>,
    /// All WAL before it is in the store.
    durable: Lsn,
    /// When the server was told last.
    reported: Instant,
    /// What it was told then.
    told: (Lsn, Lsn),
    /// When something came that is not stored.
    waiting_since: Option<Instant>,
}

/// What happened while the server was listened to.
enum Event {
    Received(Received),
    /// It is time to store or to report.
    Due,
    Stop,
}

impl Stream<'_> {
    /// Receives from `from` on, a segment's begin.
    ///
    /// # Errors
    /// The connection's and the store's.
    pub(super) fn run(&mut self, from: Lsn) -> Result<Ended, Error> {
        let mut progress = Progress {
            open: self.open(from)?,
            tail: None,
            durable: from,
            reported: Instant::now(),
            told: (Lsn::ZERO, Lsn::ZERO),
            waiting_since: None,
        };
        let ended = self.receive(&mut progress);
        // What it stored stays; the next connection begins another run.
        if let Some(tail) = progress.tail.take() {
            tail.finish();
        }
        ended
    }

    fn receive(&mut self, progress: &mut Progress) -> Result<Ended, Error> {
        loop {
            let event = if let Some(received) = self.source.connection.heard()? {
                Event::Received(received)
            } else {
                // All that has come is stored together.
                if self.storing == Storing::AtOnce {
                    self.store(progress)?;
                }
                self.wait(progress)?
            };
            match event {
                Event::Received(Received::Wal(at, bytes)) => self.take(progress, at, &bytes)?,
                Event::Received(Received::Alive(Answer::Wanted)) => {
                    self.store(progress)?;
                    self.report(progress)?;
                }
                Event::Received(Received::Alive(Answer::Unneeded)) | Event::Due => {}
                Event::Received(Received::EndOfTimeline) => {
                    self.store(progress)?;
                    return Ok(Ended::Timeline);
                }
                Event::Stop => {
                    self.store(progress)?;
                    self.report(progress)?;
                    return Ok(Ended::Stopped);
                }
            }
            if self.is_due(progress) {
                self.store(progress)?;
            }
            if progress.reported.elapsed() >= REPORTING_INTERVAL {
                self.report(progress)?;
            }
        }
    }

    fn is_due(&self, progress: &Progress) -> bool {
        let (Storing::Every(interval), Some(since)) = (self.storing, progress.waiting_since) else {
            return false;
        };
        since.elapsed() >= interval
    }

    /// Waits for what happens next.
    fn wait(&mut self, progress: &Progress) -> Result<Event, Error> {
        let mut due = progress.reported + REPORTING_INTERVAL;
        if let (Storing::Every(interval), Some(since)) = (self.storing, progress.waiting_since) {
            due = due.min(since + interval);
        }
        let connection = &mut self.source.connection;
        let stop = &mut self.stop;
        let event = async {
            tokio::select! {
                biased;
                received = connection.next() => received.map(Event::Received),
                Ok(_) = stop.wait_for(|stop| *stop) => Ok(Event::Stop),
                () = tokio::time::sleep_until(due.into()) => Ok(Event::Due),
            }
        };
        Ok(self.session.wait(event)?)
    }

    /// Takes WAL into the open segment, and archives each one that is full.
    fn take(&mut self, progress: &mut Progress, at: Lsn, bytes: &[u8]) -> Result<(), Error> {
        let expected = progress.open.end();
        if at != expected {
            return Err(Error::NotDue {
                place: self.source.connection.place().to_owned(),
                found: at,
                expected,
            });
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = progress.open.take(rest)?;
            progress.waiting_since.get_or_insert_with(Instant::now);
            if progress.open.is_full() {
                self.archive(progress)?;
            }
        }
        Ok(())
    }

    /// Archives the segment, which is full, and begins the next one. Until then the server is told of nothing at its end: it
    /// keeps the segment.
    fn archive(&mut self, progress: &mut Progress) -> Result<(), Error> {
        let segment = progress.open.name;
        let archiver = Archiver {
            repository: &self.target.repository,
            pipeline: self.pipeline,
            origin: self.source.origin.clone(),
            in_recovery: false,
            mirror: self.target.mirror.as_ref(),
        };
        let path = progress.open.path.clone();
        let push = || archiver.push(&path, WalFileName::Segment(segment));
        let told = (progress.open.end(), progress.durable);
        alive_while(self.session, &mut self.source.connection, told, push)??;
        tracing::debug!("{segment} is archived");
        self.pay(told)?;
        if let Some(tail) = progress.tail.take() {
            tail.finish();
        }
        self.sweep(segment);
        let next = progress.open.end();
        progress.open.discard();
        progress.open = self.open(next)?;
        self.has_stored(progress, next)
    }

    /// Pays what the second store is owed. What hinders that hinders nothing else.
    fn pay(&mut self, told: (Lsn, Lsn)) -> Result<(), Error> {
        let Some(mirror) = &self.target.mirror else {
            return Ok(());
        };
        if mirror.noted().is_empty() {
            return Ok(());
        }
        let repository = &self.target.repository;
        let pay = || mirror.pay_some(repository);
        let paid = alive_while(self.session, &mut self.source.connection, told, pay)?;
        if let Err(error) = paid {
            tracing::debug!("{}", output::chain(&error));
        }
        Ok(())
    }

    /// Takes the segment's pieces away, beside everything else.
    fn sweep(&mut self, segment: walhalla_postgres::SegmentName) {
        let runs = self.target.spool.runs_of(segment);
        if runs.is_empty() {
            return;
        }
        self.target.spool.forget(segment);
        let repository = self.target.repository.clone();
        std::thread::spawn(move || sweep(&repository, segment, &runs));
    }

    fn open(&self, at: Lsn) -> Result<OpenSegment, Error> {
        let size = self.source.origin.cluster.segment_size;
        let path = |name: &str| self.target.spool.path(name);
        Ok(OpenSegment::create(
            size.segment_of(at),
            self.timeline,
            size,
            path,
        )?)
    }

    /// Stores what has come of the open segment, and tells the server.
    fn store(&mut self, progress: &mut Progress) -> Result<(), Error> {
        let (end, received) = (progress.open.end(), progress.open.received);
        if end == progress.durable {
            return Ok(());
        }
        let tail = match &mut progress.tail {
            Some(tail) => tail,
            none => {
                let (segment, run) = (progress.open.name, RunId::random());
                self.target.spool.add_run(segment, run);
                let repository = &self.target.repository;
                none.insert(TailWriter::begin(repository, self.pipeline, segment, run)?)
            }
        };
        let file = progress.open.reader()?;
        if tail.is_local() {
            tail.store(&file, received)?;
        } else {
            let told = (end, progress.durable);
            let connection = &mut self.source.connection;
            alive_while(self.session, connection, told, || {
                tail.store(&file, received)
            })??;
            tail.tidy(|| progress.open.reader());
        }
        self.has_stored(progress, end)
    }

    /// All WAL up to `end` is in the store.
    fn has_stored(&mut self, progress: &mut Progress, end: Lsn) -> Result<(), Error> {
        progress.durable = end;
        progress.waiting_since = (progress.open.end() > end).then(Instant::now);
        *self.reached = Some((self.timeline, end));
        self.report(progress)
    }

    fn report(&mut self, progress: &mut Progress) -> Result<(), Error> {
        progress.told = (progress.open.end(), progress.durable);
        progress.reported = Instant::now();
        let (received, durable) = progress.told;
        Ok(self
            .session
            .wait(self.source.connection.report(received, durable))?)
    }
}

/// Does `work`, which may take long, and tells the server meanwhile that somebody is there.
fn alive_while<T: Send>(
    session: &StoreSession,
    connection: &mut Replication,
    (received, durable): (Lsn, Lsn),
    work: impl FnOnce() -> T + Send,
) -> Result<T, replication::Error> {
    std::thread::scope(|scope| {
        let (done, mut ended) = oneshot::channel::<()>();
        let worker = scope.spawn(move || {
            let outcome = work();
            drop(done);
            outcome
        });
        let mut told = Ok(());
        loop {
            let waiting = async { tokio::time::timeout(REPORTING_INTERVAL, &mut ended).await };
            if session.wait(waiting).is_ok() {
                break;
            }
            if told.is_ok() {
                told = session.wait(connection.report(received, durable));
            }
        }
        let outcome = worker.join();
        let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        told.map(|()| outcome)
    })
}
