//! Whether the copy has what the source has: a name is no proof.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use walhalla_postgres::TimelineId;
use walhalla_providers::ObjectKey;

use super::Error;
use super::archives::Item;
use super::sending::Sending;
use crate::repository::layout::Object;
use crate::repository::sending::Likeness;

impl Sending<'_> {
    /// Compares what both have of a selection: the last file of each timeline, as who archived other WAL before has other WAL at
    /// its end; the `newest` ones in the copy, which a run that was killed did not read back; and where lengths are odd.
    ///
    /// # Errors
    /// [`Error::OtherContent`], and for an object that is damaged.
    pub(super) fn must_be_same(&self, items: &[Item], newest: usize) -> Result<(), Error> {
        let common = items.iter().filter_map(|item| Some((item, item.there?)));
        let common: Vec<_> = common.collect();
        let mut last: BTreeMap<TimelineId, usize> = BTreeMap::new();
        let mut compared: HashSet<usize> = HashSet::new();
        for (position, (item, there)) in common.iter().enumerate() {
            last.insert(item.file.timeline(), position);
            let packing = |object: &Object| object.packing;
            let is_alike = packing(&item.archived.object()) == packing(&there.object());
            let is_odd = item.archived.stored_bytes != there.stored_bytes;
            if there.stored_bytes == 0 || self.pipeline.is_none() && is_alike && is_odd {
                compared.insert(position);
            }
        }
        compared.extend(last.into_values());
        let mut by_time: Vec<usize> = (0..common.len()).collect();
        // Of one second, the last ones.
        by_time.sort_by_key(|position| {
            Reverse((common.get(*position).map(|it| it.1.modified), *position))
        });
        compared.extend(by_time.into_iter().take(newest));
        for (item, there) in compared.iter().filter_map(|position| common.get(*position)) {
            self.must_be_like(&item.archived.object(), &there.object())?;
        }
        Ok(())
    }

    /// That an object of the copy has the content of one of the source.
    pub(super) fn must_be_like(&self, ours: &Object, theirs: &Object) -> Result<(), Error> {
        match self.likeness(ours, theirs)? {
            Likeness::Same => Ok(()),
            Likeness::Other => Err(Error::OtherContent {
                source_object: self.source.url(&ours.key),
                copy_object: self.copy.url(&theirs.key),
            }),
            Likeness::Unknown => {
                let [ours, theirs] = [(self.source, &ours.key), (self.copy, &theirs.key)]
                    .map(|(repository, key): (_, &ObjectKey)| repository.url(key));
                tracing::debug!("{ours} and {theirs} cannot be compared without the identity");
                Ok(())
            }
        }
    }

    fn likeness(&self, ours: &Object, theirs: &Object) -> Result<Likeness, Error> {
        let Sending { source, copy, .. } = *self;
        let is_as_it_is = self.pipeline.is_none() && ours.packing == theirs.packing;
        if is_as_it_is && source.is_stored_alike(ours, copy)? {
            return Ok(Likeness::Same);
        }
        Ok(source.likeness(ours, copy, theirs)?)
    }
}
