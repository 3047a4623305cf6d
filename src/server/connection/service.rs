//! Service files: named sets of parameters (fe-connect.c, `parseServiceInfo`).

use std::path::{Path, PathBuf};

use super::{KNOWN, Problem, Surroundings, problem};
use crate::server::Error;

/// Where Debian's and a self-built PostgreSQL look for the file of all users.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/postgresql-common", "/usr/local/pgsql/etc"];

/// The parameters of the service that `PGSERVICE` names; none without it.
pub(super) fn parameters(
    surroundings: &Surroundings,
) -> Result<Vec<(&'static str, String)>, Error> {
    let Some(name) = surroundings.text("PGSERVICE")? else {
        return Ok(Vec::new());
    };
    for path in files(surroundings)? {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(problem("PGSERVICE", Problem::File { path, source })),
        };
        if let Some(found) = section(&text, &name, &path)? {
            return Ok(found);
        }
    }
    Err(problem("PGSERVICE", Problem::NoService { name }))
}

/// The user's file, then that of all users.
fn files(surroundings: &Surroundings) -> Result<Vec<PathBuf>, Error> {
    let own = surroundings.text("PGSERVICEFILE")?.map(PathBuf::from);
    let own = own.or_else(|| Some(surroundings.home.as_ref()?.join(".pg_service.conf")));
    let system = match surroundings.text("PGSYSCONFDIR")? {
        Some(directory) => vec![PathBuf::from(directory)],
        None => SYSTEM_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    let system = system
        .into_iter()
        .map(|directory| directory.join("pg_service.conf"));
    Ok(own.into_iter().chain(system).collect())
}

/// The section `[name]`; of a parameter that is there twice the first one counts.
fn section(
    text: &str,
    name: &str,
    path: &Path,
) -> Result<Option<Vec<(&'static str, String)>>, Error> {
    let mut found: Option<Vec<(&'static str, String)>> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(heading) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            found = (heading.strip_suffix(']') == Some(name)).then(Vec::new);
            continue;
        }
        let Some(set) = &mut found else { continue };
        let Some((keyword, value)) = line.split_once('=') else {
            let (path, line) = (path.to_owned(), index + 1);
            return Err(problem("PGSERVICE", Problem::ServiceLine { path, line }));
        };
        let known = KNOWN.iter().find(|known| known.keyword == keyword);
        if let Some(known) = known
            && !set.iter().any(|(before, _)| *before == keyword)
        {
            set.push((known.keyword, value.to_owned()));
        }
    }
    Ok(found)
}
