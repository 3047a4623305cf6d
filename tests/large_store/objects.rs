//! The objects that Walhalla would have written, of which each is made from numbers alone.

use bytes::Bytes;
use jiff::SignedDuration;
use serde_json::json;
use walhalla::VERSION;
use walhalla::pipeline::{Codec, Encryption, Packing, StoredDigest};
use walhalla::repository::entry::{ChangeSource, ChangedBlocks, FORMAT, StoredPart};
use walhalla::repository::layout::{BackupObject, Key, Layout, Object};
use walhalla::repository::marks::{Mark, Permanence};
use walhalla::repository::{BackupEntry, BackupKind};
use walhalla_postgres::relation::DEFAULT_TABLESPACE;
use walhalla_postgres::summary::{Changes, Digest, Note, Summary, Transaction};
use walhalla_postgres::wal::event::{Checkpoint, Event, Outcome, TimelineSwitch};
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{Limits, RelationFiles, SystemIdentifier, Version, WalFileName};
use walhalla_providers::ObjectKey;

use super::life::{self, Life, SYSTEM_IDENTIFIER};

const LZ4: Packing = Packing {
    codec: Codec::Lz4,
    encryption: Encryption::None,
};
const DATABASE: u32 = 16_384;

pub struct Objects {
    life: Life,
    layout: Layout,
    changes: Changes,
    first_unreadable: usize,
}

impl Objects {
    pub fn new(life: Life, unreadable: u64) -> Self {
        let count = life.segments.len();
        let changes = json!([
            { "relation": format!("{DEFAULT_TABLESPACE}/{DATABASE}/2619"), "fork": "main", "blocks": [3, 2] },
            { "relation": format!("{DEFAULT_TABLESPACE}/{DATABASE}/16385"), "fork": "main", "blocks": [7, 1, 90, 4] },
        ]);
        Self {
            layout: Layout::new(SystemIdentifier(SYSTEM_IDENTIFIER)),
            changes: serde_json::from_value(changes).unwrap(),
            first_unreadable: count.saturating_sub(usize::try_from(unreadable).unwrap()),
            life,
        }
    }

    pub fn life(&self) -> &Life {
        &self.life
    }

    /// The place of the first segment that cannot be read.
    pub fn first_unreadable(&self) -> usize {
        self.first_unreadable
    }

    /// The histories of timelines.
    pub fn of_cluster(&self) -> Vec<(ObjectKey, Bytes)> {
        let later = self.life.histories().iter().skip(1);
        let histories = later.map(|history| {
            let lines = history.ancestors.iter().map(|left| {
                let number = left.timeline.number();
                format!(
                    "{number}\t{}\tno recovery target specified\n",
                    left.switch_lsn
                )
            });
            let object = self.layout.wal(WalFileName::History(history.timeline), LZ4);
            self.packed(&object, lines.collect::<String>().as_bytes())
        });
        histories.collect()
    }

    /// A segment and its summary.
    pub fn of_segment(&self, at: usize) -> [(ObjectKey, Bytes); 2] {
        let name = self.life.name(at);
        let segment = self.layout.wal(WalFileName::Segment(name), LZ4);
        let summary = self.layout.summary(name, LZ4);
        if at >= self.first_unreadable {
            let noise = || Bytes::from(vec![0x55; 300]);
            return [(segment.key, noise()), (summary.key, noise())];
        }
        let content = name.to_string();
        let (key, stored) = self.packed(&segment, content.as_bytes());
        let trailer: [u8; 32] = *stored.last_chunk().unwrap();
        let told = self.summary(at, blake3::hash(content.as_bytes()).into(), trailer);
        [(key, stored), self.packed(&summary, &told.to_json())]
    }

