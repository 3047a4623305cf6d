//! What deletions leave: of random clusters, compared with a model that says the rules again; and what is left when one stops
//! in the middle.
//!
//! ```text
//! Life ─▶ World (losses, leases, what others left) ─▶ store in memory ─▶ delete ─▶ what is left ═ Model
//!                                                        └─▶ plan before ═ plan after, for every moment that is promised
//! ```
//!
//! `WALHALLA_TEST_HISTORIES` says how many clusters, `WALHALLA_TEST_SEED` repeats one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unused_self,
    clippy::unnecessary_wraps,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic; nothing here is exported; questions to a life read alike"
)]

#[path = "../large_store/objects.rs"]
#[allow(
    dead_code,
    reason = "shared with the large store, which asks for all of it"
)]
mod objects;

#[allow(dead_code, reason = "it answers what the large store's life answers")]
mod life;
mod model;
mod stopping;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use walhalla::archive::Reading;
use walhalla::progress::Show;
use walhalla::repository::Repository;
use walhalla::restore::choose;
use walhalla::restore::target::{Action, Bound, Point, Target, TargetTimeline};
use walhalla::retention::decide::Request;
use walhalla::retention::{self, delete};
use walhalla::session::Network;
use walhalla_postgres::TimelineId;
use walhalla_providers::ObjectStore;

use model::{Kept, Model};
use stopping::StoppingStore;
use world::{Filled, Thing, World, repository};

const HISTORIES: u64 = 1_000;
/// Clusters of which a deletion is stopped after each of its steps.
const STOPPED: u64 = 60;
/// Moments of each history that are planned for.
const MOMENTS: usize = 3;
const READING: Reading = Reading {
    threads: 1,
    show: Show::Never,
};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap())
}

/// Runs `check` on random worlds, of which each tells its seed when it fails.
fn each_world(histories: u64, check: impl Fn(&mut fastrand::Rng)) {
    let seeds: Vec<u64> = match number("WALHALLA_TEST_SEED") {
        Some(seed) => vec![seed],
        None => (0..histories).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        let told = Told(seed);
        check(&mut fastrand::Rng::with_seed(seed));
        std::mem::forget(told);
    }
}

/// Tells the seed of a world that is dropped by a panic.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("repeat it with WALHALLA_TEST_SEED={}", self.0);
    }
}

fn request(random: &mut fastrand::Rng, world: &World) -> Request {
    let life = &world.life;
    let some_time = life.time(random.usize(..life.segments.len())) + SignedDuration::from_secs(7);
    let backup = random.choice(&life.backups).map(|backup| backup.id.clone());
    match (random.u32(..10), backup) {
        (0, _) => Request::Garbage,
        (1, _) => Request::Everything,
        (2, _) => Request::BeforeTime(some_time),
        (3, Some(id)) => Request::BeforeBackup(id),
        (4, Some(id)) => {
            let others = life
                .backups
                .iter()
                .filter(|it| it.id != id && random.u32(..8) == 0);
            Request::Backups(others.map(|it| it.id.clone()).chain([id.clone()]).collect())
        }
        _ => Request::Retain(policy(random)),
    }
}

fn policy(random: &mut fastrand::Rng) -> walhalla::config::policy::Policy {
    loop {
        let rules = [
            ("", random.u32(1..8)),
            ("days=", random.u32(1..20)),
            ("daily=", random.u32(1..12)),
            ("weekly=", random.u32(1..6)),
            ("monthly=", random.u32(1..4)),
        ];
        let given: Vec<_> = rules.into_iter().filter(|_| random.u32(..3) == 0).collect();
        let full = if random.bool() && given.iter().any(|(name, _)| name.is_empty()) {
            "full "
        } else {
            ""
        };
        let words: Vec<String> = given
            .iter()
            .map(|(name, number)| format!("{name}{number}"))
            .collect();
        if let Ok(policy) = format!("{full}{}", words.join(" ")).parse() {
            return policy;
        }
    }
}

/// The keys that are left, without the record of the deletion and the leases that it took.
fn left(filled: &Filled) -> BTreeSet<String> {
    let is_own = |key: &String| key.contains("/deletions/");
    let keys = filled.memory.keys();
    keys.into_iter().filter(|key| !is_own(key)).collect()
}

