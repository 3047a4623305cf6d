//! Where things are in a store: the only place that spells keys.
//!
//! ```text
//! <system identifier>/wal/<TLI>/<file>[.lz4|.zst][.age]
//! <system identifier>/backups/<id>/backup.json
//! <system identifier>/backups/<id>/backup_manifest[.lz4|.zst][.age]
//! <system identifier>/backups/<id>/index.json[.lz4|.zst][.age]
//! <system identifier>/backups/<id>/base/NNNNN.tar[.lz4|.zst][.age]
//! <system identifier>/claims/<second>                   that a backup's id is taken
//! <system identifier>/marks/<id>/NNNNN-permanent, NNNNN-impermanent
//! ```

use walhalla_postgres::{SegmentName, SystemIdentifier, TimelineId, WalFileName};
use walhalla_providers::ObjectKey;

use super::BackupId;
use super::marks::{Mark, Permanence};
use crate::pipeline::Packing;

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    system_identifier: SystemIdentifier,
}

/// An object and how its content is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it is.
    pub key: ObjectKey,
    /// How it is compressed and encrypted.
    pub packing: Packing,
}

impl Object {
    /// The key without the suffixes of its packing: what the object is, however it is packed.
    pub fn name(&self) -> &str {
        Packing::split(self.key.as_str()).0
    }
}

impl Layout {
    /// The layout of a cluster.
    pub fn new(system_identifier: SystemIdentifier) -> Self {
        Self { system_identifier }
    }

    /// The cluster.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.system_identifier
    }

    /// A WAL file, packed as `packing` says.
    pub fn wal(&self, file: WalFileName, packing: Packing) -> Object {
        let folder = self.wal_folder(file.timeline());
        Object {
            key: key(format!("{folder}{file}{packing}")),
            packing,
        }
    }

    /// A segment's summary.
    pub fn summary(&self, segment: SegmentName, packing: Packing) -> Object {
        let folder = self.summary_folder(segment.timeline);
        Object {
            key: key(format!("{folder}{segment}.json{packing}")),
            packing,
        }
    }

    /// Prefix of a timeline's summaries.
    pub fn summary_folder(&self, timeline: TimelineId) -> String {
        format!("{}{timeline}/", self.summary_folders())
    }

    fn summary_folders(&self) -> String {
        format!("{}/summary/", self.system_identifier)
    }

    /// The segment whose summary an object is, if it is one of [`Layout::summary`]'s.
    pub fn parse_summary(&self, key: &ObjectKey) -> Option<(SegmentName, Object)> {
        let name = key.as_str().rsplit('/').next()?;
        let (file, packing) = Packing::split(name);
        let segment = file.strip_suffix(".json")?.parse().ok()?;
        let object = self.summary(segment, packing);
        (object.key == *key).then_some((segment, object))
    }

    /// Whether an object ends in a trailer, as WAL files and summaries do.
    pub fn has_trailer(&self, object: &Object) -> bool {
        let key = object.key.as_str();
        key.starts_with(&self.wal_folders()) || key.starts_with(&self.summary_folders())
    }

    /// Prefix of all timelines' folders.
    pub fn wal_folders(&self) -> String {
        format!("{}/wal/", self.system_identifier)
    }

    /// Prefix of a timeline's files.
    pub fn wal_folder(&self, timeline: TimelineId) -> String {
        format!("{}/wal/{timeline}/", self.system_identifier)
    }

    /// The WAL file that an object holds, if it is one of [`Layout::wal`]'s.
    pub fn parse_wal(&self, key: &ObjectKey) -> Option<(WalFileName, Object)> {
        let name = key.as_str().rsplit('/').next()?;
        let (file, packing) = Packing::split(name);
        let object = self.wal(file.parse().ok()?, packing);
        (object.key == *key).then_some((file.parse().ok()?, object))
    }

    /// Prefix of all backups' folders.
    pub fn backups(&self) -> String {
        format!("{}/backups/", self.system_identifier)
    }

    /// Prefix of everything of a backup.
    pub fn backup_folder(&self, id: &BackupId) -> String {
        format!("{}{id}/", self.backups())
    }

    /// A backup's entry, its commit point.
    pub fn backup_json(&self, id: &BackupId) -> ObjectKey {
        key(format!("{}backup.json", self.backup_folder(id)))
    }

    /// Says that a backup has begun in the second of this id: created once, so that two never share an id.
    pub fn claim(&self, id: &BackupId) -> ObjectKey {
        key(format!("{}/claims/{}", self.system_identifier, id.second()))
    }

    /// Prefix of all marks.
    pub fn marks(&self) -> String {
        format!("{}/marks/", self.system_identifier)
    }

    /// A mark of a backup. Keys of one backup sort by number up to 99,999; a greater number has more digits.
    pub fn mark(&self, id: &BackupId, mark: Mark) -> ObjectKey {
        let Mark { number, permanence } = mark;
        key(format!("{}{id}/{number:05}-{permanence}", self.marks()))
    }

    /// The mark that an object is, and of which backup, if it is one of [`Layout::mark`]'s.
    pub fn parse_mark(&self, key: &ObjectKey) -> Option<(BackupId, Mark)> {
        let (id, name) = key.as_str().strip_prefix(&self.marks())?.split_once('/')?;
        let (number, said) = name.split_once('-')?;
        let (id, number) = (id.parse().ok()?, number.parse().ok()?);
        [Permanence::Permanent, Permanence::Impermanent]
            .map(|permanence| Mark { number, permanence })
            .into_iter()
            .find(|mark| mark.permanence.to_string() == said && self.mark(&id, *mark) == *key)
            .map(|mark| (id, mark))
    }

    /// An object of a backup, by its name in `backup.json`.
    pub fn backup_object(
        &self,
        id: &BackupId,
        name: &str,
    ) -> Result<Object, walhalla_providers::Error> {
        let key = ObjectKey::new(format!("{}{name}", self.backup_folder(id)))?;
        Ok(Object {
            key,
            packing: Packing::split(name).1,
        })
    }
}

