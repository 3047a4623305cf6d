//! `walhalla config`

use comfy_table::{Table, presets};
use walhalla_providers::transfer::shown;

use super::{Context, Outcome};
use crate::config::{Origin, Settings, Value};
use crate::error::Error;
use crate::output;

/// Variables of other ecosystems that decide how stores and servers are reached.
const FOREIGN: [&str; 18] = [
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "STORAGE_EMULATOR_HOST",
    "GCE_METADATA_HOST",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_SERVICE_ENDPOINT",
    "AZURE_AUTHORITY_HOST",
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
];
/// Those whose values are shown to nobody.
const SECRETS: [&str; 7] = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "PGPASSWORD",
];

pub(super) fn run(context: &Context) -> Result<Outcome, Error> {
    // Not shown before they are checked: a secret key may stand in their place.
    context.settings.recipients()?;
    let rows: Vec<(String, Option<String>, String)> = context
        .settings
        .values
        .iter()
        .map(|value| row(&context.settings, value))
        .chain(foreign())
        .collect();
    if context.global.json {
        let documents: Vec<_> = rows
            .iter()
            .map(|(key, value, origin)| serde_json::json!({ "key": key, "value": value, "origin": origin }))
            .collect();
        output::json(&documents)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["SETTING", "VALUE", "FROM"]);
    for (key, value, origin) in rows {
        let value = value.unwrap_or_else(|| "-".to_owned());
        table.add_row([key, output::in_a_line(&value).into_owned(), origin]);
    }
    output::block(&table.to_string())?;
    Ok(Outcome::Done)
}

fn row(settings: &Settings, value: &Value) -> (String, Option<String>, String) {
    let default = match value.key {
        "compression" => Some(settings.compression.to_string()),
        "upload_concurrency" => Some(settings.upload_concurrency.to_string()),
        "download_concurrency" => Some(settings.download_concurrency.to_string()),
        "archive_timeout" => Some(format!("{}s", settings.archive_timeout.as_secs())),
        "retry_timeout" => Some(format!("{}s", settings.retry_timeout.as_secs())),
        "delta_max_chain" => Some(settings.delta_max_chain.to_string()),
        _ => None,
    };
    let text = if value.origin == Origin::Default {
        default
    } else {
        value.text.clone()
    };
    (
        value.key.to_owned(),
        text.map(|text| shown(&text.trim_end().replace('\n', ", "))),
        value.origin.to_string(),
    )
}

fn foreign() -> impl Iterator<Item = (String, Option<String>, String)> {
    let names = FOREIGN.into_iter().chain(SECRETS);
    names.filter_map(|name| {
        let value = std::env::var(name).ok()?;
        let shown = if SECRETS.contains(&name) {
            "********".to_owned()
        } else {
            shown(&value)
        };
        Some((name.to_owned(), Some(shown), name.to_owned()))
    })
}
