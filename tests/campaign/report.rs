//! What was done: a journal of each life, and a score of the campaign.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// All that one life did, shown when it fails, or always where `WALHALLA_TEST_JOURNAL` is set.
pub struct Journal {
    begun: Instant,
    text: String,
}

impl Journal {
    pub fn new(title: String) -> Self {
        Self {
            begun: Instant::now(),
            text: title,
        }
    }

    pub fn note(&mut self, text: &str) {
        let seconds = self.begun.elapsed().as_secs_f32();
        let _ = write!(self.text, "\n{seconds:6.2} {text}");
    }

    /// Prints it.
    pub fn show(&self) {
        println!("--- {}", self.text);
    }
}

/// What a life, or all of them, came to.
#[derive(Clone, Default)]
pub struct Score {
    pub rounds: usize,
    pub commits: usize,
    /// How often a commit was looked for after a restore, and found or rightly not found.
    pub checks: usize,
    pub restores: usize,
    pub refusals: usize,
    pub backups: usize,
    /// In how many rounds each of what may be off was on, and what came of it.
    pub parts: BTreeMap<&'static str, usize>,
    /// How often each fault hit something.
    pub faults: BTreeMap<&'static str, usize>,
    /// Where the time went.
    pub times: BTreeMap<&'static str, Duration>,
}

impl Score {
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    pub fn took(&mut self, what: &'static str, since: Instant) {
        *self.times.entry(what).or_default() += since.elapsed();
    }

    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.commits += other.commits;
        self.checks += other.checks;
        self.restores += other.restores;
        self.refusals += other.refusals;
        self.backups += other.backups;
        for (part, count) in &other.parts {
            *self.parts.entry(part).or_default() += count;
        }
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (what, time) in &other.times {
            *self.times.entry(what).or_default() += *time;
        }
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            rounds,
            commits,
            checks,
            restores,
            refusals,
            backups,
            ..
        } = self;
        writeln!(f, "  {rounds} rounds passed, {backups} backups taken")?;
        writeln!(
            f,
            "  {restores} restores, {refusals} targets refused by plan and restore alike"
        )?;
        writeln!(f, "  {commits} commits, looked for {checks} times")?;
        writeln!(f, "  rounds, and segments:")?;
        for (part, count) in &self.parts {
            writeln!(f, "  {count:6} {part}")?;
        }
        writeln!(f, "  faults:")?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {count:6} {kind}")?;
        }
        let times = self.times.iter();
        let times: Vec<String> = times
            .map(|(what, time)| format!("{what} {:.0} s", time.as_secs_f32()))
            .collect();
        write!(f, "  time: {}", times.join(", "))
    }
}
