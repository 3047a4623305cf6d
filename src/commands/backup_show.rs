//! `walhalla backup-show ID`

use super::{Context, Outcome};
use crate::cli::BackupShow;
use crate::error::Error;
use crate::output;

pub(super) fn run(context: &Context, arguments: &BackupShow) -> Result<Outcome, Error> {
    let backup = context
        .repository(&arguments.cluster)?
        .backup(&arguments.id)?;
    if context.global.json {
        output::json(&backup)?;
        return Ok(Outcome::Done);
    }
    let document = serde_json::to_value(&backup).expect("an entry has only text and numbers");
    for (name, value) in document.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => "none".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(items) if items.is_empty() => "none".to_owned(),
            serde_json::Value::Array(items) => items
                .iter()
                .flat_map(|item| ["\n  ".to_owned(), item.to_string()])
                .collect(),
            other => other.to_string(),
        };
        output::line(&format!("{:<20}{text}", name.replace('_', " ")))?;
    }
    Ok(Outcome::Done)
}
