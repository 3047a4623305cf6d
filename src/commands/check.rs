//! `walhalla check`

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, Outcome};
use crate::check::arrival::{self, Arrival};
use crate::check::server::Learned;
use crate::check::{Deletes, Finding, State, check_reading, check_store, host};
use crate::cli::Check;
use crate::error::Error;
use crate::failure::Failure as _;
use crate::output::look::{counted, time};
use crate::output::{self, Shade};
use crate::repository::debts::RecordedDebt;
use crate::repository::owed::{MirrorId, Owed};
use crate::repository::{self, BackupEntry, Repository};
use crate::server::session::Server;
use crate::server::wal_directory::WalDirectory;
use crate::server::{self, control_file, postmaster};
use crate::session::StoreSession;

/// Somebody waits for the answer, and a store that fails for so long has a problem to tell of.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks of one thing, under its title.
#[derive(Serialize)]
struct Group {
    title: String,
    checks: Vec<Finding>,
}

/// What was found.
struct Report {
    store: String,
    groups: Vec<Group>,
    mirror: Option<(String, Vec<RecordedDebt>)>,
}

pub(super) fn run(context: &Context, arguments: &Check) -> Result<Outcome, Error> {
    let mut groups = vec![settings(context)?];
    let deadline = context.settings.retry_timeout.min(PATIENCE);
    let session = context.session_within(deadline)?;
    let first = of_store(&session, arguments)?;
    groups.push(Group {
        title: format!("store {}", session.url()),
        checks: first,
    });
    let mut mirror = None;
    if let Some(second) = &context.second(deadline, 1)? {
        let url = second.session.url().to_owned();
        let id = MirrorId::of(&url);
        groups.push(Group {
            title: format!("mirror {url}"),
            // What it is owed is told also while it is away.
            checks: of_store(&second.session, arguments)
                .unwrap_or_else(|error| vec![away(&second.session, &error)]),
        });
        mirror = Some((url, debts(context, &session, id)?));
    }
    match &arguments.pgdata {
        _ if arguments.read_only => groups.push(readable(context, &session)?),
        Some(pgdata) => groups.extend(of_server(context, arguments, &session, pgdata)?),
        None => tracing::info!(
            "the server was not checked: name its data directory, `walhalla check PGDATA`"
        ),
    }
    let report = Report {
        store: session.url().to_owned(),
        groups,
        mirror,
    };
    report.show(context)
}

/// What can be said of the settings by themselves.
fn settings(context: &Context) -> Result<Group, Error> {
    let settings = &context.settings;
    let encrypts = settings.recipients()?.is_some();
    let file = settings.file.as_deref();
    let mut checks = vec![match file {
        Some(file) => Finding::ok("settings file", file.display()),
        None => Finding::ok("settings file", "none")
            .noting("settings come from variables and the command line"),
    }];
    if rustix::process::geteuid().is_root() {
        let what = "root may do everything, so this says nothing about the server's user: run it as that user, \
                    sudo -u postgres walhalla check";
        checks.push(Finding::warning("user", "root", what));
    }
    checks.push(if encrypts {
        Finding::ok("encryption", "age_recipients")
    } else {
        Finding::ok("encryption", "age_recipients")
            .noting("off: what is stored can be read by everyone who can read the store")
    });
    if let Some(file) = settings.identities.file() {
        checks.push(host::secret("identity file", file));
        let unusable = settings.identities.must_be_usable().err();
        let problem = unusable.map(|error| output::chain(&*error));
        checks.push(Finding::of("identities in it", file.display(), problem));
    }
    Ok(Group {
        title: "settings".to_owned(),
        checks,
    })
}

fn of_store(session: &StoreSession, arguments: &Check) -> Result<Vec<Finding>, Error> {
    let deletes = if arguments.append_only {
        Deletes::Refused
    } else {
        Deletes::Expected
    };
    Ok(if arguments.read_only {
        session.with_store(async |store| check_reading(store).await)?
    } else {
        session.with_store(async |store| check_store(store, deletes).await)?
    })
}

/// What is told of a store that does not answer.
fn away(session: &StoreSession, error: &Error) -> Finding {
    let hint = error.hint().map(|hint| format!("\n{hint}"));
    let what = format!("{}{}", output::chain(error), hint.unwrap_or_default());
    Finding::failed("the store answers", session.url(), what)
}

