//! The course of receiving: connections, one after the other.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{
    ControlFile, History, Lsn, SegmentNo, SystemIdentifier, TimelineId, WalFileName,
};

use super::source::{Source, Target};
use super::spool::Spool;
use super::start::{self, Known};
use super::stream::{Ended, Stream};
use super::tail::sweep;
use super::{Error, OnFailure, Options, SlotCreation};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::{Encryption, Identities, Pipeline};
use crate::repository::Repository;
use crate::server::replication::{self, Identity, Replication, Session, Started};
use crate::session::StoreSession;
use crate::wal;
use crate::wal::archiver::{Archiver, Origin};
use crate::wal::mirror::Second;

/// Pauses between connections: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a backup may wait for the first WAL.
const BEGINNING: Duration = Duration::from_mins(1);
/// How often it is told that it still fails.
const TELLING_INTERVAL: Duration = Duration::from_mins(1);

/// Receives WAL until it is told to stop.
pub struct Receiver {
    session: StoreSession,
    identities: Identities,
    pipeline: Pipeline,
    second: Option<Second>,
    options: Options,
    stop: watch::Receiver<bool>,
    /// Is told when the first WAL comes.
    begun: Option<mpsc::Sender<()>>,
    /// The cluster, once a server named it.
    target: Option<Target>,
    /// How far it got, and on which timeline.
    reached: Option<(TimelineId, Lsn)>,
}

