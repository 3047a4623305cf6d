//! A store with a random cluster in it: its life's objects, some of them lost, and all that other programs leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use walhalla::pipeline::Identities;
use walhalla::repository::layout::{Key, Layout, RunId};
use walhalla::repository::{BackupId, BackupKind, Repository};
use walhalla::session::{Network, StoreSession};
use walhalla_postgres::{SystemIdentifier, TimelineId, WalFileName};
use walhalla_providers::testing::MemoryStore;
use walhalla_providers::transfer::{Options, RetryPolicy, Store};
use walhalla_providers::{ObjectKey, ObjectStore, PutMode};

use crate::life::{Life, SYSTEM_IDENTIFIER};
use crate::objects::Objects;

/// What an object of the store is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// A segment, by its place in the life, or what goes with it.
    Wal(usize),
    Summary(usize),
    /// An object of a backup, by its place, or a mark or the claim of it.
    Backup(usize),
    /// The history of a timeline.
    History(TimelineId),
    /// What stays whatever is asked for: other programs' objects, other clusters'.
    Fixed,
    /// What is left of a backup that was given up.
    GivenUp,
    /// What no run leaves: of runs that ended long ago.
    Spent,
    /// What belongs to something that runs now.
    Young,
}

/// Something that runs, or died.
#[derive(Clone, Debug)]
pub struct User {
    pub backups: Vec<usize>,
    /// The places of the first and the last segment that it needs, of one timeline.
    pub wal: Option<(usize, Option<usize>)>,
    pub is_alive: bool,
    run: RunId,
}

/// What is in the store.
pub struct World {
    pub life: Life,
    objects: Objects,
    pub now: Timestamp,
    /// Places of segments that are not archived.
    pub lost: BTreeSet<usize>,
    /// Timelines of which the history is not archived.
    pub lost_histories: BTreeSet<TimelineId>,
    /// Places of backups of which a part is missing.
    pub torn: BTreeSet<usize>,
    pub users: Vec<User>,
}

impl Filled {
    /// The same in another store.
    pub fn copy(&self) -> Self {
        Self {
            things: self.things.clone(),
            memory: Arc::new(self.memory.copy()),
        }
    }
}

/// A store that holds a world, and what of it each object is.
pub struct Filled {
    pub things: BTreeMap<String, Thing>,
    pub memory: Arc<MemoryStore>,
}

impl World {
    pub fn random(random: &mut fastrand::Rng) -> Self {
        let now = Timestamp::now();
        let life = Life::random(random, now);
        let segments = 0..life.segments.len();
        let lost = segments.clone().filter(|_| random.u32(..25) == 0).collect();
        let timelines = life
            .histories()
            .iter()
            .skip(1)
            .map(|history| history.timeline);
        let lost_histories = timelines.filter(|_| random.u32(..10) == 0).collect();
        let torn = (0..life.backups.len())
            .filter(|_| random.u32(..12) == 0)
            .collect();
        let users = (0..random.usize(..4))
            .map(|_| User::random(random, &life))
            .collect();
        Self {
            objects: Objects::new(life.clone(), 0),
            life,
            now,
            lost,
            lost_histories,
            torn,
            users,
        }
    }

    pub fn layout() -> Layout {
        Layout::new(SystemIdentifier(SYSTEM_IDENTIFIER))
    }

    /// Puts everything into a store in memory.
    pub fn fill(&self, network: &Network) -> Filled {
        let memory = Arc::new(MemoryStore::default());
        let session = session(Arc::clone(&memory) as Arc<dyn ObjectStore>, network);
        let mut filled = Filled {
            things: BTreeMap::new(),
            memory,
        };
        let mut put = |key: &ObjectKey, body: Bytes, received: Timestamp, thing: Thing| {
            session.put(key, body, PutMode::Create).unwrap();
            filled.memory.received(key, received);
            filled.things.insert(key.to_string(), thing);
        };
        let layout = Self::layout();
        for (key, body) in self.objects.of_cluster() {
            let Key::Wal(WalFileName::History(timeline), _) = layout.parse(&key) else {
                panic!("{key} is no history");
            };
            if !self.lost_histories.contains(&timeline) {
                let received = self.life.promoted_time(timeline);
                put(&key, body, received, Thing::History(timeline));
            }
        }
        for at in 0..self.life.segments.len() {
            let [(segment, content), (summary, told)] = self.objects.of_segment(at);
            let received = self.life.archived_time(at);
            if !self.lost.contains(&at) {
                put(&segment, content, received, Thing::Wal(at));
            }
            put(&summary, told, received, Thing::Summary(at));
        }
        for (number, backup) in self.life.backups.iter().enumerate() {
            let is_part = |key: &ObjectKey| key.as_str().contains("/base/00001.tar");
            for (key, body) in self.objects.of_backup(number) {
                if self.torn.contains(&number) && is_part(&key) {
                    continue;
                }
                let thing = match layout.parse(&key) {
                    Key::Wal(..) => Thing::Wal(backup.start),
                    _ => Thing::Backup(number),
                };
                put(&key, body, self.life.archived_time(backup.stop), thing);
            }
        }
        for (key, body, age, thing) in self.left_behind() {
            put(
                &ObjectKey::new(key).unwrap(),
                body.into(),
                self.now - age,
                thing,
            );
        }
        filled
    }

