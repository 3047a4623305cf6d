//! The campaign: clusters live through whatever can happen, and after each round everything has to be there.
//!
//! ```text
//! seed ─▶ Life ─▶ round: action or fault, clients at work ─▶ Judge: the end, three targets, each backup ─▶ Score
//!          │ Depot (a directory, a small disk, S3 behind a proxy)      │ plan ═ restore ═ server ═ Model
//!          │ Beside (daemon, wal-receive, work ahead; off, on, killed) └ verify, wal-verify, pg_amcheck, pg_checksums
//!          └─▶ Journal, shown with the seed when something fails
//! ```
//!
//! `make test` plays a minute of it with fixed seeds, `make campaign ROUNDS=N` as many rounds as one likes with new ones.
//! A failure prints `make campaign SEED=… ROUNDS=…`. The seed fixes what is done, in which order and to what; when a kill
//! hits, what clients have done by then and how the machine schedules all of it cannot be fixed. So a seed that failed by
//! a race may have to be played more than once.
//!
//! Some faults need root: a file system of one's own that gets full, and root's own commands. As an ordinary user the
//! campaign says that it does the others in their place.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic, and prints what it found; nothing here is exported"
)]

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the integration tests, which use all of it"
)]
#[path = "../integration/support/mod.rs"]
mod support;

mod actions;
mod beside;
mod client;
mod companion;
mod depot;
mod faults;
mod judge;
mod life;
mod model;
mod report;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use fastrand::Rng;

use self::life::Life;
use self::report::Score;
use self::support::host;

/// In `make test`.
const ROUNDS: usize = 8;
/// Its lives, by their seeds, which are PostgreSQL's versions too.
const EVERY_DAY: [(u64, [Deed; ROUNDS / 2]); 2] = [
    (
        15,
        [
            Deed::KillServer,
            Deed::LoseServer,
            Deed::GoBack,
            Deed::Outage,
        ],
    ),
    (
        17,
        [
            Deed::KillWalPushes,
            Deed::FailOver,
            Deed::KillWalFetches,
            Deed::FullStore,
        ],
    ),
];
/// Lives at a time: each mostly waits for one process.
const THREADS: usize = 2;
/// After so many lives that failed, the rest would say the same.
const MOST_FAILURES: usize = 8;

const VERSIONS: [u32; 5] = [14, 15, 16, 17, 18];

/// What happens in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    KillServer,
    LoseServer,
    KillWalPushes,
    KillBackupPush,
    KillRestore,
    KillReaders,
    KillWalFetches,
    Outage,
    FlakyLine,
    FullStore,
    FullTarget,
    FailOver,
    SplitBrain,
    Rewind,
    GoBack,
    TwoBackups,
    Merge,
    Refresh,
    RootAndUser,
}

/// The loss of a server stands there for each way in which its WAL may come into the store.
const DEEDS: [Deed; 20] = [
    Deed::KillServer,
    Deed::LoseServer,
    Deed::LoseServer,
    Deed::KillWalPushes,
    Deed::KillBackupPush,
    Deed::KillRestore,
    Deed::KillReaders,
    Deed::KillWalFetches,
    Deed::Outage,
    Deed::FlakyLine,
    Deed::FullStore,
    Deed::FullTarget,
    Deed::FailOver,
    Deed::SplitBrain,
    Deed::Rewind,
    Deed::GoBack,
    Deed::TwoBackups,
    Deed::Merge,
    Deed::Refresh,
    Deed::RootAndUser,
];

impl Life {
    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::KillServer => self.kill_server(),
            Deed::LoseServer => self.lose_server(),
            Deed::KillWalPushes => self.kill_wal_pushes(),
            Deed::KillBackupPush => self.kill_backup_push(),
            Deed::KillRestore => self.kill_restore(),
            Deed::KillReaders => self.kill_readers(),
            Deed::KillWalFetches => self.kill_wal_fetches(),
            Deed::Outage => self.outage(),
            Deed::FlakyLine => self.flaky_line(),
            Deed::FullStore => self.full_store(),
            Deed::FullTarget => self.full_target(),
            Deed::FailOver => self.fail_over(),
            Deed::SplitBrain => self.split_brain(),
            Deed::Rewind => self.rewind(),
            Deed::GoBack => self.go_back(),
            Deed::TwoBackups => self.two_backups(),
            Deed::Merge => self.merge(),
            Deed::Refresh => self.refresh(),
            Deed::RootAndUser if host().is_root => self.root_and_user(),
            Deed::RootAndUser => self.note("not root: nothing that only root can do"),
        }
    }
}

/// What is still to be played.
struct Campaign {
    rounds_left: Mutex<usize>,
    seeds: Mutex<Vec<u64>>,
    score: Mutex<Score>,
    failures: Mutex<Vec<String>>,
}

