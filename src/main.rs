//! The `walhalla` program.

use std::process::ExitCode;

use clap::Parser;
use walhalla::cli::Cli;
use walhalla::commands;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => commands::run(cli),
        Err(error) => {
            commands::print_usage(&error);
            if error.use_stderr() {
                commands::usage_exit()
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}
