//! The store: what it keeps, what it refuses, and which rights the credentials lack.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use walhalla_providers::transfer::Store;
use walhalla_providers::{Error, ErrorKind, ObjectKey, Operation, PutMode, Result, Right};

use super::Finding;
use crate::output;

/// Objects of a check lie here, below the store's URL; what is left of one can be deleted.
const FOLDER: &str = "walhalla-check";

/// A clock that is further off makes times in the catalog hard to compare; at 15 minutes S3 refuses every request.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(30);

/// Objects of a check that is older are left over.
const LONGEST_CHECK: SignedDuration = SignedDuration::from_hours(1);

/// Whether the credentials are meant to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// They are.
    Expected,
    /// They must not be able to.
    Refused,
}

struct Check<'a> {
    store: &'a Store,
    object: ObjectKey,
    in_parts: ObjectKey,
    absent: ObjectKey,
    is_stored: bool,
    findings: Vec<Finding>,
}

/// Tries out `store` with objects of its own.
///
/// # Errors
/// Where nothing can be told, because the store cannot be reached, does not exist or does not know the credentials.
pub async fn check_store(store: &Store, deletes: Deletes) -> Result<Vec<Finding>> {
    let run = format!("{:016x}", fastrand::u64(..));
    let mut check = Check {
        store,
        object: ObjectKey::new(format!("{FOLDER}/{run}"))?,
        in_parts: ObjectKey::new(format!("{FOLDER}/{run}-in-parts"))?,
        absent: ObjectKey::new(format!("{FOLDER}/{run}-absent"))?,
        is_stored: false,
        findings: Vec::new(),
    };
    check.absence().await?;
    check.create().await?;
    if check.is_stored {
        check.create_again().await;
        check.read().await;
    }
    check.list().await;
    check.parts().await;
    check.abort().await;
    check.shortcomings().await;
    if check.is_stored {
        check.delete(deletes).await;
    } else {
        // What was stored in parts all the same goes without a word.
        let _refused = store.delete(&[check.in_parts.clone()]).await;
    }
    Ok(check.findings)
}

/// Tries out what a host needs that only restores: to see that an object is not there, to list, and to read.
///
/// # Errors
/// As [`check_store`].
pub async fn check_reading(store: &Store) -> Result<Vec<Finding>> {
    let mut check = Check {
        store,
        object: ObjectKey::new(format!("{FOLDER}/none"))?,
        in_parts: ObjectKey::new(format!("{FOLDER}/none-in-parts"))?,
        absent: ObjectKey::new(format!("{FOLDER}/none-absent"))?,
        is_stored: false,
        findings: Vec::new(),
    };
    check.absence().await?;
    check.list().await;
    Ok(check.findings)
}