    fn summary(&self, at: usize, blake3: [u8; 32], trailer: [u8; 32]) -> Summary {
        let life = &self.life;
        let transactions: Vec<Transaction> = { 0..3 }.map(|it| self.transaction(at, it)).collect();
        let times = transactions.iter().map(|end| end.time);
        // Before it lies the last record of the segment before, on whatever timeline.
        let before = life.segments[at]
            .number
            .start(life::size())
            .0
            .checked_sub(1 << 20);
        let before = before.map(|start| walhalla_postgres::Lsn(start + life::LAST_RECORD));
        Summary {
            format: walhalla_postgres::summary::FORMAT,
            system_identifier: self.layout.system_identifier(),
            segment: life.name(at),
            postgres_version: version(),
            segment_size: life::size(),
            segment_blake3: Some(Digest(blake3)),
            segment_sha256: None,
            segment_trailer: Some(Digest(trailer)),
            first_record: Some(life.lsn(at, life::FIRST_RECORD)),
            first_previous: before,
            last_record: Some(life.lsn(at, life::LAST_RECORD)),
            times: times.clone().min().zip(times.max()),
            head: None,
            overwrites: false,
            tail: None,
            cut: None,
            notes: self.notes(at),
            transactions,
            open: Vec::new(),
            pg_class_deletes: Vec::new(),
            changes: self.changes.clone(),
        }
    }

    fn transaction(&self, at: usize, number: usize) -> Transaction {
        let (offset, seconds) = life::COMMITS[number];
        let xid = xid(at) + u32::try_from(number).unwrap();
        let relation = RelationFiles {
            tablespace: DEFAULT_TABLESPACE,
            database: DATABASE,
            number: xid,
        };
        let drops = number == 1 && self.life.drops_table(at);
        Transaction {
            lsn: self.life.lsn(at, offset),
            xid,
            time: self.life.time(at) + SignedDuration::from_secs(seconds),
            outcome: if number == 2 {
                Outcome::Aborted
            } else {
                Outcome::Committed
            },
            wal_bytes: 1000,
            subtransactions: Vec::new(),
            dropped: drops.then_some(relation).into_iter().collect(),
        }
    }

    fn notes(&self, at: usize) -> Vec<Note> {
        let life = &self.life;
        let timeline = life.segments[at].timeline.number();
        let switch = |previous| TimelineSwitch {
            time: life.checkpoint_time(at),
            timeline,
            previous,
        };
        let ancestors = &life.history(life.segments[at].timeline).ancestors;
        let parent = ancestors.last().map(|left| left.timeline.number());
        let promotion = { parent.filter(|_| life.segments[at].is_first) }
            .map(|parent| Event::EndOfRecovery(switch(parent)));
        let checkpoint = life.has_checkpoint(at).then(|| {
            Event::Checkpoint(Checkpoint {
                redo: life.lsn(at, life::REDO),
                timelines: switch(timeline),
                is_shutdown: false,
                next_xid: xid(at),
            })
        });
        let ending = life.ending_in(at).map(|backup| Event::BackupEnd {
            start: life.lsn(backup.start, life::REDO),
        });
        let point = life.restore_point(at).map(|name| Event::RestorePoint {
            name: ServerText::new(name.as_bytes()),
            time: life.backup_stop_time(at),
        });
        let notes = [
            (life::END_OF_RECOVERY, promotion),
            (life::CHECKPOINT, checkpoint),
            (life::BACKUP_END, ending),
            (life::RESTORE_POINT, point),
        ];
        let notes = notes.into_iter().filter_map(|(offset, event)| {
            let lsn = life.lsn(at, offset);
            Some(Note {
                lsn,
                xid: 0,
                event: event?,
            })
        });
        notes.collect()
    }

    /// A backup's objects, its entry last, and what `pg_backup_stop` archives of it.
    pub fn of_backup(&self, number: usize) -> Vec<(ObjectKey, Bytes)> {
        let entry = self.entry(number);
        let own = |key: Key| self.layout.key(&key);
        let mut objects: Vec<_> = entry
            .objects()
            .map(|part| {
                let object = self.layout.backup_object(&entry.id, &part.name).unwrap();
                (object.key, part_body(number, &part.name))
            })
            .collect();
        let claim = own(Key::Claim(entry.id.second()));
        objects.push((claim, Bytes::from_static(b"{}")));
        if self.life.is_permanent(number) {
            let mark = Mark {
                number: 1,
                permanence: Permanence::Permanent,
            };
            objects.push((own(Key::Mark(entry.id.clone(), mark)), Bytes::new()));
        }
        let first = self.life.name(self.life.backups[number].start);
        let offset = u32::try_from(life::REDO).unwrap();
        let history = self
            .layout
            .wal(WalFileName::BackupHistory(first, offset), LZ4);
        objects.push(self.packed(&history, b"START WAL LOCATION: made for tests\n"));
        let text = entry.to_text().unwrap();
        objects.push((self.layout.backup_json(&entry.id), text.into()));
        objects
    }