/// Whether a host that only restores can read what it needs: of each cluster the newest backup.
fn readable(context: &Context, session: &StoreSession) -> Result<Group, Error> {
    let mut checks = Vec::new();
    for repository in Repository::all(session, &context.settings.identities)? {
        let cluster = repository.layout().system_identifier();
        let object = format!("cluster {cluster}");
        let catalog = repository.catalog()?;
        checks.push(match catalog.latest() {
            None => Finding::warning("read the newest backup", object, "there is no backup"),
            Some(backup) => match open_manifest(&repository, backup) {
                Ok(()) => {
                    Finding::ok("read the newest backup", object).noting(backup.id.to_string())
                }
                Err(error) => Finding::failed(
                    "read the newest backup",
                    object,
                    format!("{}: {}", backup.id, output::chain(&error)),
                ),
            },
        });
    }
    if checks.is_empty() {
        checks.push(Finding::warning(
            "read the newest backup",
            session.url(),
            "the store holds no cluster: is the prefix right?",
        ));
    }
    Ok(Group {
        title: "archive".to_owned(),
        checks,
    })
}

/// Begins to read the manifest of a backup, with the identity if it is encrypted.
fn open_manifest(repository: &Repository, backup: &BackupEntry) -> Result<(), repository::Error> {
    let layout = repository.layout();
    let object = layout.backup_object(&backup.id, &backup.manifest.name)?;
    repository.open(&object).map(drop)
}

/// The host and the server of a data directory, and a segment on its way.
fn of_server(
    context: &Context,
    arguments: &Check,
    session: &StoreSession,
    pgdata: &Path,
) -> Result<Vec<Group>, Error> {
    let pgdata = super::absolute(pgdata)?;
    let control = control_file::read(&pgdata)?;
    let mut groups = vec![of_host(context, &pgdata, control.segment_size.bytes())];
    if !postmaster::is_running(&pgdata) {
        let what = "no server runs in it: start it, and run this again";
        groups.push(Group {
            title: "server".to_owned(),
            checks: vec![Finding::failed("connect", pgdata.display(), what)],
        });
        return Ok(groups);
    }
    let connected = session
        .wait(Server::connect(&pgdata))
        .and_then(|mut server| {
            let learned = learn(context, session, &mut server, &pgdata)?;
            Ok((server, learned))
        });
    let (mut server, learned) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            let hint = error.hint().map(|hint| format!("\n{hint}"));
            let what = format!("{}{}", output::chain(&error), hint.unwrap_or_default());
            groups.push(Group {
                title: "server".to_owned(),
                checks: vec![
                    Finding::failed("connect", pgdata.display(), what),
                    Finding::warning(
                        arrival::CHECK,
                        pgdata.display(),
                        "not tried: the server was not reached",
                    ),
                ],
            });
            return Ok(groups);
        }
    };
    let mut checks = learned.findings();
    let is_own = learned.is_own;
    if !is_own || learned.facts.system_identifier != control.system_identifier {
        checks.insert(0, Finding::failed(
            "connect",
            pgdata.display(),
            format!(
                "the server that answers at {} runs in another data directory; PGHOST and PGPORT say which server is asked",
                learned.place
            ),
        ));
    }
    let archives = !learned.facts.in_recovery && is_own;
    let may_switch = learned.rights.may_switch;
    groups.push(Group {
        title: format!("server {}", learned.place),
        checks,
    });
    if archives && may_switch && !arguments.no_switch {
        let repository = Repository::new(
            session.clone(),
            context.settings.identities.clone(),
            control.system_identifier,
        );
        let arrival = Arrival {
            repository: &repository,
            pgdata: &pgdata,
            control: &control,
            most: Duration::from_secs(arguments.timeout),
        };
        groups.push(Group {
            title: "archive".to_owned(),
            checks: arrival.see(&mut server),
        });
    }
    session.wait(server.close());
    Ok(groups)
}

fn of_host(context: &Context, pgdata: &Path, segment_bytes: u64) -> Group {
    let mut checks = vec![host::owner(pgdata)];
    let spool = crate::spool::Spool::of(pgdata, context.settings.spool_dir.as_deref());
    let uid = std::fs::metadata(pgdata).map(|found| std::os::unix::fs::MetadataExt::uid(&found));
    match (&spool, &uid) {
        (Ok(spool), Ok(uid)) => {
            checks.push(host::belongings("files in the spool", spool.path(), *uid));
            checks.push(host::room(spool.path(), segment_bytes));
        }
        (Err(error), _) => checks.push(Finding::failed(
            "files in the spool",
            "spool_dir",
            error.to_string(),
        )),
        (_, Err(_)) => {}
    }
    let store = context.settings.store().ok();
    let directory: Option<PathBuf> = store.and_then(walhalla_providers::transfer::directory_of);
    if let (Some(directory), Ok(uid)) = (directory, &uid) {
        checks.push(host::belongings("files in the store", &directory, *uid));
    }
    Group {
        title: "host".to_owned(),
        checks,
    }
}

