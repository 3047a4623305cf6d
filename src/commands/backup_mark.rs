//! `walhalla backup-mark ID --permanent | --impermanent`

use super::{Context, Outcome};
use crate::cli::BackupMark;
use crate::error::Error;
use crate::output;
use crate::repository::marking::{Change, Marked};
use crate::repository::marks::Permanence;

pub(super) fn run(context: &Context, arguments: &BackupMark) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    // One of the two flags is given, and only one.
    let permanence = Permanence::of(arguments.permanent);
    let marked = repository.mark_backup(&arguments.id, permanence)?;
    if context.global.json {
        output::json(&serde_json::json!({
            "id": marked.backup,
            "permanent": permanence == Permanence::Permanent,
            "changed": marked.change == Change::Made,
        }))?;
    } else {
        output::line(&sentence(&marked, permanence))?;
    }
    let mirror = context.mirror_of(&repository, None)?;
    if let Some(following) = context.following(&repository, mirror.as_ref()) {
        following.marks(&marked.backup)?;
    }
    Ok(Outcome::Done)
}

fn sentence(marked: &Marked, permanence: Permanence) -> String {
    let since = match marked.change {
        Change::Made => "now",
        Change::None => "already",
    };
    let ancestors: Vec<String> = marked.ancestors.iter().map(ToString::to_string).collect();
    let with = match permanence {
        Permanence::Permanent if !ancestors.is_empty() => {
            format!(", and so is what it stands on: {}", ancestors.join(", "))
        }
        Permanence::Permanent | Permanence::Impermanent => String::new(),
    };
    format!("backup {} is {permanence} {since}{with}", marked.backup)
}
