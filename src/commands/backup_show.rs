//! `walhalla backup-show ID`

use serde::Serialize;
use serde_json::Value;

use super::backup_list::Standing;
use super::{Context, Outcome};
use crate::cli::BackupShow;
use crate::error::Error;
use crate::output;
use crate::repository::BackupEntry;

/// A backup as it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    backup: &'a BackupEntry,
    #[serde(flatten)]
    standing: Standing<'a>,
}

pub(super) fn run(context: &Context, arguments: &BackupShow) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    let catalog = repository.catalog()?;
    let backup = repository.named_backup(&catalog, &arguments.id)?;
    let shown = Shown {
        standing: Standing::of(backup, &catalog),
        backup: &BackupEntry {
            permanent: catalog.is_permanent(&backup.id),
            ..backup.clone()
        },
    };
    if context.global.json {
        output::json(&shown)?;
    } else {
        print(&shown)?;
    }
    Ok(match shown.standing.problem() {
        None => Outcome::Done,
        Some(problem) => {
            tracing::error!("{problem}");
            Outcome::ProblemFound
        }
    })
}

fn print(shown: &Shown) -> Result<(), Error> {
    let mut document = serde_json::to_value(shown).expect("an entry has only text and numbers");
    if let Some(fields) = document
        .as_object_mut()
        .filter(|_| !shown.backup.left_out.is_empty())
    {
        let words = shown.backup.left_out.iter().map(ToString::to_string);
        fields.insert("left_out".to_owned(), words.collect());
    }
    for (name, value) in document.as_object().into_iter().flatten() {
        let text = match value {
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => items
                .iter()
                .flat_map(|item| ["\n  ".to_owned(), text(item)])
                .collect(),
            other => text(other),
        };
        output::block(&format!("{:<20}{text}", name.replace('_', " ")))?;
    }
    Ok(())
}

fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    output::in_a_line(&text).into_owned()
}
