//! What PostgreSQL does, by its log.

use std::collections::BTreeSet;
use std::path::Path;

use super::branches::{Backup, Branches};
use super::draw::Drawn;
use super::truth::Logged;
use crate::support::{Cluster, copy_tree};

/// A recovery that ended, at its target or otherwise.
pub struct Recovery {
    /// Where it stopped.
    pub stopped: Option<Logged>,
    /// Why it failed.
    pub fatal: Option<String>,
    /// The segments that it asked for and got.
    pub segments: BTreeSet<String>,
    /// How many of them it had when it was consistent.
    pub segments_to_consistency: usize,
}

/// The prefetcher of 15 and later may ask for a segment more, ahead of replay, which the stage answers as absent.
/// Without it a server asks for what it replays.
pub const EXACT: &str = "recovery_prefetch = off\n";

/// What PostgreSQL says when it refuses.
const REFUSALS: [&str; 4] = [
    "recovery ended before configured recovery target was reached",
    "requested recovery stop point is before consistent recovery point",
    "is not a child of this server's history",
    "does not exist",
];

impl Recovery {
    /// Recovers by hand, from all that was archived, with the target as the user gave it. The server ends before it
    /// would write WAL, so that links do for the segments.
    pub fn by_hand(branches: &Branches, backup: &Backup, target: &Drawn, name: &str) -> Self {
        let data = branches.area.path(name);
        copy_tree(&backup.files, &data);
        let (setting, value) = target.setting();
        let (raw, timeline) = (branches.raw.display(), &target.timeline);
        let inclusive = if target.is_exclusive { "off" } else { "on" };
        let value = value.replace('\'', "''");
        // A backup of a server that was restored to a point has that point in its settings.
        let cleared =
            ["time", "xid", "name", "lsn"].map(|name| format!("recovery_target_{name} = ''\n"));
        let settings = format!(
            "{}{EXACT}archive_mode = off\nhot_standby = off\n\
             restore_command = 'ln {raw}/%f %p'\n\
             recovery_target_timeline = '{timeline}'\nrecovery_target_{setting} = '{value}'\n\
             recovery_target_inclusive = {inclusive}\nrecovery_target_action = shutdown\n",
            cleared.concat()
        );
        append(&data.join("postgresql.auto.conf"), &settings);
        branches.area.write(&format!("{name}/recovery.signal"), "");
        let mut server = Cluster::adopt(&branches.area, 17, data);
        let recovery = Self::read(&server.run_to_its_end());
        drop(server);
        branches.area.remove(name);
        recovery
    }

    /// Of a server's log.
    pub fn read(log: &str) -> Self {
        let mut recovery = Self {
            stopped: None,
            fatal: None,
            segments: BTreeSet::new(),
            segments_to_consistency: 0,
        };
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("LOG:  restored log file \"") {
                let name = rest.split('"').next().unwrap();
                if !name.ends_with(".history") {
                    recovery.segments.insert(name.to_owned());
                }
            } else if line.contains("LOG:  consistent recovery state reached") {
                recovery.segments_to_consistency = recovery.segments.len();
            } else if let Some((_, rest)) = line.split_once("LOG:  recovery stopping ") {
                recovery.stopped = Logged::parse(rest);
            } else if let Some((_, text)) = line.split_once("FATAL:  ") {
                recovery.fatal.get_or_insert(text.to_owned());
            }
        }
        recovery
    }

    /// Whether it stopped; no when PostgreSQL refused.
    ///
    /// # Errors
    /// What it did, when it was neither.
    pub fn stopped(&self) -> Result<Option<&Logged>, String> {
        match (&self.stopped, &self.fatal) {
            (Some(stopped), None) => Ok(Some(stopped)),
            (_, Some(fatal)) if REFUSALS.iter().any(|refusal| fatal.contains(refusal)) => Ok(None),
            (stopped, fatal) => Err(format!("PostgreSQL: {stopped:?}, {fatal:?}")),
        }
    }
}

pub fn append(path: &Path, text: &str) {
    let mut content = std::fs::read_to_string(path).unwrap_or_default();
    content.push_str(text);
    std::fs::write(path, content).unwrap();
}