fn expected(world: &World, filled: &Filled, request: &Request) -> (Option<Kept>, BTreeSet<String>) {
    let model = Model::of(world);
    let kept = model.kept(request);
    let stays = |thing: &Thing| {
        kept.as_ref()
            .is_none_or(|kept| model.stays(thing, kept, request))
    };
    let left = filled.things.iter().filter(|(_, thing)| stays(thing));
    let left = left.map(|(key, _)| key.clone()).collect();
    (kept, left)
}

fn differences(one: &BTreeSet<String>, other: &BTreeSet<String>) -> String {
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
        let keys: Vec<&str> = one.difference(other).map(String::as_str).collect();
        keys.join("\n    ")
    };
    format!(
        "left and not expected:\n    {}\nexpected and not left:\n    {}",
        only(one, other),
        only(other, one)
    )
}

/// A target that a deletion has promised to leave reachable.
struct Promise {
    point: Point,
    timeline: TargetTimeline,
    backup: Option<String>,
}

impl Promise {
    fn is_reached(&self, repository: &Repository) -> bool {
        let target = Target {
            point: self.point.clone(),
            timeline: self.timeline,
            bound: Bound::Inclusive,
            action: Action::Pause,
        };
        choose::plan(repository, &target, self.backup.as_deref(), READING).is_ok()
    }
}

/// Some of what is promised: the consistency of backups that stay, moments after those with which all WAL stays.
fn promises(
    random: &mut fastrand::Rng,
    world: &World,
    request: &Request,
    kept: &Kept,
) -> Vec<Promise> {
    let (life, model) = (&world.life, Model::of(world));
    let mut promises = Vec::new();
    let backups: Vec<_> = kept.iter().collect();
    for (backup, with_all) in random.choose_multiple(backups, MOMENTS) {
        let id = life.backups[*backup].id.to_string();
        promises.push(Promise {
            point: Point::Immediate,
            timeline: TargetTimeline::Current,
            backup: Some(id.clone()),
        });
        if !with_all || !model.is_usable(*backup) {
            continue;
        }
        let timelines = life.histories().iter().map(|history| history.timeline);
        let timelines: Vec<TimelineId> = timelines
            .filter(|timeline| model.leads_to(*backup, *timeline))
            .collect();
        let after = (0..life.segments.len())
            .map(|at| life.commit_time(at))
            .filter(|time| *time > model.end(*backup).max(promised_since(request, world.now)));
        let moments: Vec<Timestamp> = after.collect();
        if let (Some(timeline), Some(moment)) = (random.choice(&timelines), random.choice(&moments))
            && !is_given_up(world, request, kept, (*backup, *moment))
        {
            promises.push(Promise {
                point: Point::Time(*moment),
                timeline: TargetTimeline::Id(*timeline),
                backup: None,
            });
        }
    }
    promises
}

/// Whether a backup goes that ends between another one and a moment, where no window is promised: behind a hole it may be the only
/// one that reaches the moment.
fn is_given_up(
    world: &World,
    request: &Request,
    kept: &Kept,
    (backup, moment): (usize, Timestamp),
) -> bool {
    let model = Model::of(world);
    let is_between =
        |other: usize| model.end(other) > model.end(backup) && model.end(other) <= moment;
    let mut others = (0..world.life.backups.len()).filter(|other| is_between(*other));
    promised_since(request, world.now) == Timestamp::MIN
        && others.any(|other| !kept.contains_key(&other))
}

/// The first moment of which a request says that it stays reachable; the ends of backups may be later.
fn promised_since(request: &Request, now: Timestamp) -> Timestamp {
    match request {
        Request::BeforeTime(time) => *time,
        Request::Retain(policy) => policy.days.map_or(Timestamp::MIN, |days| {
            now - SignedDuration::from_hours(24 * i64::from(days.get()))
        }),
        _ => Timestamp::MIN,
    }
}