impl Campaign {
    fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let (rounds, seed) = (
            number("WALHALLA_CAMPAIGN_ROUNDS"),
            number("WALHALLA_CAMPAIGN_SEED"),
        );
        let seeds = match (rounds, seed) {
            (_, Some(seed)) => vec![seed],
            (Some(_), None) => vec![fastrand::u64(..)],
            // Those of every day are the same ones: what fails there was broken since.
            (None, None) => EVERY_DAY.map(|(seed, _)| seed).to_vec(),
        };
        let rounds = rounds.map_or(ROUNDS, |rounds| rounds.try_into().unwrap());
        Self {
            rounds_left: Mutex::new(rounds),
            seeds: Mutex::new(seeds),
            score: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// The next seed; each leads to another when there is none left.
    fn next_seed(&self) -> u64 {
        let mut seeds = self.seeds.lock().unwrap();
        let seed = seeds.pop().unwrap();
        if seeds.is_empty() {
            seeds.push(Rng::with_seed(seed).u64(..));
        }
        seed
    }

    /// As many rounds of those that are left as a life wants.
    fn take_rounds(&self, wanted: usize) -> usize {
        let mut left = self.rounds_left.lock().unwrap();
        let taken = wanted.min(*left);
        *left -= taken;
        taken
    }

    /// Plays lives until no round is left.
    fn play(&self) {
        loop {
            let seed = self.next_seed();
            let mut rng = Rng::with_seed(seed);
            let (version, deeds) = draw_life(seed, &mut rng);
            let rounds = self.take_rounds(deeds.len());
            if rounds == 0 || self.failures.lock().unwrap().len() >= MOST_FAILURES {
                return;
            }
            self.live(seed, version, &deeds[..rounds], rng);
        }
    }

    fn live(&self, seed: u64, version: u32, deeds: &[Deed], rng: Rng) {
        let (begun, rounds) = (Instant::now(), deeds.len());
        let title = format!("make campaign SEED={seed} ROUNDS={rounds}");
        let mut played = 0;
        let lived = catch_unwind(AssertUnwindSafe(|| {
            live_through(version, &title, deeds, rng, &mut played)
        }));
        let seconds = begun.elapsed().as_secs_f32();
        if let Ok(score) = lived {
            println!("{title}: {rounds} rounds on {version} passed in {seconds:.0} s");
            self.score.lock().unwrap().add(&score);
        } else {
            let failure = format!("{title} # failed in round {} on {version}", played + 1);
            println!("FAILED: {failure}");
            self.failures.lock().unwrap().push(failure);
        }
    }
}

/// The version and the deeds of a life, one for each round.
fn draw_life(seed: u64, rng: &mut Rng) -> (u32, Vec<Deed>) {
    if let Some((_, deeds)) = EVERY_DAY.iter().find(|(known, _)| *known == seed) {
        return (u32::try_from(seed).unwrap(), deeds.to_vec());
    }
    let version = *rng.choice(&VERSIONS).unwrap();
    let mut deeds = DEEDS.to_vec();
    rng.shuffle(&mut deeds);
    deeds.truncate(rng.usize(4..8));
    (version, deeds)
}

/// One life; its directory stays when it fails.
fn live_through(version: u32, title: &str, deeds: &[Deed], rng: Rng, played: &mut usize) -> Score {
    let begun = Instant::now();
    let mut life = Life::begin(version, title.to_owned(), rng);
    let lived = catch_unwind(AssertUnwindSafe(|| {
        life.score.took("beginnings", begun);
        for (round, deed) in deeds.iter().enumerate() {
            let begun = Instant::now();
            life.note(&format!("round {}: {deed:?}", round + 1));
            life.stir();
            life.live_on();
            life.stir();
            for part in life.beside.parts() {
                *life.score.parts.entry(part).or_default() += 1;
            }
            life.act(*deed);
            if life.has_hole {
                return life.note("the life ends with a hole in its archive");
            }
            life.stir();
            life.score.took("deeds", begun);
            life.judge();
            *played += 1;
        }
        life.count_blows();
    }));
    if let Err(panic) = lived {
        life.depot.rescue(&life.area);
        let kept = life.area.keep().display().to_string();
        life.note(&format!("failed; logs and archive are kept in {kept}"));
        life.journal.show();
        std::panic::resume_unwind(panic);
    }
    if std::env::var_os("WALHALLA_TEST_JOURNAL").is_some() {
        life.journal.show();
    }
    for entry in std::fs::read_dir(life.area.root()).unwrap() {
        life.read_log(&entry.unwrap().path());
    }
    life.score.commits = life.model.commits.len();
    std::mem::take(&mut life.score)
}

#[test]
fn after_each_round_everything_that_was_acknowledged_is_there() {
    if !host().is_root {
        println!(
            "not root: no file system of one's own gets full, and root's commands are left out"
        );
    }
    let campaign = Campaign::from_environment();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| campaign.play());
        }
    });
    let score = campaign.score.into_inner().unwrap();
    println!(
        "the campaign, in {:.0} s:\n{score}",
        begun.elapsed().as_secs_f32()
    );
    let failures = campaign.failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "lives that failed; each line plays one again:\n{}",
        failures.join("\n")
    );
}
