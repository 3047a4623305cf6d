//! One file a command; each reads like the manual.

mod backup_fetch;
mod backup_list;
mod backup_mark;
mod backup_merge;
mod backup_push;
mod backup_show;
mod check;
mod config;
mod copy;
mod daemon;
mod delete;
mod drill;
mod find;
mod keygen;
mod ls;
mod malloc;
mod man;
mod plan;
mod restore;
mod status;
mod verify;
mod wal_fetch;
mod wal_prefetch;
mod wal_push;
mod wal_receive;
mod wal_show;
mod wal_summarize;
mod wrong_command;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use jiff::Timestamp;
use tokio::signal::unix::SignalKind;
use tracing::level_filters::LevelFilter;
use walhalla_postgres::{ControlFile, SegmentName};
use walhalla_providers::transfer::{Options, Rates, RetryPolicy};

use crate::archive::Reading;
use crate::cli::{Cli, Cluster, Command, Global};
use crate::config::{Environment, Flags, Settings};
use crate::copying::mirror::Following;
use crate::daemon::client;
use crate::daemon::protocol::{Answer, Request, Work};
use crate::error::{ABSENT, Error, PROBLEM, USAGE};
use crate::failure::Failure as _;
use crate::output::look::{self, Clock, Width};
use crate::output::{self, LogFormat};
use crate::pipeline::{Pipeline, QUEUED_BLOCKS};
use crate::prefetch::spooled::Spooled;
use crate::progress::Show;
use crate::repository::Repository;
use crate::repository::reports::Report;
use crate::restore::stage::Seal;
use crate::restore::target;
use crate::retention::CLOCKS_APART;
use crate::server::postmaster;
use crate::server::waiting_server::Times;
use crate::session::{Network, StoreSession};
use crate::spool::Spool;
use crate::spool::receipts::{Kind, Receipts, StoreIdentity};
use crate::wal::mirror::{Mirror, Second};

/// The part of a spool in which it is noted what stores were found to do.
const PROBED: &str = "probed";

/// How long a report is tried to be stored.
const REPORT_TIME: Duration = Duration::from_secs(30);

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done, and there is something wrong that the user must know.
    ProblemFound,
    /// Done, with an exit code of another program's convention.
    Exit(u8),
}

/// What commands work with.
pub struct Context {
    /// Flags of every command.
    pub global: Global,
    /// The settings.
    pub settings: Settings,
    network_threads: usize,
    reads: Reads,
    /// Of all stores together.
    rates: Rates,
    /// Started when a store is first opened: many a call is answered without one.
    network: OnceLock<Network>,
}

/// What a command sees where there are two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// The first one, as it writes to it.
    First,
    /// What either of them has.
    Either,
}

/// Runs the command and prints its error, if any.
pub fn run(cli: Cli) -> ExitCode {
    output::start_log(level(&cli.global), cli.global.log_format);
    let wants_all = matches!(&cli.command, Command::BackupList(list) if list.detail);
    look::start(
        if cli.global.utc {
            Clock::Utc
        } else {
            Clock::Local
        },
        if cli.global.wide || wants_all {
            Width::Wide
        } else {
            Width::Fitting
        },
    );
    let log_format = cli.global.log_format;
    let fetching = match &cli.command {
        Command::WalFetch(arguments) => {
            Some((arguments.name.clone(), wal_fetch::recovery_mode(arguments)))
        }
        _ => None,
    };
    match dispatch(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::ProblemFound) => ExitCode::from(PROBLEM),
        Ok(Outcome::Exit(code)) => ExitCode::from(code),
        Err(error) => ExitCode::from(match fetching {
            None => report(&error, log_format),
            // An answer, which recovery asks for at each end of a timeline, not a failure.
            Some(_) if error.exit_code() == ABSENT => {
                tracing::info!("{error}");
                ABSENT
            }
            Some((name, mode)) => {
                let error = Error::Fetch {
                    name,
                    source: Box::new(error),
                };
                report(&error, log_format);
                wal_fetch::exit_code(mode, &error)
            }
        }),
    }
}