    /// What programs left that ended, died or run, and what is none of ours.
    fn left_behind(&self) -> Vec<(String, String, SignedDuration, Thing)> {
        let layout = Self::layout();
        let (old, young) = (SignedDuration::from_hours(30), SignedDuration::from_mins(5));
        let cluster = layout.cluster();
        let mut left = Vec::new();
        for (age, thing, second) in [(old, Thing::GivenUp, 11), (young, Thing::Young, 12)] {
            let time: Timestamp = format!("1999-01-01T00:00:{second}Z").parse().unwrap();
            let id = BackupId::new(time, BackupKind::Full);
            let claim = layout.key(&Key::Claim(id.second())).to_string();
            let part = format!("{}base/00001.tar.lz4", layout.backup_folder(&id));
            for key in [claim, part] {
                left.push((key, "{}".to_owned(), age, thing.clone()));
            }
        }
        let other_cluster = format!(
            "{}/wal/00000001/000000010000000000000001",
            SYSTEM_IDENTIFIER + 1
        );
        for key in [
            format!("{cluster}notes.txt"),
            format!("{cluster}wal/00000001/readme"),
            other_cluster,
        ] {
            left.push((key, "not ours".to_owned(), old, Thing::Fixed));
        }
        for user in &self.users {
            let renewals = [
                (1, Thing::Spent),
                (
                    2,
                    if user.is_alive {
                        Thing::Young
                    } else {
                        Thing::Spent
                    },
                ),
            ];
            let age = if user.is_alive {
                young
            } else {
                SignedDuration::from_mins(20)
            };
            for (number, thing) in renewals {
                let key = layout.key(&Key::Lease(user.run, number)).to_string();
                left.push((key, self.lease(user), age, thing));
            }
        }
        left
    }

    fn lease(&self, user: &User) -> String {
        let wal = user.wal.map(|(first, last)| {
            let name = |at| self.life.name(at).to_string();
            serde_json::json!({ "first": name(first), "last": last.map(name) })
        });
        let backups: Vec<String> = user
            .backups
            .iter()
            .map(|at| self.life.backups[*at].id.to_string())
            .collect();
        let content = serde_json::json!({
            "format": 1, "user": "a restore", "backups": backups, "wal": Vec::from_iter(wal), "makes": null,
            "holds_for_seconds": 900, "walhalla_version": "0",
        });
        content.to_string()
    }
}

impl User {
    fn random(random: &mut fastrand::Rng, life: &Life) -> Self {
        let backups = 0..life.backups.len();
        let first = random.usize(..life.segments.len());
        let timeline = life.segments[first].timeline;
        let rest =
            (first..life.segments.len()).filter(|at| life.segments[*at].timeline == timeline);
        let last = random.choice(rest.collect::<Vec<_>>());
        Self {
            backups: backups.filter(|_| random.u32(..6) == 0).collect(),
            wal: random
                .bool()
                .then_some((first, last.filter(|_| random.bool()))),
            is_alive: random.bool(),
            run: format!("{:016x}", random.u64(..)).parse().unwrap(),
        }
    }
}

/// A session with a store that is asked once.
pub fn session(store: Arc<dyn ObjectStore>, network: &Network) -> StoreSession {
    let options = Options {
        retry: RetryPolicy::default(),
        upload_concurrency: 4,
        download_concurrency: 4,
        rates: walhalla_providers::transfer::Rates::default(),
    };
    StoreSession::new(Store::new(store, options), network)
}

/// The cluster in a store.
pub fn repository(store: Arc<dyn ObjectStore>, network: &Network) -> Repository {
    let session = session(store, network);
    Repository::new(
        session,
        Identities::new(None),
        SystemIdentifier(SYSTEM_IDENTIFIER),
    )
}
