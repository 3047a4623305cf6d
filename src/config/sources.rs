//! The text of each setting, from the settings file, the variables and the flags.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::table::{self, ROWS, Row};
use super::variables::{FILE_VARIABLE, Variables};
use super::{DEFAULT_FILE, Error, Flags, Origin, Value};
use crate::pipeline::encryption::is_secret;

/// The settings file that is looked for, and what names it; [`Origin::Default`] where nothing does.
pub(super) fn file_to_read(flags: &Flags, variables: &Variables) -> (PathBuf, Origin) {
    let of_variable = || variables.get(FILE_VARIABLE).map(PathBuf::from);
    if let Some(path) = flags.file {
        (path.to_owned(), Origin::Flag)
    } else if let Some(path) = of_variable() {
        (path, Origin::Variable(FILE_VARIABLE))
    } else {
        (PathBuf::from(DEFAULT_FILE), Origin::Default)
    }
}

/// Every setting: a flag's text wins over a variable's, and that over the file's.
pub(super) fn values(
    flags: &Flags,
    variables: &Variables,
    file: Option<&Path>,
) -> Result<Vec<Value>, Error> {
    let table = file.map(read_file).transpose()?.unwrap_or_default();
    let value = |row: &Row| {
        let in_file = table.get(row.name).map(text_of).zip(file);
        let variable = variables.get(row.variable);
        // An empty variable is there only where a setting refuses it, and a list in the file is the better one.
        match (variable.filter(|text| !text.is_empty()), in_file) {
            (Some(text), _) => of_variable(row, text),
            (None, Some((text, file))) => Ok(Value {
                key: row.name,
                text: Some(text),
                origin: Origin::File(file.to_owned()),
            }),
            (None, None) => match variable {
                Some(empty) => of_variable(row, empty),
                None => Ok(Value {
                    key: row.name,
                    text: None,
                    origin: Origin::Default,
                }),
            },
        }
    };
    let mut values: Vec<Value> = ROWS.iter().map(value).collect::<Result<_, _>>()?;
    set(&mut values, flags)?;
    Ok(values)
}

/// Puts what flags say in the place of other texts.
fn set(values: &mut [Value], flags: &Flags) -> Result<(), Error> {
    let own_flags = [
        (&table::STORE.row, flags.store),
        (&table::UPLOAD_RATE.row, flags.upload_rate),
        (&table::DOWNLOAD_RATE.row, flags.download_rate),
        (&table::READ_RATE.row, flags.read_rate),
    ];
    let own_flags = { own_flags.into_iter() }.filter_map(|(row, text)| Some((row.name, text?)));
    let pairs = flags
        .set
        .iter()
        .map(|(key, text)| (key.as_str(), text.as_str()));
    for (key, text) in pairs.chain(own_flags) {
        let value = values.iter_mut().find(|value| value.key == key);
        let value = value.ok_or_else(|| Error::UnknownKey {
            path: "--set".into(),
            nearest: table::nearest(key),
            key: key.to_owned(),
        })?;
        value.text = Some(text.to_owned());
        value.origin = Origin::Flag;
    }
    Ok(())
}

fn of_variable(row: &Row, text: &OsStr) -> Result<Value, Error> {
    let origin = Origin::Variable(row.variable);
    match text.to_str() {
        Some(text) => Ok(Value {
            key: row.name,
            text: Some(text.to_owned()),
            origin,
        }),
        None => Err(Error::InvalidValue {
            key: row.name,
            origin,
            problem: format!(
                "\"{}\" is not UTF-8",
                text.as_encoded_bytes().escape_ascii()
            ),
        }),
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, toml::Value>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let found: BTreeMap<String, toml::Value> = toml::from_str(&text).map_err(|mut source| {
        // The message shows the line, and a secret key may stand in it.
        if is_secret(&text) {
            source.set_input(None);
        }
        Error::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        }
    })?;
    match found.keys().find(|name| table::row(name).is_none()) {
        None => Ok(found),
        Some(unknown) => Err(Error::UnknownKey {
            path: path.to_owned(),
            nearest: table::nearest(unknown),
            key: unknown.clone(),
        }),
    }
}

/// A list becomes lines, one for each item.
fn text_of(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => {
            let lines = items
                .iter()
                .flat_map(|item| [text_of(item), "\n".to_owned()]);
            lines.collect()
        }
        other => other.to_string(),
    }
}