impl Check<'_> {
    /// The first request of all: what keeps it from an answer keeps all the others.
    async fn absence(&mut self) -> Result<()> {
        let name = "tell that an object is not there";
        let absent = self.absent.clone();
        match self.store.head(&absent).await {
            Err(error) if error.is_not_found() => self.note(name, &absent, None),
            Ok(_) => self.note(
                name,
                &absent,
                Some("the store shows an object that nobody stored".to_owned()),
            ),
            Err(error) if error.kind == ErrorKind::PermissionDenied => {
                // Which of the two it is, the answer does not say.
                let (read, list) = (self.store.right(Right::Read), self.store.right(Right::List));
                let rights = if read == list {
                    read.to_owned()
                } else {
                    format!("{read} and {list}")
                };
                let problem = format!(
                    "the rights {rights} are needed, and one is missing: {}",
                    reason_in_words(&error)
                );
                self.note(name, &absent, Some(problem));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn create(&mut self) -> Result<()> {
        let before = Timestamp::now();
        let created = self.put(&self.object, FIRST).await;
        let after = Timestamp::now();
        let problem = match &created {
            Err(error)
                if error.kind == ErrorKind::PermissionDenied
                    || error.kind == ErrorKind::Unsupported =>
            {
                Some(self.refusal(error))
            }
            _ => {
                created?;
                None
            }
        };
        self.is_stored = problem.is_none();
        self.note("create an object", &self.object.clone(), problem);
        if self.is_stored {
            self.clock(before, after).await;
        }
        Ok(())
    }

    /// Compares the time of the new object with this host's.
    async fn clock(&mut self, before: Timestamp, after: Timestamp) {
        let problem = match self.store.head(&self.object).await {
            Ok(info) => skew(info.modified, before, after),
            Err(error) => Some(self.refusal(&error)),
        };
        self.note("agree on the time", &self.object.clone(), problem);
    }

    async fn create_again(&mut self) {
        let again = self.put(&self.object, SECOND).await;
        let problem = self.replaced(again);
        self.note("refuse to create it again", &self.object.clone(), problem);
    }

    /// What is wrong with the answer to a create whose key was taken.
    fn replaced(&self, again: Result<()>) -> Option<String> {
        match again {
            Err(error) if error.kind == ErrorKind::AlreadyExists => None,
            Err(error) => Some(self.refusal(&error)),
            Ok(()) => Some(
                "the store replaced it, so that two servers could overwrite each other's WAL; take a store that \
                 keeps the condition of a create"
                    .to_owned(),
            ),
        }
    }

    async fn read(&mut self) {
        let problem = match self.store.get(&self.object, FIRST.len() as u64).await {
            Ok(body) if body == FIRST => None,
            Ok(_) => Some("what came back is not what was stored".to_owned()),
            Err(error) => Some(self.refusal(&error)),
        };
        self.note("read it back", &self.object.clone(), problem);
    }

    async fn list(&mut self) {
        let folder = format!("{FOLDER}/");
        let problem = match self.store.list(&folder, None).await {
            Ok(objects)
                if !self.is_stored || objects.iter().any(|info| info.key == self.object) =>
            {
                None
            }
            Ok(_) => Some("the object that was just stored is not listed".to_owned()),
            Err(error) => Some(self.refusal(&error)),
        };
        self.note("list objects", &self.object.clone(), problem);
    }

    /// An object that goes up in two parts, as backups do, and must not replace another either.
    async fn parts(&mut self) {
        let problem = self.put_in_parts().await.err();
        let problem = problem.map(|error| self.refusal(&error));
        let is_stored = problem.is_none();
        self.note("store an object in parts", &self.in_parts.clone(), problem);
        if is_stored {
            let again = self.put_in_parts().await;
            let problem = self.replaced(again);
            let name = "refuse to create it again in parts";
            self.note(name, &self.in_parts.clone(), problem);
        }
    }

    async fn put_in_parts(&self) -> Result<()> {
        let mut upload = self.store.upload(self.in_parts.clone(), PutMode::Create);
        let length = upload.part_size_bytes() + 1;
        upload.write(Bytes::from(vec![0; length])).await?;
        upload.finish().await.map(drop)
    }

    async fn abort(&mut self) {
        let problem = match self.store.start_and_abort(&self.absent).await {
            Ok(()) => None,
            Err(error) => Some(self.missing(Right::AbortUpload, &error)),
        };
        self.note(
            "drop an upload that is not finished",
            &self.absent.clone(),
            problem,
        );
    }

    async fn shortcomings(&mut self) {
        let problem = match self.store.shortcomings().await {
            Ok(found) if found.is_empty() => None,
            Ok(found) => Some(found.join("\n")),
            Err(error) => Some(reason_in_words(&error)),
        };
        self.findings.push(Finding::of(
            "keep what the protocol promises",
            self.store.url(),
            problem,
        ));
    }

    async fn delete(&mut self, deletes: Deletes) {
        let keys = [self.object.clone(), self.in_parts.clone()];
        let refused = match self.store.delete(&keys).await {
            Ok(refused) => refused.into_iter().next().map(|(_, error)| error),
            Err(error) => Some(error),
        };
        if deletes == Deletes::Expected && refused.is_none() {
            self.sweep().await;
        }
        let is_refused = |error: &Error| error.kind == ErrorKind::PermissionDenied;
        let (name, problem) = match (deletes, refused) {
            (Deletes::Expected, None) => ("delete them", None),
            (Deletes::Expected, Some(error)) => {
                let text = format!(
                    "{}; for credentials that shall not delete, check with --append-only",
                    self.refusal(&error)
                );
                ("delete them", Some(text))
            }
            (Deletes::Refused, Some(error)) if is_refused(&error) => (NO_DELETE, None),
            (Deletes::Refused, Some(error)) => (NO_DELETE, Some(reason_in_words(&error))),
            (Deletes::Refused, None) => {
                let right = self.store.right(Right::Delete);
                let text = format!("they were deleted: take {right} away from these credentials");
                (NO_DELETE, Some(text))
            }
        };
        self.note(name, &self.object.clone(), problem);
    }

    /// Deletes what earlier checks left that were not allowed to delete.
    async fn sweep(&self) {
        let Ok(objects) = self.store.list(&format!("{FOLDER}/"), None).await else {
            return;
        };
        let is_left =
            |modified: Timestamp| Timestamp::now().duration_since(modified) > LONGEST_CHECK;
        let left = objects.into_iter().filter(|info| is_left(info.modified));
        let left: Vec<ObjectKey> = left.map(|info| info.key).collect();
        if !left.is_empty() {
            // What stays, the next check deletes.
            let _refused = self.store.delete(&left).await;
        }
    }

    async fn put(&self, key: &ObjectKey, body: &'static [u8]) -> Result<()> {
        self.store
            .put(key, Bytes::from_static(body), PutMode::Create)
            .await
    }

    /// What an error means for who has to grant rights.
    fn refusal(&self, error: &Error) -> String {
        let right = match error.operation {
            Operation::Put => Right::Create,
            Operation::Get | Operation::Head => Right::Read,
            Operation::List => Right::List,
            Operation::Delete => Right::Delete,
            _ => return reason_in_words(error),
        };
        self.missing(right, error)
    }

    fn missing(&self, right: Right, error: &Error) -> String {
        if error.kind != ErrorKind::PermissionDenied {
            return reason_in_words(error);
        }
        let right = self.store.right(right);
        // The answer does not say which of them.
        let others = match error.operation {
            Operation::Put if right.starts_with("s3:") => {
                " (or, with s3_sse, one on the key, or, with s3_object_lock_mode, s3:PutObjectRetention)"
            }
            _ => "",
        };
        format!(
            "the right {right} is missing{others}: {}",
            reason_in_words(error)
        )
    }

    fn note(&mut self, check: &'static str, key: &ObjectKey, problem: Option<String>) {
        let object = self.store.object_url(key);
        self.findings.push(Finding::of(check, object, problem));
    }
}

const FIRST: &[u8] = b"walhalla check stored this and deletes it again\n";
const SECOND: &[u8] = b"walhalla check must not be able to store this\n";
const NO_DELETE: &str = "refuse to delete them";

/// The error with its causes in a line.
fn reason_in_words(error: &Error) -> String {
    output::chain(error)
}

/// What is wrong when the store's time for an object that was stored between `before` and `after` is `stored`.
fn skew(stored: Timestamp, before: Timestamp, after: Timestamp) -> Option<String> {
    let (ahead, behind) = (stored.duration_since(after), before.duration_since(stored));
    let (off, direction) = if ahead > behind {
        (ahead, "ahead of")
    } else {
        (behind, "behind")
    };
    (off > MAX_SKEW).then(|| {
        let seconds = off.as_secs();
        format!("the store's clock is {seconds} s {direction} this host's; let both take their time from NTP")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_in_seconds_and_direction() {
        let before: Timestamp = "2026-11-21T04:30:00Z".parse().unwrap();
        // A request that was sent again for 40 s says nothing of clocks.
        let after = before + SignedDuration::from_secs(40);
        let skew_of = |seconds| skew(before + SignedDuration::from_secs(seconds), before, after);
        for seconds in [-30, -1, 0, 40, 70] {
            assert_eq!(skew_of(seconds), None);
        }
        assert!(skew_of(-100).unwrap().contains("100 s behind"));
        assert!(skew_of(3_640).unwrap().contains("3600 s ahead of"));
    }
}