    pub fn entry(&self, number: usize) -> BackupEntry {
        let life = &self.life;
        let backup = &life.backups[number];
        let parent = backup.parent.map(|parent| &life.backups[parent]);
        let kind = backup.id.kind();
        let timeline = life.segments[backup.start].timeline;
        let part = |object: BackupObject| part(number, &object.to_string());
        let parts = vec![
            part(BackupObject::Part(1, LZ4)),
            part(BackupObject::Part(2, LZ4)),
        ];
        BackupEntry {
            format: FORMAT,
            id: backup.id.clone(),
            kind,
            parent: parent.map(|parent| parent.id.clone()),
            parent_manifest: backup
                .parent
                .map(|parent| self::part(parent, &BackupObject::Manifest(LZ4).to_string()))
                .map(|manifest| manifest.digest.to_hex()),
            system_identifier: self.layout.system_identifier(),
            timeline,
            history: life.history(timeline).ancestors.clone(),
            start_lsn: life.lsn(backup.start, life::REDO),
            stop_lsn: life.lsn(backup.stop, life::BACKUP_STOP),
            of_standby: Some(false),
            checkpoint_lsn: Some(life.lsn(backup.start, life::CHECKPOINT)),
            start_time: life.backup_start_time(backup.start),
            stop_time: life.backup_stop_time(backup.stop),
            replayed_time: None,
            replayed_lsn: None,
            stop_snapshot: format!("{0}:{0}:", xid(backup.stop)),
            postgres_version: version(),
            server_version: "17.11".to_owned(),
            limits: Some(Limits::default_of(version())),
            wal_segment_size: life::size(),
            wal_block_size: 8192,
            data_checksums: true,
            corrupt_blocks: Vec::new(),
            size_bytes: 1 << 30,
            files: 1500,
            stored_bytes: 1 << 28,
            tablespaces: Vec::new(),
            left_out: Vec::new(),
            encrypted_to: Vec::new(),
            parts,
            catalogs: None,
            manifest: part(BackupObject::Manifest(LZ4)),
            relations: Some(part(BackupObject::Relations(LZ4))),
            index: Some(part(BackupObject::Index(LZ4))),
            changed_blocks: parent.map(|parent| ChangedBlocks {
                source: ChangeSource::Wal,
                reason: None,
                since: life.lsn(parent.start, life::REDO),
            }),
            merged_from: None,
            permanent: false,
            label: (kind == BackupKind::Full).then(|| "weekly".to_owned()),
            annotations: std::collections::BTreeMap::new(),
            walhalla_version: VERSION.to_owned(),
        }
    }

    /// The content in one LZ4 frame, between the frames that announce and hold the checksum of a WAL file or summary, as
    /// `docs/format.md` describes it.
    fn packed(&self, object: &Object, content: &[u8]) -> (ObjectKey, Bytes) {
        let mut first = 0x184D_2A5E_u32.to_le_bytes().to_vec();
        first.extend_from_slice(&16_u32.to_le_bytes());
        first.extend_from_slice(b"walhalla-blake3\n");
        let mut encoder = lz4_flex::frame::FrameEncoder::new(first);
        std::io::Write::write_all(&mut encoder, content).unwrap();
        let mut stored = encoder.finish().unwrap();
        assert!(self.layout.has_trailer(object));
        let named = [object.name().as_bytes(), b"\n", &stored].concat();
        let checksum = blake3::hash(&named);
        stored.extend_from_slice(&0x184D_2A5E_u32.to_le_bytes());
        stored.extend_from_slice(&48_u32.to_le_bytes());
        stored.extend_from_slice(b"walhalla-blake3\n");
        stored.extend_from_slice(checksum.as_bytes());
        (object.key.clone(), stored.into())
    }
}

fn version() -> Version {
    serde_json::from_value(json!("17")).unwrap()
}

/// The first transaction of a segment.
fn xid(at: usize) -> u32 {
    u32::try_from(1000 + at * life::COMMITS.len()).unwrap()
}

fn part_body(backup: usize, name: &str) -> Bytes {
    format!("{name} of backup {backup}").into()
}

fn part(backup: usize, name: &str) -> StoredPart {
    let body = part_body(backup, name);
    StoredPart {
        name: name.to_owned(),
        size_bytes: 1 << 20,
        stored_bytes: body.len() as u64,
        digest: StoredDigest::of(&body),
    }
}