fn learn<'a>(
    context: &Context,
    session: &StoreSession,
    server: &mut Server,
    pgdata: &'a Path,
) -> Result<Learned<'a>, server::Error> {
    let facts = session.wait(server.facts())?;
    let now = Timestamp::now();
    let waiting = WalDirectory::of(pgdata).and_then(|wal| wal.ready_segments().ok());
    let encrypts = context.settings.recipients().is_ok_and(|it| it.is_some());
    Ok(Learned {
        place: server.place.clone(),
        pgdata,
        version: server.version,
        facts,
        settings: session.wait(server.settings())?,
        rights: session.wait(server.rights())?,
        archiver: session.wait(server.archiver())?,
        is_own: session.wait(server.runs_in(pgdata))?,
        waiting: waiting.map_or(0, |waiting| waiting.len() as u64),
        now,
        is_sealed: encrypts && !context.settings.identities.are_set(),
    })
}

impl Report {
    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.groups.iter().flat_map(|group| &group.checks)
    }

    fn of_state(&self, state: State) -> Vec<Value> {
        { self.findings() }
            .filter(|finding| finding.state == state)
            .map(|finding| json!({ "object": finding.object, "what": finding.problem, "check": finding.check }))
            .collect()
    }

    fn show(&self, context: &Context) -> Result<Outcome, Error> {
        if context.global.json {
            self.print_json()?;
        } else {
            self.print()?;
        }
        let worst = self.findings().map(|finding| finding.state).max();
        Ok(if worst == Some(State::Failed) {
            Outcome::ProblemFound
        } else {
            Outcome::Done
        })
    }

    fn print(&self) -> Result<(), output::Error> {
        for group in &self.groups {
            output::pieces(&[(Shade::Strong, &group.title)])?;
            group.checks.iter().try_for_each(print)?;
            if let Some((url, debts)) = &self.mirror
                && group.title == format!("mirror {url}")
            {
                output::line(&format!("  owed     {}", in_words(debts)))?;
            }
        }
        let number = |state| self.findings().filter(|it| it.state == state).count() as u64;
        let (failed, warnings) = (number(State::Failed), number(State::Warning));
        output::line(&match (failed, warnings) {
            (0, 0) => "everything that was checked is as it should be".to_owned(),
            (0, _) => format!("nothing failed; {}", counted(warnings, "warning")),
            (1, 0) => "1 check failed".to_owned(),
            (_, 0) => format!("{failed} checks failed"),
            (_, _) => format!(
                "{} failed; {}",
                counted(failed, "check"),
                counted(warnings, "warning")
            ),
        })
    }

    fn print_json(&self) -> Result<(), output::Error> {
        let problems = self.of_state(State::Failed);
        let mut report = json!({
            "ok": problems.is_empty(),
            "store": self.store,
            "problems": problems,
            "warnings": self.of_state(State::Warning),
            "groups": self.groups,
        });
        if let (Some((store, debts)), Some(fields)) = (&self.mirror, report.as_object_mut()) {
            let owed: Vec<String> = debts.iter().map(|debt| debt.owed.to_string()).collect();
            let mirror = json!({ "store": store, "owed": owed });
            fields.insert("mirror".to_owned(), mirror);
        }
        output::json(&report)
    }
}

fn print(finding: &Finding) -> Result<(), output::Error> {
    let (shade, word) = match finding.state {
        State::Ok => (Shade::Good, "ok"),
        State::Skipped => (Shade::Faint, "skipped"),
        State::Warning => (Shade::Warning, "warning"),
        State::Failed => (Shade::Bad, "failed"),
    };
    let note = { finding.note.as_ref() }.map(|note| format!(": {note}"));
    let text = format!("{}{}", finding.check, note.unwrap_or_default());
    output::pieces(&[
        (Shade::Plain, "  "),
        (shade, &format!("{word:<9}")),
        (Shade::Plain, &text),
    ])?;
    for line in { finding.problem.iter() }.flat_map(|problem| problem.lines()) {
        output::line(&format!("           {line}"))?;
    }
    Ok(())
}

/// What the second store is owed, of all clusters.
fn debts(
    context: &Context,
    session: &StoreSession,
    id: MirrorId,
) -> Result<Vec<RecordedDebt>, Error> {
    let mut debts = Vec::new();
    for repository in Repository::all(session, &context.settings.identities)? {
        debts.extend(repository.debts(id)?);
    }
    Ok(debts)
}

/// How much a second store is owed, and since when.
pub(super) fn in_words(debts: &[RecordedDebt]) -> String {
    let Some(since) = debts.iter().map(|debt| debt.since).min() else {
        return "nothing".to_owned();
    };
    let is_backup = |debt: &&RecordedDebt| matches!(debt.owed, Owed::Backup(_));
    let backups = debts.iter().filter(is_backup).count();
    let files = debts.len() - backups;
    format!(
        "{files} WAL {} and {backups} {}, since {}",
        if files == 1 { "file" } else { "files" },
        if backups == 1 { "backup" } else { "backups" },
        time(since)
    )
}
