//! `walhalla man`: the manual pages, from the command line and the table of the settings.

use std::path::Path;

use clap::{Command, CommandFactory as _, Id};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Outcome;
use crate::cli::Cli;
use crate::config::{DEFAULT_FILE, ROWS};
use crate::error::Error;

/// What stands in the foot of each page.
const SOURCE: &str = concat!("walhalla ", env!("CARGO_PKG_VERSION"));
/// In the place of a date, which a build does not know. Quoted, as an empty argument would be none.
const NO_DATE: &str = "\"\"";

/// Writes a page for each command, and one for the settings file, into `directory`.
pub(super) fn run(directory: &Path) -> Result<Outcome, Error> {
    std::fs::create_dir_all(directory).map_err(|source| Error::File {
        path: directory.to_owned(),
        source,
    })?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let shared: Vec<Id> = { program.get_arguments() }
        .map(|it| it.get_id().clone())
        .collect();
    let mut waiting = vec![program];
    while let Some(command) = waiting.pop() {
        let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
        waiting.extend(shown.cloned());
        let name = Man::new(command.clone()).get_filename();
        write(directory, &name, |page| of_command(page, command, &shared))?;
    }
    write(directory, "walhalla.toml.5", of_settings)?;
    Ok(Outcome::Done)
}

fn write(
    directory: &Path,
    name: &str,
    render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>,
) -> Result<(), Error> {
    let path = directory.join(name);
    let mut page = Vec::new();
    render(&mut page)
        .and_then(|()| std::fs::write(&path, page))
        .map_err(|source| Error::File { path, source })
}

/// The page of a command. The flags of every command, `shared`, stand on the page of the program alone.
fn of_command(page: &mut Vec<u8>, command: Command, shared: &[Id]) -> std::io::Result<()> {
    let is_program = command.get_name() == "walhalla";
    let own = command.mut_args(|it| {
        let is_hidden = it.is_hide_set() || (!is_program && shared.contains(it.get_id()));
        it.hide(is_hidden)
    });
    let man = Man::new(own.clone()).date(NO_DATE).source(SOURCE);
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    if own.get_arguments().any(|it| !it.is_hide_set()) {
        man.render_options_section(page)?;
    }
    if own.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let mut rest = Roff::new();
    if let Some(help) = own.get_after_help() {
        rest.control("SH", ["NOTES"]);
        notes(&mut rest, &help.to_string());
    }
    rest.control("SH", ["SEE ALSO"]);
    if is_program {
        rest.text([bold("walhalla.toml"), roman("(5)")]);
    } else {
        rest.text([
            bold("walhalla"),
            roman("(1) has the flags of every command, "),
            bold("walhalla.toml"),
            roman("(5) the settings"),
        ]);
    }
    rest.to_writer(page)
}

/// Paragraphs, and the indented lines between them as they are: these are examples.
fn notes(page: &mut Roff, text: &str) {
    for line in text.lines() {
        if let Some(example) = line.strip_prefix("  ") {
            page.control("RS", ["4"]).control("nf", []);
            page.text([roman(example)]);
            page.control("fi", []).control("RE", []);
        } else if !line.is_empty() {
            page.control("PP", []).text([roman(line)]);
        }
    }
}

fn of_settings(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut roff = Roff::new();
    roff.control("TH", ["walhalla.toml", "5", NO_DATE, SOURCE]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("walhalla.toml - settings of Walhalla")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(format!(
        "Settings are keys of a TOML file: the one that --config or WALHALLA_CONFIG names, else {DEFAULT_FILE} if it is there. Each \
         setting is also an environment variable, which wins over the file. A flag wins over both. An unknown key is an error."
    ))]);
    roff.control("PP", []);
    roff.text([
        bold("walhalla config"),
        roman(" prints the settings and where each one came from."),
    ]);
    roff.control("SH", ["SETTINGS"]);
    for row in ROWS {
        roff.control("TP", []);
        roff.text([bold(row.name)]);
        roff.text([roman(row.documentation())]);
        roff.control("br", []);
        roff.text([roman(format!(
            "Variable {}, default: {}",
            row.variable,
            row.default.described()
        ))]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("walhalla"),
        roman("(1), "),
        bold("walhalla-config"),
        roman("(1)"),
    ]);
    roff.to_writer(page)
}