/// Of which messages the log has.
fn level(global: &Global) -> LevelFilter {
    match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    }
}

fn report(error: &Error, log_format: LogFormat) -> u8 {
    output::error(error, error.hint().as_deref(), log_format);
    error.exit_code()
}

/// Prints the help that was asked for, or what is wrong with the command line.
pub fn print_usage(error: &clap::Error) {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    let usage = error.get(ContextKind::Usage).map(ToString::to_string);
    let usage = usage.unwrap_or_default();
    let mut commands = Cli::command();
    // Otherwise its commands have no arguments yet.
    commands.build();
    let own = match error.kind() {
        // `delete` has commands of its own, of which clap names the nearest.
        ErrorKind::InvalidSubcommand if usage.contains("delete") => {
            said(ContextKind::InvalidSubcommand).and_then(wrong_command::deletion)
        }
        ErrorKind::InvalidSubcommand => {
            said(ContextKind::InvalidSubcommand).map(|word| wrong_command::message(&commands, word))
        }
        ErrorKind::UnknownArgument if error.get(ContextKind::SuggestedArg).is_none() => {
            said(ContextKind::InvalidArg)
                .and_then(|word| wrong_command::argument(&commands, &usage, word))
        }
        _ => None,
    };
    match own {
        Some(message) => output::message(&message),
        // Printing may fail when nobody reads it.
        None => drop(error.print()),
    }
}

/// The exit code for a command line that cannot be understood. PostgreSQL would take 2 from a
/// `restore_command` for the end of the archive, so in archive recovery it is another.
pub fn usage_exit() -> ExitCode {
    let is_fetch = std::env::args_os().any(|argument| argument == "wal-fetch");
    let code = if is_fetch {
        wal_fetch::usage_exit_code()
    } else {
        USAGE
    };
    ExitCode::from(code)
}

fn dispatch(cli: Cli) -> Result<Outcome, Error> {
    let Cli { global, command } = cli;
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "walhalla",
                &mut std::io::stdout(),
            );
            return Ok(Outcome::Done);
        }
        Command::Man { directory } => return man::run(&directory),
        Command::Keygen(arguments) => return keygen::run(&global, &arguments),
        Command::RestoreEnd { plan, seal } => {
            return restore::end(&Seal { plan, sha256: seal });
        }
        Command::DrillServer { command } => return drill::become_server(&command),
        Command::WalFetch(arguments) if arguments.plan.is_some() => {
            return wal_fetch::from_plan(&arguments);
        }
        _ => {}
    }
    must_only_read(&command, &global)?;
    let mut settings = load(&global, read_rate(&command))?;
    let is_alone = global.store.is_some() && !archives(&command);
    if is_alone || settings.stores.as_of.is_some() {
        // Who names a store means that one; and as one was at a time, the other was at another.
        settings.mirror = None;
    }
    let context = Context {
        network_threads: network_threads(&command, &settings),
        reads: reads(&command, &settings),
        network: OnceLock::new(),
        rates: Rates::new(settings.upload_rate, settings.download_rate),
        global,
        settings,
    };
    let is_held = context.global.quiet && !context.global.json && does_work(&command);
    if is_held {
        output::hold();
    }
    let outcome = run_in(&context, command);
    if is_held && !matches!(outcome, Ok(Outcome::Done)) {
        output::release()?;
    }
    if let Some(network) = context.network.into_inner() {
        // Waiting for a request that hangs would keep the answer back.
        network.stop();
    }
    outcome
}

/// The flag of the one command that reads a data directory.
fn read_rate(command: &Command) -> Option<&str> {
    match command {
        Command::BackupPush(arguments) => arguments.read_rate.as_deref(),
        _ => None,
    }
}