impl Receiver {
    /// A receiver into the session's store, and the second one if there is one. It ends when `stop` says so.
    pub fn new(
        session: StoreSession,
        identities: Identities,
        pipeline: Pipeline,
        second: Option<Second>,
        options: Options,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            session,
            identities,
            pipeline,
            second,
            options,
            stop,
            begun: None,
            target: None,
            reached: None,
        }
    }

    /// The same, which tells `begun` when the server begins to send WAL.
    #[must_use]
    pub fn telling(self, begun: mpsc::Sender<()>) -> Self {
        Self {
            begun: Some(begun),
            ..self
        }
    }

    /// Receives until it is told to stop.
    ///
    /// # Errors
    /// What another try would not change; with [`OnFailure::End`] any.
    pub fn run(mut self) -> Result<(), Error> {
        let (since, mut pause, mut told) = (Instant::now(), FIRST_PAUSE, None::<Instant>);
        loop {
            let reached = self.reached;
            let error = match self.receive() {
                Ok(()) => return Ok(()),
                // A backup's own checkpoint removes WAL from before it.
                Err(Error::Server(error))
                    if self.is_for_a_backup() && Replication::has_removed(&error) =>
                {
                    error.into()
                }
                Err(error) if !error.is_passing() => return Err(error),
                Err(error)
                    if self.options.on_failure == OnFailure::End && !self.may_yet_begin(since) =>
                {
                    return Err(error);
                }
                Err(error) => error,
            };
            if self.reached > reached {
                (pause, told) = (FIRST_PAUSE, None);
            }
            if told.is_none_or(|told| told.elapsed() >= TELLING_INTERVAL) {
                told = Some(Instant::now());
                let hint = error.hint().map(|hint| format!(" ({hint})"));
                let hint = hint.unwrap_or_default();
                tracing::warn!("{}{hint}; trying again", output::chain(&error));
            }
            if self.is_stopped_within(pause) {
                return Ok(());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn is_for_a_backup(&self) -> bool {
        self.options.slot_creation == SlotCreation::ForABackup
    }

    /// Whether nothing is lost yet: who waits for the first WAL still waits.
    fn may_yet_begin(&self, since: Instant) -> bool {
        self.begun.is_some() && since.elapsed() < BEGINNING
    }

    fn is_stopped_within(&mut self, pause: Duration) -> bool {
        // A timer has to be made where the network's threads are at hand.
        let waited = async {
            let stop = self.stop.wait_for(|stop| *stop);
            tokio::time::timeout(pause, stop)
                .await
                .map(|stopped| stopped.map(drop))
        };
        let waited = self.session.wait(waited);
        // A listener that is gone has told what there was to tell.
        waited.is_ok_and(|stopped| stopped.is_ok())
    }

    /// Receives over one connection, to the end that was asked for.
    fn receive(&mut self) -> Result<(), Error> {
        let mut source = self.connect()?;
        let (mut timeline, mut from) = self.begin(&mut source)?;
        loop {
            let slot = self.options.slot.as_deref();
            let start = source.connection.start(slot, from, timeline);
            let next = match self.session.wait(start)? {
                Started::Ended(next) => next,
                Started::Streaming => {
                    if let Some(begun) = self.begun.take() {
                        // Who does not listen any more has failed.
                        let _ = begun.send(());
                    }
                    tracing::info!(
                        "receiving WAL of timeline {} from {from} from the server at {}",
                        timeline.number(),
                        source.connection.place()
                    );
                    let target = self.target.as_mut();
                    let target = target.ok_or(Error::Ended(timeline))?;
                    let mut stream = Stream {
                        session: &self.session,
                        pipeline: &self.pipeline,
                        storing: self.options.storing,
                        stop: self.stop.clone(),
                        target,
                        source: &mut source,
                        timeline,
                        reached: &mut self.reached,
                    };
                    match stream.run(from)? {
                        Ended::Stopped => {
                            self.session.wait(source.connection.close());
                            return Ok(());
                        }
                        Ended::Timeline => {
                            self.session.wait(source.connection.end_of_timeline())?
                        }
                    }
                }
            };
            let (next, switch) = next.ok_or(Error::Ended(timeline))?;
            tracing::info!(
                "timeline {} ends at {switch}; timeline {} follows",
                timeline.number(),
                next.number()
            );
            source.history = self.history(&mut source.connection, next)?;
            source.origin.timeline = next;
            self.archive_history(&source)?;
            let size = source.origin.cluster.segment_size;
            (timeline, from) = (next, size.segment_of(switch).start(size));
        }
    }

    /// Connects, and sees that it is the server whose WAL goes on from what was received.
    fn connect(&mut self) -> Result<Source, Error> {
        let session = self.session.clone();
        let mut connection = session.wait(Replication::connect(Session::Replication))?;
        let identity = session.wait(connection.identify())?;
        self.must_be_the_cluster(&connection, &identity)?;
        self.find_place(identity.system_identifier)?;
        let is_encrypting = self.pipeline.packing().encryption == Encryption::Age;
        let cluster = session.wait(cluster_of(&mut connection, identity))?;
        let secret = if is_encrypting {
            self.control_file(identity.system_identifier)
                .and_then(|control| control.secret)
        } else {
            None
        };
        if let (Some(slot), SlotCreation::IfMissing) =
            (&self.options.slot, self.options.slot_creation)
        {
            session.wait(connection.create_slot(slot))?;
        }
        if self.is_for_a_backup() && cluster.version.has_temporary_slots() {
            let slot = format!("walhalla_backup_{}", std::process::id());
            if let Err(error) = session.wait(connection.create_temporary_slot(&slot)) {
                tracing::warn!("{error}; the server may remove WAL before it is received");
            }
        }
        let history = self.history(&mut connection, identity.timeline)?;
        let source = Source {
            connection,
            identity,
            origin: Origin {
                cluster,
                timeline: identity.timeline,
                secret,
            },
            history,
        };
        self.must_go_on(&source)?;
        self.archive_history(&source)?;
        Ok(source)
    }

    fn must_be_the_cluster(
        &self,
        connection: &Replication,
        identity: &Identity,
    ) -> Result<(), Error> {
        let received = self.target.as_ref();
        let received = received.map(|target| target.repository.layout().system_identifier());
        match received.or(self.options.system_identifier) {
            Some(expected) if expected != identity.system_identifier => Err(Error::OtherCluster {
                place: connection.place().to_owned(),
                found: identity.system_identifier,
                expected,
            }),
            _ => Ok(()),
        }
    }

    /// Makes the cluster's place when its first server names it.
    fn find_place(&mut self, system_identifier: SystemIdentifier) -> Result<(), Error> {
        if self.target.is_none() {
            let (session, identities) = (self.session.clone(), self.identities.clone());
            let repository = Repository::new(session, identities, system_identifier);
            let slot = self.options.slot.as_deref();
            let mut spool = Spool::open(&self.options.spool, system_identifier, slot)?;
            sweep_archived(&repository, &mut spool);
            let mirror = self.second.as_ref().map(|it| it.of(&repository, None));
            if let Some(mirror) = &mirror {
                mirror.read_debts(&repository).map_err(wal::Error::from)?;
            }
            self.target = Some(Target {
                repository,
                spool,
                mirror,
            });
        }
        Ok(())
    }

    /// The server's control file, if this user may read it: with the secret in it `wal-push` and this know each other's files
    /// in a store that neither can read.
    fn control_file(&self, system_identifier: SystemIdentifier) -> Option<ControlFile> {
        let read = async {
            let mut connection = Replication::connect(Session::Sql).await?;
            let bytes = connection.control_file().await?;
            connection.close().await;
            Ok::<_, replication::Error>(bytes)
        };
        let control = self
            .session
            .wait(read)
            .map_err(|error| output::chain(&error));
        let control = control
            .and_then(|bytes| ControlFile::parse(&bytes).map_err(|damage| damage.to_string()));
        match control {
            Ok(control) if control.system_identifier == system_identifier => Some(control),
            Err(reason) if self.reached.is_none() => {
                tracing::warn!(
                    "the server's control file cannot be read ({reason}): without what is in it a wal-push that archives to this \
                     store too cannot tell that an encrypted segment is the same, and fails; GRANT EXECUTE ON FUNCTION \
                     pg_read_binary_file(text) TO the role if both are to run"
                );
                None
            }
            Ok(_) | Err(_) => None,
        }
    }

    fn history(
        &self,
        connection: &mut Replication,
        timeline: TimelineId,
    ) -> Result<History, Error> {
        if timeline == TimelineId::FIRST {
            return Ok(History::root(timeline));
        }
        let text = self.session.wait(connection.history(timeline))?;
        let history = History::parse(timeline, &text);
        let history = history.map_err(crate::server::Error::from)?;
        if let Some(target) = &self.target {
            let path = target
                .spool
                .path(&WalFileName::History(timeline).to_string());
            std::fs::write(&path, text).map_err(wal::Error::local("write", path))?;
        }
        Ok(history)
    }

    /// Archives the history of the server's timeline, before any WAL of it.
    fn archive_history(&self, source: &Source) -> Result<(), Error> {
        let timeline = source.history.timeline;
        let (Some(target), true) = (&self.target, timeline != TimelineId::FIRST) else {
            return Ok(());
        };
        let file = WalFileName::History(timeline);
        let archiver = Archiver {
            repository: &target.repository,
            pipeline: &self.pipeline,
            origin: source.origin.clone(),
            in_recovery: false,
            mirror: target.mirror.as_ref(),
        };
        archiver.push(&target.spool.path(&file.to_string()), file)?;
        Ok(())
    }

    /// Whether the server's timeline comes from what was received before.
    fn must_go_on(&self, source: &Source) -> Result<(), Error> {
        let Some((timeline, reached)) = self.reached else {
            return Ok(());
        };
        let history = &source.history;
        match history.switch_from(timeline) {
            _ if timeline == history.timeline => Ok(()),
            Some(switch) => {
                if switch < reached {
                    tracing::warn!(
                        "timeline {} was left at {switch}, and WAL of it was received up to {reached}: what is in between is on no \
                         later timeline, and stays in the store",
                        timeline.number()
                    );
                }
                Ok(())
            }
            None => Err(Error::OtherTimeline {
                place: source.connection.place().to_owned(),
                found: history.timeline.number(),
                expected: timeline.number(),
            }),
        }
    }

    /// Where to begin.
    fn begin(&self, source: &mut Source) -> Result<(TimelineId, Lsn), Error> {
        let size = source.origin.cluster.segment_size;
        let slot = if let Some(slot) = &self.options.slot {
            self.slot_position(source, slot)?
        } else {
            if self.reached.is_none() && !self.is_for_a_backup() {
                tracing::warn!(
                    "no slot is used: the server may remove WAL before it is received; --slot and --create-slot keep it"
                );
            }
            None
        };
        let archived = match slot {
            Some(_) => None,
            // What the archive lacks of earlier WAL the backup does not need.
            None if self.is_for_a_backup() => None,
            None => self.archived(source)?,
        };
        let known = Known {
            slot,
            archived,
            flushed: source.identity.flushed,
        };
        Ok(start::place(known, &source.history, size))
    }

    fn slot_position(&self, source: &mut Source, slot: &str) -> Result<Option<Lsn>, Error> {
        if source.origin.cluster.version.tells_slots() {
            return Ok(self.session.wait(source.connection.slot_position(slot))?);
        }
        let asked = async {
            let mut connection = Replication::connect(Session::Sql).await?;
            let position = connection.slot_position_by_sql(slot).await?;
            connection.close().await;
            Ok::<_, replication::Error>(position)
        };
        Ok(self.session.wait(asked)?)
    }

    /// The segment after the last one that is archived along the server's history.
    fn archived(&self, source: &Source) -> Result<Option<SegmentNo>, Error> {
        let Some(target) = &self.target else {
            return Ok(None);
        };
        let size = source.origin.cluster.segment_size;
        for (timeline, ..) in source.history.spans().rev() {
            let listing = target.repository.list_wal(timeline, None, &[]);
            let listing = listing.map_err(wal::Error::from)?;
            let names = listing.segments.keys().rev();
            let on_way = |number: &SegmentNo| {
                source.history.segment_name(*number, size).timeline == timeline
            };
            let mut numbers = names.filter_map(|name| name.number(size));
            if let Some(last) = numbers.find(on_way) {
                if let Some(mirror) = &target.mirror {
                    // Who received it may have died, or lost the connection, before the second store had it.
                    let file = WalFileName::Segment(last.on(timeline, size));
                    mirror.follow_all(&target.repository, file)?;
                }
                return Ok(Some(last.next()));
            }
        }
        Ok(None)
    }
}

/// What all segments of a server have in common.
async fn cluster_of(
    connection: &mut Replication,
    identity: Identity,
) -> Result<Cluster, replication::Error> {
    let version = connection.version()?;
    let page = if version.shows_settings_to_replication() {
        connection.show("wal_block_size").await?.parse().ok()
    } else {
        None
    };
    Ok(Cluster {
        system_identifier: identity.system_identifier,
        version,
        segment_size: connection.segment_size().await?,
        page_size_bytes: page.unwrap_or(8192),
    })
}

/// Takes away what former receivers here stored of segments that were archived since.
fn sweep_archived(repository: &Repository, spool: &mut Spool) {
    for segment in spool.segments() {
        let archived = repository.find_wal(WalFileName::Segment(segment));
        if archived.is_ok_and(|archived| archived.is_some()) {
            sweep(repository, segment, &spool.runs_of(segment));
            spool.forget(segment);
        }
    }
}
