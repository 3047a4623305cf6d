//! PostgreSQL's own programs that check a cluster.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Error;
use super::account::Account;
use super::binaries::Binaries;
use super::check::Verdict;
use super::queries::{SESSION, Session};
use super::scratch::Scratch;
use super::server::{tail, without_surroundings};
use crate::progress::is_interrupted;

/// How often a program is looked at.
const PAUSE: Duration = Duration::from_millis(50);
/// How many lines of a program's output are told.
const TOLD_LINES: usize = 40;
/// The first version that has `pg_amcheck`, and the heap check that it calls.
const FIRST_WITH_AMCHECK: u32 = 14;

/// Checks every database's heaps and indexes, and that the indexes have every row.
///
/// # Errors
/// [`Error::Interrupted`]; [`Error::Local`].
pub fn amcheck(
    binaries: &Binaries,
    account: &Account,
    scratch: &Scratch,
    session: &Session,
) -> Result<Verdict, Error> {
    let major = session.version.major();
    if major < FIRST_WITH_AMCHECK {
        return Ok(Verdict::Skipped(format!(
            "PostgreSQL {major} has no pg_amcheck"
        )));
    }
    let Some(program) = binaries.program("pg_amcheck") else {
        return Ok(Verdict::Skipped(
            "there is no pg_amcheck beside the server".to_owned(),
        ));
    };
    if !session.has_amcheck {
        return Ok(Verdict::Skipped(
            "the extension amcheck is not installed here".to_owned(),
        ));
    }
    let mut command = account.command(&program);
    command
        .args([
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--no-password",
            "--port=5432",
        ])
        .arg("--host")
        .arg(scratch.path())
        .args(["--username", &session.role])
        .args(["--jobs", &threads().to_string()]);
    without_surroundings(&mut command);
    let options = SESSION.map(|(name, value)| format!("-c {name}={value}"));
    command.env("PGOPTIONS", options.join(" "));
    run(command, &program, (scratch, account), "pg_amcheck.log")
}

/// Checks the checksum of every page of a server that was stopped.
///
/// # Errors
/// [`Error::Interrupted`]; [`Error::Local`].
pub fn checksums(
    binaries: &Binaries,
    account: &Account,
    scratch: &Scratch,
) -> Result<Verdict, Error> {
    // Its name in 11 is the second one.
    let programs: [(&str, &[&str]); 2] =
        [("pg_checksums", &["--check"]), ("pg_verify_checksums", &[])];
    let mut there = programs
        .into_iter()
        .filter_map(|(name, options)| Some((binaries.program(name)?, options)));
    let Some((program, options)) = there.next() else {
        return Ok(Verdict::Skipped(
            "there is no pg_checksums beside the server".to_owned(),
        ));
    };
    let mut command = account.command(&program);
    command.args(options).arg("-D").arg(scratch.data());
    without_surroundings(&mut command);
    run(command, &program, (scratch, account), "pg_checksums.log")
}

fn run(
    mut command: Command,
    program: &Path,
    (scratch, account): (&Scratch, &Account),
    log: &str,
) -> Result<Verdict, Error> {
    let (log, output) = scratch.create(log, account)?;
    let errors = output.try_clone().map_err(Error::local("create", &log))?;
    let child = command
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    let mut child = child.map_err(Error::local("start", program))?;
    loop {
        let ended = child
            .try_wait()
            .map_err(Error::local("wait for", program))?;
        if let Some(status) = ended {
            return Ok(if status.success() {
                Verdict::Passed
            } else {
                Verdict::Failed(words(&tail(&log), &status.to_string()))
            });
        }
        if is_interrupted() {
            drop(child.kill());
            drop(child.wait());
            return Err(Error::Interrupted);
        }
        std::thread::sleep(PAUSE);
    }
}

fn words(output: &str, status: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    match lines.len() {
        0 => status.to_owned(),
        all if all <= TOLD_LINES => lines.join("\n"),
        all => {
            let told: Vec<&str> = lines.into_iter().take(TOLD_LINES).collect();
            format!("{}\nand {} lines more", told.join("\n"), all - TOLD_LINES)
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