fn load(global: &Global, read_rate: Option<&str>) -> Result<Settings, Error> {
    let mut settings = Settings::load(&flags(global, read_rate))?;
    let as_of = global.store_as_of.as_deref();
    settings.stores.as_of = as_of.map(|text| past("--store-as-of", text)).transpose()?;
    Ok(settings)
}

/// Whether a command is for what it does, and not for what it says.
fn does_work(command: &Command) -> bool {
    if let Command::Delete(arguments) = command {
        return arguments.confirm;
    }
    matches!(
        command,
        Command::BackupPush(_)
            | Command::BackupMark(_)
            | Command::BackupMerge(_)
            | Command::BackupFetch(_)
            | Command::Restore(_)
            | Command::Copy(_)
            | Command::Check(_)
            | Command::Drill(_)
            | Command::Verify(_)
            | Command::WalVerify(_)
            | Command::WalSummarize(_)
    )
}

/// Refuses to change a store as it was.
fn must_only_read(command: &Command, global: &Global) -> Result<(), crate::config::Error> {
    let changes = matches!(
        command,
        Command::WalPush(_)
            | Command::WalReceive(_)
            | Command::WalSummarize(_)
            | Command::Daemon(_)
            | Command::BackupPush(_)
            | Command::BackupMark(_)
            | Command::BackupMerge(_)
            | Command::Delete(_)
            | Command::Check(_)
    );
    match &global.store_as_of {
        Some(time) if changes => Err(crate::config::Error::Flag {
            flag: "--store-as-of",
            value: time.clone(),
            problem: "it is for commands that read, and this one changes the store".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Whether a command brings into the archive what both stores are to have.
fn archives(command: &Command) -> bool {
    matches!(
        command,
        Command::WalPush(_) | Command::WalReceive(_) | Command::Daemon(_) | Command::BackupPush(_)
    )
}

/// Which stores a command reads.
fn reads(command: &Command, settings: &Settings) -> Reads {
    let only_reads = matches!(
        command,
        Command::WalFetch(_)
            | Command::WalPrefetch(_)
            | Command::WalShow(_)
            | Command::Status(_)
            | Command::Ls(_)
            | Command::BackupList(_)
            | Command::BackupShow(_)
            | Command::BackupFetch(_)
            | Command::Restore(_)
            | Command::Plan(_)
            | Command::Drill(_)
            | Command::Find(_)
    );
    if only_reads && settings.mirror.is_some() {
        Reads::Either
    } else {
        Reads::First
    }
}

/// A time on the command line that must not lie ahead.
fn past(flag: &'static str, text: &str) -> Result<Timestamp, crate::config::Error> {
    let wrong = |problem| crate::config::Error::Flag {
        flag,
        value: text.to_owned(),
        problem,
    };
    let time = target::parse_time(text).map_err(wrong)?;
    if time.duration_since(Timestamp::now()) > CLOCKS_APART {
        return Err(wrong("it lies ahead".to_owned()));
    }
    Ok(time)
}

fn flags<'a>(global: &'a Global, read_rate: Option<&'a str>) -> Flags<'a> {
    Flags {
        file: global.config.as_deref(),
        store: global.store.as_deref(),
        upload_rate: global.upload_rate.as_deref(),
        download_rate: global.download_rate.as_deref(),
        read_rate,
        set: &global.set,
        environment: if global.no_environment {
            Environment::Ignored
        } else {
            Environment::Read
        },
    }
}

/// One segment to or from a directory leaves nothing to do for a second thread.
fn network_threads(command: &Command, settings: &Settings) -> usize {
    let is_of_a_segment = matches!(command, Command::WalPush(_) | Command::WalFetch(_));
    let store = settings.store().ok();
    let directory = store.and_then(walhalla_providers::transfer::directory_of);
    if is_of_a_segment && directory.is_some() {
        1
    } else {
        2
    }
}

fn run_in(context: &Context, command: Command) -> Result<Outcome, Error> {
    match command {
        Command::WalPush(arguments) => wal_push::run(context, &arguments),
        Command::WalFetch(arguments) => wal_fetch::run(context, &arguments),
        Command::WalPrefetch(arguments) => wal_prefetch::run(context, &arguments),
        Command::Daemon(arguments) => daemon::run(context, &arguments),
        Command::WalReceive(arguments) => wal_receive::run(context, arguments),
        Command::BackupPush(arguments) => backup_push::run(context, arguments),
        Command::BackupList(arguments) => backup_list::run(context, &arguments),
        Command::Ls(arguments) => ls::run(context, &arguments),
        Command::BackupShow(arguments) => backup_show::run(context, &arguments),
        Command::BackupMark(arguments) => backup_mark::run(context, &arguments),
        Command::Copy(arguments) => copy::run(context, &arguments),
        Command::Delete(arguments) => delete::run(context, &arguments),
        Command::BackupFetch(arguments) => backup_fetch::run(context, arguments),
        Command::Restore(arguments) => restore::run(context, arguments),
        Command::BackupMerge(arguments) => backup_merge::run(context, &arguments),
        Command::Plan(arguments) => plan::run(context, arguments),
        Command::Verify(arguments) => verify::backups(context, &arguments),
        Command::WalVerify(arguments) => verify::archive(context, &arguments),
        Command::Drill(arguments) => drill::run(context, &arguments),
        Command::Find(arguments) => find::run(context, &arguments),
        Command::WalShow(cluster) => wal_show::run(context, &cluster),
        Command::Status(arguments) => status::run(context, &arguments),
        Command::WalSummarize(arguments) => wal_summarize::run(context, &arguments),
        Command::Check(arguments) => check::run(context, &arguments),
        Command::Config => config::run(context),
        Command::Completions { .. }
        | Command::Man { .. }
        | Command::Keygen(_)
        | Command::RestoreEnd { .. }
        | Command::DrillServer { .. } => Ok(Outcome::Done),
    }
}

impl Context {
    /// How progress is shown: --quiet means that it is not, unless the flag for it says otherwise.
    fn show(&self) -> Show {
        match self.global.progress {
            Show::Auto if self.global.quiet => Show::Never,
            show => show,
        }
    }

    /// How summaries of WAL are read.
    fn reading(&self) -> Reading {
        Reading {
            threads: self.settings.download_concurrency,
            show: self.show(),
        }
    }

    /// Opens the store that the settings name.
    pub fn session(&self) -> Result<StoreSession, Error> {
        self.session_within(self.settings.retry_timeout)
    }

    /// The same with another time for which a failing request is tried again.
    fn session_within(&self, deadline: Duration) -> Result<StoreSession, Error> {
        self.open(&self.settings, deadline)
    }

    /// Opens the store of these settings, or both.
    fn open(&self, settings: &Settings, deadline: Duration) -> Result<StoreSession, Error> {
        let network = self.network()?;
        match self.reads {
            Reads::First => open(network, settings, &self.rates, deadline),
            Reads::Either => open_reading(network, &self.global, settings, &self.rates, deadline),
        }
    }

    /// Opens the second store, if there is one.
    fn second(&self, deadline: Duration, threads: usize) -> Result<Option<Second>, Error> {
        second(
            self.network()?,
            (&self.global, &self.settings),
            &self.rates,
            deadline,
            threads,
        )
    }

    /// The second store of a repository, where it is noted on this host what it is owed.
    fn mirror_of(&self, first: &Repository, spool: Option<Spool>) -> Result<Option<Mirror>, Error> {
        let second = self.second(self.settings.retry_timeout, cores())?;
        Ok(second.map(|second| second.of(first, spool)))
    }

    /// What keeps the second store alike.
    fn following<'a>(
        &self,
        first: &'a Repository,
        mirror: Option<&'a Mirror>,
    ) -> Option<Following<'a>> {
        Some(Following {
            first,
            mirror: mirror?,
            threads: self.settings.upload_concurrency,
            show: self.show(),
        })
    }

    /// Opens another store than the settings name.
    fn session_with(&self, settings: &Settings) -> Result<StoreSession, Error> {
        open(
            self.network()?,
            settings,
            &self.rates,
            settings.retry_timeout,
        )
    }

    /// The settings of another store: those of a file of its own, or else these.
    fn settings_for(&self, store: &str, file: Option<&Path>) -> Result<Settings, Error> {
        settings_of_other(&self.global, &self.settings, store, file)
    }

    /// The same for a command of the server in `pgdata`, in whose spool is what earlier ones found out about the store.
    fn session_beside(&self, pgdata: &Path, deadline: Duration) -> Result<StoreSession, Error> {
        let mut settings = self.settings.clone();
        let spool = self.spool_of(pgdata);
        settings.stores.s3.probe_memory = spool.map(|spool| spool.path().join(PROBED));
        self.open(&settings, deadline)
    }

    fn network(&self) -> Result<&Network, Error> {
        if let Some(network) = self.network.get() {
            return Ok(network);
        }
        let network = Network::start(self.network_threads).map_err(|source| Error::System {
            doing: "start the network's threads",
            source,
        })?;
        Ok(self.network.get_or_init(|| network))
    }

    /// Hears these signals from now on, see [`Network::on_signals`].
    fn on_signals<T: Copy + Send + 'static>(
        &self,
        signals: &[(SignalKind, T)],
        heard: impl Fn(T) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        let heard = self.network()?.on_signals(signals, heard);
        heard.map_err(|source| Error::System {
            doing: "listen for signals",
            source,
        })
    }

    /// The cluster that was chosen, or the only one.
    pub fn repository(&self, cluster: &Cluster) -> Result<Repository, Error> {
        Ok(Repository::choose(
            self.session()?,
            self.settings.identities.clone(),
            cluster.system_identifier.or(self.settings.cluster),
        )?)
    }

    /// The cluster that was chosen, or all that there are.
    pub fn repositories(&self, cluster: &Cluster) -> Result<Vec<Repository>, Error> {
        if cluster
            .system_identifier
            .or(self.settings.cluster)
            .is_some()
        {
            return Ok(vec![self.repository(cluster)?]);
        }
        Ok(Repository::all(
            &self.session()?,
            &self.settings.identities,
        )?)
    }

    /// The cluster of the server in `pgdata`.
    pub fn repository_of(&self, pgdata: &Path, control: &ControlFile) -> Result<Repository, Error> {
        Ok(Repository::new(
            self.session_beside(pgdata, self.settings.retry_timeout)?,
            self.settings.identities.clone(),
            control.system_identifier,
        ))
    }

    /// The same for a command that the server waits for.
    fn hasty_repository_of(
        &self,
        pgdata: &Path,
        control: &ControlFile,
        times: &Times,
    ) -> Result<Repository, Error> {
        let session = self.session_beside(pgdata, times.request)?;
        Ok(Repository::new(
            session.patient(&times.patience),
            self.settings.identities.clone(),
            control.system_identifier,
        ))
    }

    /// Stores a report where the credentials can, and says so where they cannot. A store as it was gets none.
    fn record(&self, repository: &Repository, report: &Report) {
        if self.settings.stores.as_of.is_some() {
            return;
        }
        if let Err(error) = self.record_in_first(repository, report) {
            let kind = report.kind;
            tracing::info!(
                "the report of this {kind} could not be stored, so `walhalla status` does not see it: {}",
                output::chain(&error)
            );
        }
    }

    /// What reads either of two stores writes to none of them.
    fn record_in_first(&self, repository: &Repository, report: &Report) -> Result<(), Error> {
        let first = match self.reads {
            Reads::First => repository.within(REPORT_TIME),
            Reads::Either => {
                let session = open(self.network()?, &self.settings, &self.rates, REPORT_TIME)?;
                repository.with_session(&session)
            }
        };
        Ok(first.record_report(report)?)
    }

    /// A pipeline into the repository's store, with a thread for each core.
    pub fn pipeline(&self, repository: &Repository) -> Result<Pipeline, Error> {
        self.pipeline_with(repository, cores())
    }

    /// The same for one segment, which keeps no more threads busy than blocks of it wait at a time.
    pub fn segment_pipeline(&self, repository: &Repository) -> Result<Pipeline, Error> {
        self.pipeline_with(repository, cores().min(QUEUED_BLOCKS))
    }

    fn pipeline_with(&self, repository: &Repository, threads: usize) -> Result<Pipeline, Error> {
        self.pipeline_into(repository.session(), threads)
    }

    /// A pipeline into a session's store.
    fn pipeline_into(&self, session: &StoreSession, threads: usize) -> Result<Pipeline, Error> {
        let recipients = self.settings.recipients()?.map(Arc::new);
        let compression = self.settings.compression;
        Ok(Pipeline::new(
            session.clone(),
            compression,
            recipients,
            threads,
        ))
    }

    /// What earlier calls for the server in `pgdata` left, for its own user only: PostgreSQL runs as the owner of its data
    /// directory. `None` where nothing can be kept.
    fn receipts(&self, kind: Kind, pgdata: &Path, control: &ControlFile) -> Option<Receipts> {
        let spool = self.spool_of(pgdata)?;
        let store = StoreIdentity(self.settings.store_identity());
        Some(Receipts::new(spool, kind, control.system_identifier, store))
    }

    /// The segments that were fetched ahead for the server in `pgdata`.
    fn spooled(&self, pgdata: &Path, control: &ControlFile) -> Option<Spooled> {
        let receipts = self.receipts(Kind::Fetched, pgdata, control)?;
        Some(Spooled::new(self.spool_of(pgdata)?, receipts, pgdata))
    }

    /// The spool of the server in `pgdata`, for its own user only.
    fn spool_of(&self, pgdata: &Path) -> Option<Spool> {
        let is_own = |found: Metadata| found.uid() == rustix::process::geteuid().as_raw();
        if !pgdata.metadata().is_ok_and(is_own) {
            return None;
        }
        let spool = Spool::of(pgdata, self.settings.spool_dir.as_deref());
        spool.inspect_err(spool_not_used).ok()
    }
}

/// The settings of another store: those of a file of its own, or else these.
fn settings_of_other(
    global: &Global,
    own: &Settings,
    store: &str,
    file: Option<&Path>,
) -> Result<Settings, Error> {
    let Some(file) = file else {
        let mut settings = own.clone();
        settings.store = Some(store.to_owned());
        settings.stores.as_of = None;
        return Ok(settings);
    };
    let flags = Flags {
        file: Some(file),
        store: Some(store),
        // Variables are those of this store.
        environment: Environment::Ignored,
        ..flags(global, None)
    };
    Ok(Settings::load(&flags)?)
}

/// The settings of the second store, if there is one.
fn mirror_settings(global: &Global, settings: &Settings) -> Result<Option<Settings>, Error> {
    let Some(mirror) = &settings.mirror else {
        return Ok(None);
    };
    let file = settings.mirror_config.as_deref();
    let second = settings_of_other(global, settings, mirror, file)?;
    let trimmed = |url: &str| url.trim_end_matches('/').to_owned();
    let is_of_one_profile = second.stores.s3.profile == settings.stores.s3.profile;
    if is_of_one_profile && trimmed(mirror) == trimmed(settings.store()?) {
        return Err(crate::config::Error::MirrorOfItself(mirror.clone()).into());
    }
    Ok(Some(second))
}

/// Opens the store that the settings name and the second one, if there is one, for what either of them has.
fn open_reading(
    network: &Network,
    global: &Global,
    settings: &Settings,
    rates: &Rates,
    deadline: Duration,
) -> Result<StoreSession, Error> {
    let Some(second) = mirror_settings(global, settings)? else {
        return open(network, settings, rates, deadline);
    };
    let first = (settings.store()?, &settings.stores);
    let second = (second.store()?, &second.stores);
    Ok(network.open_either(first, second, options(settings, rates, deadline))?)
}

/// Opens the second store, if there is one.
fn second(
    network: &Network,
    (global, settings): (&Global, &Settings),
    rates: &Rates,
    deadline: Duration,
    threads: usize,
) -> Result<Option<Second>, Error> {
    let Some(of_second) = mirror_settings(global, settings)? else {
        return Ok(None);
    };
    let options = options(&of_second, rates, deadline);
    let session = network.open_second(of_second.store()?, &of_second.stores, options)?;
    let recipients = settings.recipients()?.map(Arc::new);
    let pipeline = Pipeline::new(session.clone(), settings.compression, recipients, threads);
    Ok(Some(Second {
        session,
        pipeline,
        mode: settings.mirror_mode,
        bound: None,
    }))
}

/// Opens the store that the settings name.
fn open(
    network: &Network,
    settings: &Settings,
    rates: &Rates,
    deadline: Duration,
) -> Result<StoreSession, Error> {
    let options = options(settings, rates, deadline);
    Ok(network.open(settings.store()?, &settings.stores, options)?)
}

/// How a store is used.
fn options(settings: &Settings, rates: &Rates, deadline: Duration) -> Options {
    let retry = RetryPolicy {
        deadline,
        ..RetryPolicy::default()
    };
    let upload_concurrency = settings.upload_concurrency;
    // Comparing an archived file with another form of it holds two downloads open on one thread.
    let download_concurrency = settings.download_concurrency + 1;
    Options {
        retry,
        upload_concurrency,
        download_concurrency,
        rates: rates.clone(),
    }
}

/// Asks the daemon of this host to do something with a segment; `None` where there is none.
fn ask_daemon(
    context: &Context,
    pgdata: &Path,
    segment: SegmentName,
    work: Work,
) -> Option<Answer> {
    let request = Request {
        version: crate::LONG_VERSION.to_owned(),
        store: StoreIdentity(context.settings.store_identity()),
        pgdata: pgdata.canonicalize().ok()?,
        segment: segment.to_string(),
        work,
    };
    let is_stopping = || postmaster::is_stopping(pgdata);
    let answer = client::ask(&context.settings.socket, &request, is_stopping);
    if let Some(Answer::Unfit(reason)) = &answer {
        tracing::info!("the daemon is not used: {reason}");
        return None;
    }
    answer
}

/// Whether a file had a receipt, which is spent. Whatever hinders that, the work is done as if there were none.
fn take_receipt(receipts: &Receipts, segment: SegmentName, path: &Path) -> bool {
    let has = receipts.take(segment, path);
    has.inspect_err(spool_not_used).unwrap_or(false)
}

fn spool_not_used(error: &std::io::Error) {
    tracing::warn!("the spool is not used: {error}");
}

/// The path, told from the working directory: a server would tell a relative one from its own.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::System {
        doing: "find the working directory",
        source,
    })
}

/// What a restore needs itself: its program, its store if that is a directory, and the files of its settings.
fn needed(context: &Context) -> Result<Vec<PathBuf>, Error> {
    let store = walhalla_providers::transfer::directory_of(context.settings.store()?);
    let needed = std::env::current_exe().ok().into_iter().chain(store);
    let needed = needed.chain(context.settings.files());
    needed.map(|path| absolute(&path)).collect()
}

/// The setting `spool_dir`, as an absolute path.
fn spool(settings: &Settings) -> Result<Option<PathBuf>, Error> {
    let spool = settings.spool_dir.as_deref();
    spool.map(absolute).transpose()
}

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