#[test]
fn what_is_left_is_what_the_rules_say() {
    let network = Network::start(2).unwrap();
    let histories = number("WALHALLA_TEST_HISTORIES").unwrap_or(HISTORIES);
    each_world(histories, |random| {
        let world = World::random(random);
        let filled = world.fill(&network);
        let request = request(random, &world);
        let (kept, expected) = expected(&world, &filled, &request);
        let repository = repository(Arc::clone(&filled.memory) as Arc<dyn ObjectStore>, &network);
        let promises = kept
            .as_ref()
            .map(|kept| promises(random, &world, &request, kept))
            .unwrap_or_default();
        let before: Vec<bool> = promises
            .iter()
            .map(|promise| promise.is_reached(&repository))
            .collect();
        let outcome = delete(&repository, request.clone(), 2, Show::Never);
        assert_eq!(outcome.is_ok(), kept.is_some(), "{request}: {outcome:?}");
        let found = left(&filled);
        assert!(
            found == expected,
            "{request}: {}",
            differences(&found, &expected)
        );
        if let Ok((plan, swept)) = outcome {
            assert!(swept.refused.is_empty() && swept.spared.is_empty());
            let gone = (filled.things.len() - expected.len()) as u64;
            assert_eq!(swept.deleted.objects, gone, "{request}");
            if request != Request::Everything {
                assert_eq!(plan.totals.goes().objects, gone, "{request}");
            }
            // A second run finds nothing more.
            if request != Request::Everything
                && !matches!(request, Request::BeforeBackup(_) | Request::Backups(_))
            {
                delete(&repository, request.clone(), 2, Show::Never).unwrap();
                assert!(
                    left(&filled) == expected,
                    "{request}, again: {}",
                    differences(&left(&filled), &expected)
                );
            }
        }
        for (promise, was_reached) in promises.iter().zip(before) {
            let is_reached = promise.is_reached(&repository);
            assert!(
                is_reached || !was_reached,
                "{request}: {} by {:?}",
                promise.point,
                promise.backup
            );
        }
    });
}

/// A deletion that is killed leaves backups whole or gone, and the same request ends the work.
#[test]
fn a_deletion_that_stops_anywhere_is_ended_by_the_next() {
    let network = Network::start(2).unwrap();
    each_world(STOPPED, |random| {
        let world = World::random(random);
        let request = Request::Retain(policy(random));
        let whole = world.fill(&network);
        let (_, expected) = expected(&world, &whole, &request);
        for steps in 0.. {
            let filled = whole.copy();
            let stopping = Arc::new(StoppingStore::after(Arc::clone(&filled.memory), steps));
            let outcome = delete(
                &repository(Arc::clone(&stopping) as Arc<dyn ObjectStore>, &network),
                request.clone(),
                2,
                Show::Never,
            );
            let repository =
                repository(Arc::clone(&filled.memory) as Arc<dyn ObjectStore>, &network);
            nothing_is_half(&world, &filled, &repository);
            delete(&repository, request.clone(), 2, Show::Never).unwrap();
            // The lease of what was killed is there for a while.
            let mut found = left(&filled);
            found.retain(|key| filled.things.contains_key(key));
            assert!(
                found == expected,
                "{request}, stopped after {steps}: {}",
                differences(&found, &expected)
            );
            if outcome.is_ok() {
                break;
            }
        }
    });
}

/// Every backup with an entry has all its objects, what it stands on, and its own WAL, as far as it had them before.
fn nothing_is_half(world: &World, filled: &Filled, repository: &Repository) {
    let catalog = repository.catalog().unwrap();
    let keys = left(filled);
    for (number, backup) in world.life.backups.iter().enumerate() {
        if catalog.get(&backup.id).is_none() {
            continue;
        }
        assert!(catalog.chain(&backup.id).is_ok(), "{}", backup.id);
        let own = backup.start..=backup.stop;
        let belongs = |thing: &Thing| match thing {
            Thing::Backup(it) => *it == number,
            Thing::Wal(at) => own.contains(at),
            _ => false,
        };
        let missing = filled
            .things
            .iter()
            .find(|(key, thing)| belongs(thing) && !keys.contains(*key));
        assert!(missing.is_none(), "{}: {missing:?}", backup.id);
    }
}

#[test]
fn clocks_that_differ_stop_a_deletion() {
    let network = Network::start(1).unwrap();
    let world = World::random(&mut fastrand::Rng::with_seed(1));
    let filled = world.fill(&network);
    let late = Arc::new(StoppingStore::late(
        Arc::clone(&filled.memory),
        SignedDuration::from_hours(1),
    ));
    let repository = repository(late, &network);
    let outcome = delete(&repository, Request::Garbage, 1, Show::Never);
    assert!(
        matches!(outcome, Err(retention::Error::Clocks(_))),
        "{outcome:?}"
    );
}
