//! What the daemon does for who asks on its socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{ControlFile, SegmentName};

use super::metrics::Metrics;
use super::protocol::{Answer, Failed, Request, Work, receive, send};
use super::sockets::must_be_own;
use crate::archive::Reading;
use crate::archiving::ahead::{Site, tell_left};
use crate::archiving::resident::{Outcome, Push, Resident};
use crate::archiving::workers;
use crate::config::Settings;
use crate::copying::mirror::Following;
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::Pipeline;
use crate::prefetch::background::Background;
use crate::prefetch::spooled::Spooled;
use crate::progress::Show;
use crate::repository::Repository;
use crate::restore;
use crate::server::recovery_mode::{RecoveryMode, mode_of};
use crate::server::waiting_server::{PATIENCE, times};
use crate::server::wal_directory::WalDirectory;
use crate::server::{control_file, postmaster};
use crate::session::StoreSession;
use crate::spool::Spool;
use crate::spool::receipts::{Kind, Receipts, StoreIdentity};
use crate::status::judge::Limits;
use crate::status::{self, Status, Surroundings};
use crate::threads::lock;
use crate::wal;
use crate::wal::archiver::Archiver;
use crate::wal::mirror::Second;

/// Connections at a time: each data directory has one archiver and one startup process, which ask one after the other.
const MOST_CONNECTIONS: usize = 64;
/// Data directories of one daemon.
const MOST_CLUSTERS: usize = 16;
/// How long a peer is given to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How often it is tried to pay what second stores are owed.
const PAID_EACH: Duration = Duration::from_secs(10);
/// In which of these rounds it is also looked what others recorded in the store.
const STORE_READ_EACH: u64 = 30;
/// How often it is looked how the archives stand, for the metrics. A large archive takes a hundred requests.
const ARCHIVES_READ_EACH: Duration = Duration::from_mins(5);
/// The same while no server has asked for anything.
const FIRST_READ_AFTER: Duration = Duration::from_secs(2);
/// How long requests for a segment that is fetched may go on failing. Who asks fetches it alone then.
const FETCH_TIME: Duration = Duration::from_secs(10);

/// Settings, and what was opened with them.
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The store.
    pub session: StoreSession,
    /// Packs what goes to the store.
    pub pipeline: Pipeline,
    /// The second store.
    pub second: Option<Second>,
    /// What either store has.
    pub reading: StoreSession,
}

/// What is done for the servers of this host.
pub struct Service {
    loaded: RwLock<Arc<Loaded>>,
    clusters: Mutex<BTreeMap<PathBuf, Arc<Local>>>,
    connections: AtomicUsize,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How the archives of the data directories stood when they were last looked at.
    archives: Mutex<Vec<Status>>,
}

/// Which debts are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadDebts {
    /// Those in the spool.
    OfThisHost,
    /// Those that the store tells of, too.
    OfTheStore,
}

/// One data directory.
struct Local {
    loaded: Arc<Loaded>,
    pgdata: PathBuf,
    resident: Resident<Failed>,
    metrics: Arc<Metrics>,
    has_ended: Arc<AtomicBool>,
}

impl Service {
    /// One with these settings.
    pub fn new(loaded: Loaded) -> Self {
        Self {
            loaded: RwLock::new(Arc::new(loaded)),
            clusters: Mutex::default(),
            connections: AtomicUsize::new(0),
            metrics: Arc::default(),
            archives: Mutex::default(),
        }
    }

    /// Looks how the archives stand, for ever. What cannot be read now keeps what was known.
    pub fn look_at_archives(&self) {
        loop {
            let clusters: Vec<Arc<Local>> = lock(&self.clusters).values().cloned().collect();
            let pause = if clusters.is_empty() {
                FIRST_READ_AFTER
            } else {
                ARCHIVES_READ_EACH
            };
            for local in clusters {
                match local.status() {
                    Some(Ok(status)) => {
                        let mut known = lock(&self.archives);
                        known.retain(|it| it.system_identifier != status.system_identifier);
                        known.push(status);
                    }
                    Some(Err(error)) => tracing::debug!("{}", output::chain(&error)),
                    None => {}
                }
            }
            thread::sleep(pause);
        }
    }

    /// Takes other settings for all that begins from now on.
    pub fn reload(&self, loaded: Loaded) {
        *{ self.loaded.write() }.unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        // What is on its way goes on with the settings that it has.
        lock(&self.clusters).clear();
    }

