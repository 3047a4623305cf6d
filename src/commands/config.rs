//! `walhalla config`

use std::path::Path;

use comfy_table::{Table, presets};
use serde_json::{Value as Json, json};
use walhalla_providers::transfer::shown;

use super::{Context, Outcome};
use crate::config::{self, Credentials, DEFAULT_FILE, Settings, Value};
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

/// Where the settings file that was looked for is, as a row of the output.
const FILE_KEY: &str = "settings_file";

pub(super) fn run(context: &Context) -> Result<Outcome, Error> {
    let settings = &context.settings;
    // Not shown before they are checked: a secret key may stand in their place.
    settings.recipients()?;
    let profile = settings.stores.s3.profile.as_deref();
    let credentials = Credentials::of(settings.store.as_deref(), profile);
    if context.global.json {
        output::json(&document(settings, &credentials))?;
    } else {
        output::block(&settings_table(settings))?;
        output::line("")?;
        output::line(&settings_file(settings))?;
        output::line("")?;
        output::block(&credentials_block(settings, &credentials))?;
    }
    Ok(Outcome::Done)
}

/// One array of rows: each has `kind`, `key`, `value` and `origin`, and what else its kind has.
fn document(settings: &Settings, credentials: &Credentials) -> Vec<Json> {
    let rows = settings.values.iter().map(|value| {
        let row = config::row(value.key);
        json!({
            "kind": "setting",
            "key": value.key,
            "value": text_of(value),
            "origin": value.origin.to_string(),
            "source": value.origin.kind(),
            "variable": row.map(|row| row.variable),
            "default": row.map(|row| row.default.described()),
            "documentation": row.map(config::Row::documentation),
        })
    });
    let file = json!({
        "kind": "file",
        "key": FILE_KEY,
        "value": looked_for(settings),
        "origin": settings.file_origin.to_string(),
        "source": settings.file_origin.kind(),
        "is_found": settings.file.is_some(),
    });
    let foreign = foreign().map(
        |(name, value)| json!({ "kind": "variable", "key": name, "value": value, "origin": name }),
    );
    rows.chain([file])
        .chain(foreign)
        .chain([credentials_document(credentials)])
        .collect()
}

fn credentials_document(credentials: &Credentials) -> Json {
    let sources = credentials.sources.iter().map(|source| {
        let parts = source.parts.iter();
        let parts = parts.map(|part| json!({ "what": part.what, "is_set": part.is_set }));
        json!({
            "name": source.name,
            "state": source.state.described(),
            "looked_at": parts.collect::<Vec<_>>(),
        })
    });
    let chosen = credentials.chosen();
    let parts = chosen.map(|source| {
        let parts = source.parts.iter().filter(|part| part.is_set);
        let parts: Vec<_> = parts.map(|part| part.what.as_str()).collect();
        parts.join(", ")
    });
    json!({
        "kind": "credentials",
        "key": "credentials",
        "value": chosen.map(|source| source.name),
        "origin": parts,
        "store": credentials.scheme,
        "sources": sources.collect::<Vec<_>>(),
    })
}

fn settings_table(settings: &Settings) -> String {
    let mut table = table(["SETTING", "VALUE", "FROM"]);
    for value in &settings.values {
        let default = || config::row(value.key).map(|row| row.default.described().to_owned());
        let text = text_of(value).or_else(default).unwrap_or_default();
        let text = output::in_a_line(&text).into_owned();
        table.add_row([value.key.to_owned(), text, value.origin.to_string()]);
    }
    for (name, value) in foreign() {
        let value = output::in_a_line(&value).into_owned();
        table.add_row([name.to_owned(), value, name.to_owned()]);
    }
    table.to_string()
}

/// Which file was looked for, why that one, and whether it was there.
fn settings_file(settings: &Settings) -> String {
    let is_found = if settings.file.is_some() {
        "read"
    } else {
        "not found"
    };
    format!(
        "settings file: {} (from {}; {is_found})",
        output::in_a_line(&looked_for(settings)),
        settings.file_origin
    )
}

fn looked_for(settings: &Settings) -> String {
    let path = settings.file.as_deref();
    path.unwrap_or(Path::new(DEFAULT_FILE))
        .display()
        .to_string()
}

/// The sources of credentials in the order in which they are tried.
fn credentials_block(settings: &Settings, credentials: &Credentials) -> String {
    if credentials.sources.is_empty() {
        let why = match (settings.store.as_deref(), credentials.scheme) {
            (None, _) => "no store is set",
            (Some(_), Some("file")) => "a directory needs none, the rights of this user count",
            (Some(_), _) => "the kind of store is not known",
        };
        return format!("credentials: {why}");
    }
    let mut table = table(["CREDENTIALS", "STATE", "LOOKED AT"]);
    for source in &credentials.sources {
        let parts = source.parts.iter().map(|part| {
            let is_set = if part.is_set { "yes" } else { "no" };
            format!("{}: {is_set}", output::in_a_line(&part.what))
        });
        let parts: Vec<_> = parts.collect();
        table.add_row([source.name, source.state.described(), &parts.join(", ")]);
    }
    format!(
        "{table}\nThe first source that is set is used. \"not asked\": only a request would tell."
    )
}

fn table(header: [&str; 3]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// The value that counts, as people may see it; none where there is neither a value nor a text for a default.
fn text_of(value: &Value) -> Option<String> {
    let default = || config::row(value.key).and_then(|row| row.default.text());
    let text = value.text.clone().or_else(default)?;
    Some(shown(&text.trim_end().replace('\n', ", ")))
}

fn foreign() -> impl Iterator<Item = (&'static str, String)> {
    let names = FOREIGN.into_iter().chain(SECRETS);
    names.filter_map(|name| {
        let value = std::env::var(name).ok()?;
        // Where a path is wanted, a whole key may stand.
        let is_secret = SECRETS.contains(&name) || value.contains(['{', '\n']);
        let shown = if is_secret {
            "********".to_owned()
        } else {
            shown(&value)
        };
        Some((name, shown))
    })
}
