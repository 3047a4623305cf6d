//! `walhalla keygen`

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use age::secrecy::ExposeSecret;
use jiff::Timestamp;
use serde_json::json;

use super::Outcome;
use crate::cli::{Global, Keygen};
use crate::error::Error;
use crate::output;
use crate::pipeline::encryption::{generate, recipients_of};

pub(super) fn run(global: &Global, arguments: &Keygen) -> Result<Outcome, Error> {
    if let Some(path) = &arguments.recipients_of {
        show_recipients(global, path)?;
        return Ok(Outcome::Done);
    }
    let (identity, recipient) = generate(Timestamp::now());
    match &arguments.output {
        Some(path) => {
            write_new(path, identity.expose_secret()).map_err(|source| Error::Keys {
                doing: "write the identity to",
                path: path.clone(),
                source: source.into(),
            })?;
            if global.json {
                output::json(&json!({ "recipient": recipient, "identity_file": path }))?;
            } else {
                output::line(&recipient)?;
            }
            tracing::info!(
                "the identity (secret key) is in {}: without it nobody can restore what is encrypted to this recipient. Keep copies \
                 of it in two places that one fire does not reach; a host that only archives needs the recipient alone, not the \
                 identity",
                path.display()
            );
        }
        None if global.json => {
            output::json(&json!({ "recipient": recipient, "identity": identity.expose_secret() }))?;
        }
        None => output::block(identity.expose_secret().trim_end())?,
    }
    Ok(Outcome::Done)
}

fn show_recipients(global: &Global, path: &Path) -> Result<(), Error> {
    let recipients = recipients_of(path).map_err(|source| Error::Keys {
        doing: "tell the recipients of",
        path: path.to_owned(),
        source,
    })?;
    if global.json {
        output::json(&json!({ "recipients": recipients }))?;
    } else {
        output::block(&recipients.join("\n"))?;
    }
    Ok(())
}

/// A new file that only its owner can read, durable.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