    /// Answers on `listener` for ever.
    pub fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for connection in listener.incoming() {
            match connection {
                Ok(connection) => self.take(connection),
                // Too many open files, perhaps: the next one may fare better.
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Pays what second stores are owed, for ever.
    pub fn pay_debts(&self) {
        for round in 0_u64.. {
            thread::sleep(PAID_EACH);
            let read = if round % STORE_READ_EACH == 0 {
                ReadDebts::OfTheStore
            } else {
                ReadDebts::OfThisHost
            };
            let clusters: Vec<Arc<Local>> = lock(&self.clusters).values().cloned().collect();
            for local in clusters {
                local.pay_debts(read);
            }
        }
    }

    /// Begins nothing more and waits for what is on its way, for `most` in all.
    pub fn end(&self, most: Duration) {
        let end = Instant::now() + most;
        let clusters = std::mem::take(&mut *lock(&self.clusters));
        for local in clusters.values() {
            local.has_ended.store(true, Ordering::Relaxed);
            local.resident.stop();
        }
        for local in clusters.values() {
            local
                .resident
                .end(end.saturating_duration_since(Instant::now()));
            if let Ok(background) = local.background() {
                drop(background.spooled.clear());
            }
        }
    }

    /// All figures, as Prometheus reads them.
    pub fn page(&self) -> String {
        for local in lock(&self.clusters).values() {
            if let Some(control) = local.control() {
                let ready = local.ready();
                self.metrics.ready(control.system_identifier, ready.len());
            }
        }
        self.metrics.page(&lock(&self.archives))
    }

    fn take(self: &Arc<Self>, connection: UnixStream) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let service = Arc::clone(self);
        thread::spawn(move || {
            if let Err(error) = service.answer(connection) {
                tracing::debug!("a connection ended: {error}");
            }
            service.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn answer(&self, mut connection: UnixStream) -> io::Result<()> {
        must_be_own(&connection)?;
        connection.set_read_timeout(Some(REQUEST_TIME))?;
        let request: Request = receive(&mut connection)?;
        let answer = self.work(&request);
        send(&mut connection, &answer)
    }

    fn work(&self, request: &Request) -> Answer {
        let segment = request.segment.parse::<SegmentName>();
        let (local, segment) = match (self.local(request), segment) {
            (Ok(local), Ok(segment)) => (local, segment),
            (Err(unfit), _) => return unfit,
            (_, Err(error)) => return Answer::Unfit(error.to_string()),
        };
        match request.work {
            Work::Push => match local.resident.push(segment) {
                Some(Ok(())) => Answer::Done,
                Some(Err(failed)) => Answer::Failed(failed),
                None => Answer::Unfit("the daemon ends".to_owned()),
            },
            Work::Fetch => local
                .fetch(segment)
                .map_or_else(Answer::Failed, |()| Answer::Done),
        }
    }

    /// The data directory of a request, if it is for this daemon.
    fn local(&self, request: &Request) -> Result<Arc<Local>, Answer> {
        let loaded = { self.loaded.read() }.unwrap_or_else(PoisonError::into_inner);
        let own = StoreIdentity(loaded.settings.store_identity());
        let unfit = |reason: &str| Err(Answer::Unfit(reason.to_owned()));
        if request.version != crate::LONG_VERSION {
            return unfit("the daemon is of another version");
        }
        if request.store != own {
            return unfit("the daemon has other settings");
        }
        let mut clusters = lock(&self.clusters);
        if let Some(known) = clusters.get(&request.pgdata) {
            return Ok(Arc::clone(known));
        }
        if clusters.len() >= MOST_CLUSTERS {
            clusters.retain(|_, local| local.control().is_some());
        }
        if clusters.len() >= MOST_CLUSTERS {
            return unfit("the daemon has too many data directories");
        }
        let local = Arc::new(Local::new(&loaded, &request.pgdata, &self.metrics));
        clusters.insert(request.pgdata.clone(), Arc::clone(&local));
        Ok(local)
    }
}

impl Local {
    fn new(loaded: &Arc<Loaded>, pgdata: &Path, metrics: &Arc<Metrics>) -> Self {
        let pusher = Pusher {
            loaded: Arc::clone(loaded),
            pgdata: pgdata.to_owned(),
            metrics: Arc::clone(metrics),
        };
        Self {
            loaded: Arc::clone(loaded),
            pgdata: pgdata.to_owned(),
            resident: Resident::start(workers(loaded.settings.upload_concurrency), pusher),
            metrics: Arc::clone(metrics),
            has_ended: Arc::default(),
        }
    }

    fn control(&self) -> Option<ControlFile> {
        control_file::read(&self.pgdata).ok()
    }

    fn ready(&self) -> Vec<SegmentName> {
        ready_in(&self.pgdata)
    }

    /// How the archive stands; `None` where the data directory is gone.
    fn status(&self) -> Option<Result<Status, restore::Error>> {
        let control = self.control()?;
        let loaded = &self.loaded;
        let repository = repository(loaded, &loaded.reading, &control);
        let reading = Reading {
            threads: 1,
            show: Show::Never,
        };
        let (around, limits) = (Surroundings::default(), Limits::default());
        Some(status::look(&repository, around, &limits, reading))
    }

    /// Pays what the second store is owed of this cluster. What hinders it hinders nothing else.
    fn pay_debts(&self, read: ReadDebts) {
        let loaded = &self.loaded;
        let Some(second) = &loaded.second else {
            return;
        };
        let spool = Spool::of(&self.pgdata, loaded.settings.spool_dir.as_deref());
        let (Some(control), Ok(spool)) = (self.control(), spool) else {
            return;
        };
        let first = repository(loaded, &loaded.session, &control);
        let mirror = second.of(&first, Some(spool));
        if read == ReadDebts::OfTheStore
            && let Err(error) = mirror.read_debts(&first)
        {
            tracing::debug!("{}", output::chain(&error));
        }
        if self.has_ended.load(Ordering::Relaxed) || mirror.noted().is_empty() {
            return;
        }
        // A backup that is on its way.
        let Some(_lock) = mirror.lock() else {
            return;
        };
        let following = Following {
            first: &first,
            mirror: &mirror,
            threads: loaded.settings.upload_concurrency,
            show: Show::Never,
        };
        match following.pay_all() {
            Ok(paid) => {
                tracing::info!("the mirror got {paid} WAL files and backups that it was owed");
            }
            Err(error) => tracing::debug!("{}", output::chain(&error)),
        }
    }

    /// Fetches a segment into the spool, and sees to it that the next ones come.
    fn fetch(&self, segment: SegmentName) -> Outcome<Failed> {
        let background = self.background()?;
        let pgdata = self.pgdata.clone();
        let (ahead, has_ended) = (background.clone(), Arc::clone(&self.has_ended));
        thread::spawn(move || {
            let is_needed = || {
                !has_ended.load(Ordering::Relaxed)
                    && postmaster::is_running(&pgdata)
                    && mode_of(&pgdata) != RecoveryMode::None
            };
            if let Err(error) = ahead.run(is_needed) {
                tracing::warn!("nothing is fetched ahead: {}", output::chain(&error));
            }
        });
        let is_there = background.spooled.has(segment).unwrap_or(false);
        // Who asks waits.
        let loaded = &self.loaded;
        let times = times(&self.pgdata, loaded.settings.retry_timeout.min(FETCH_TIME));
        let session = loaded
            .reading
            .within(times.request)
            .patient(&times.patience);
        let background = Background {
            repository: background.repository.with_session(&session),
            ..background
        };
        if !is_there && background.bring(segment).map_err(|error| failed(&error))? {
            let cluster = background.repository.layout().system_identifier();
            self.metrics.fetched(cluster);
        }
        Ok(())
    }

    fn background(&self) -> Result<Background, Failed> {
        let loaded = &self.loaded;
        let wrong = |error| failed(&wal::Error::Postgres(error));
        let control = control_file::read(&self.pgdata).map_err(wrong)?;
        let unusable = |error| failed(&wal::Error::local("use the spool of", &self.pgdata)(error));
        let spool = Spool::of(&self.pgdata, loaded.settings.spool_dir.as_deref());
        let spool = spool.map_err(unusable)?;
        let receipts = receipts(loaded, &spool, Kind::Fetched, &control);
        let wal_directory = WalDirectory::of(&self.pgdata).ok_or_else(no_wal_directory)?;
        Ok(Background {
            repository: repository(loaded, &loaded.reading, &control),
            cluster: Cluster::from(&control),
            spooled: Spooled::new(spool, receipts, &self.pgdata),
            wal_directory,
            threads: loaded.settings.download_concurrency,
            most: loaded.settings.prefetch_segments,
        })
    }
}

/// Pushes the segments of one data directory.
struct Pusher {
    loaded: Arc<Loaded>,
    pgdata: PathBuf,
    metrics: Arc<Metrics>,
}

impl Pusher {
    /// Pushes by `push`, with all that it takes.
    fn with_site(
        &self,
        push: impl FnOnce(&Site) -> Result<bool, wal::Error>,
    ) -> Outcome<wal::Error> {
        let loaded = &self.loaded;
        let is_alone = ready_in(&self.pgdata).len() < 2;
        let control = control_file::read(&self.pgdata)?;
        let most = loaded.settings.retry_timeout.min(PATIENCE);
        let times = times(&self.pgdata, most);
        let session = loaded
            .session
            .within(times.request)
            .patient(&times.patience);
        let repository = repository(loaded, &session, &control);
        let spool = Spool::of(&self.pgdata, loaded.settings.spool_dir.as_deref());
        let spool = spool.map_err(wal::Error::local("use the spool of", &self.pgdata))?;
        let wal_directory = WalDirectory::of(&self.pgdata);
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let wal_directory = wal_directory
            .ok_or_else(gone)
            .map_err(wal::Error::local("find the WAL of", &self.pgdata))?;
        let second = loaded.second.as_ref();
        let second = second.map(|second| second.patient(times.request, &times.patience));
        let mirror = second.map(|second| second.of(&repository, Some(spool.clone())));
        let pipeline = loaded.pipeline.into_store(&session);
        let pipeline = if is_alone {
            pipeline
        } else {
            pipeline.compressing_in_place()
        };
        let site = Site {
            archiver: &Archiver {
                repository: &repository,
                pipeline: &pipeline,
                origin: (&control).into(),
                in_recovery: mode_of(&self.pgdata) != RecoveryMode::None,
                mirror: mirror.as_ref(),
            },
            wal_directory: &wal_directory,
            receipts: &receipts(loaded, &spool, Kind::Pushed, &control),
        };
        if is_alone {
            let to_come: BTreeSet<SegmentName> = ready_in(&self.pgdata).into_iter().collect();
            if let Err(error) = site.receipts.retain(|segment| to_come.contains(&segment)) {
                tracing::debug!("earlier receipts were not removed: {error}");
            }
        }
        let pushed = push(&site);
        match &pushed {
            Ok(true) => self.metrics.archived(control.system_identifier),
            Err(error) if error.is_of_the_store() => self.metrics.store_is_down(),
            Ok(false) | Err(_) => {}
        }
        pushed.map(drop)
    }
}

impl Push<Failed> for Pusher {
    fn push_asked(&self, segment: SegmentName) -> Outcome<Failed> {
        let pushed = self.with_site(|site| site.push_asked(segment).map(|()| true));
        if pushed.is_err()
            && let Ok(control) = control_file::read(&self.pgdata)
        {
            self.metrics.failed(control.system_identifier);
        }
        pushed.map_err(|error| failed(&error))
    }

    fn push_ahead(&self, segment: SegmentName) -> Outcome<Failed> {
        if postmaster::is_stopping(&self.pgdata) {
            return Err(failed(&wal::Error::Local {
                doing: "push ahead for the server that shuts down in",
                path: self.pgdata.clone(),
                source: io::ErrorKind::Interrupted.into(),
            }));
        }
        let pushed = self.with_site(|site| site.push_ahead(segment));
        pushed
            .inspect_err(|error| tell_left(segment, error))
            .map_err(|error| failed(&error))
    }

    fn ready(&self) -> Vec<SegmentName> {
        ready_in(&self.pgdata)
    }
}

fn ready_in(pgdata: &Path) -> Vec<SegmentName> {
    let ready = WalDirectory::of(pgdata).map(|directory| directory.ready_segments());
    ready.and_then(Result::ok).unwrap_or_default()
}

fn repository(loaded: &Loaded, session: &StoreSession, control: &ControlFile) -> Repository {
    let identities = loaded.settings.identities.clone();
    Repository::new(session.clone(), identities, control.system_identifier)
}

fn receipts(loaded: &Loaded, spool: &Spool, kind: Kind, control: &ControlFile) -> Receipts {
    let store = StoreIdentity(loaded.settings.store_identity());
    Receipts::new(spool.clone(), kind, control.system_identifier, store)
}

fn failed(error: &wal::Error) -> Failed {
    Failed {
        message: output::chain(error),
        hint: error.hint().map(|hint| hint.to_string()),
    }
}

fn no_wal_directory() -> Failed {
    Failed {
        message: "the data directory has no pg_wal".to_owned(),
        hint: None,
    }
}