/// The name of a backup's manifest below its folder.
pub fn manifest_name(packing: Packing) -> String {
    format!("backup_manifest{packing}")
}

/// The name of a backup's list of relation files below its folder.
pub fn relations_name(packing: Packing) -> String {
    format!("relations.json{packing}")
}

/// The name of a backup's index below its folder.
pub fn index_name(packing: Packing) -> String {
    format!("index.json{packing}")
}

/// The name of a backup's part below its folder.
pub fn part_name(number: usize, packing: Packing) -> String {
    format!("base/{number:05}.tar{packing}")
}

fn key(text: String) -> ObjectKey {
    ObjectKey::new(text).expect("digits, names of WAL files and ids of backups make keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_their_keys_and_nothing_else_is_one() {
        let layout = Layout::new("7710533931497189584".parse().unwrap());
        let id: BackupId = "20261121T043000Z-F".parse().unwrap();
        for number in [1, 99_999, 100_000] {
            for permanence in [Permanence::Permanent, Permanence::Impermanent] {
                let mark = Mark { number, permanence };
                let key = layout.mark(&id, mark);
                assert_eq!(layout.parse_mark(&key), Some((id.clone(), mark)));
            }
        }
        let folder = "7710533931497189584/marks/20261121T043000Z-F";
        for text in [
            format!("{folder}/1-permanent"),
            format!("{folder}/+0001-permanent"),
            format!("{folder}/00001-forever"),
            format!("{folder}/00001-permanent/x"),
            "7710533931497189584/marks/LATEST/00001-permanent".to_owned(),
            "7710533931497189585/marks/20261121T043000Z-F/00001-permanent".to_owned(),
            "7710533931497189584/backups/20261121T043000Z-F/backup.json".to_owned(),
        ] {
            assert_eq!(layout.parse_mark(&key(text)), None);
        }
    }
}
