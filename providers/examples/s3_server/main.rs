//! `s3_server DIRECTORY PORT ACCESS_KEY SECRET_KEY [--bucket NAME]... [--deny ACTION]...`
//!
//! An S3 server for tests and demonstrations, on 127.0.0.1 and without durability. Port 0 takes
//! any free port. The key has all rights but the denied ones, such as `s3:DeleteObject`. Prints `listening on http://127.0.0.1:PORT` once it answers.

mod server;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;

use tokio::net::TcpListener;

const USAGE: &str =
    "usage: s3_server DIRECTORY PORT ACCESS_KEY SECRET_KEY [--bucket NAME]... [--deny ACTION]...";

struct Arguments {
    directory: PathBuf,
    port: u16,
    access_key: String,
    secret_key: String,
    buckets: Vec<String>,
    denied: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments = parse(std::env::args().skip(1)).ok_or(USAGE)?;
    for bucket in &arguments.buckets {
        std::fs::create_dir_all(arguments.directory.join(bucket))?;
    }
    let listener = TcpListener::bind(("127.0.0.1", arguments.port)).await?;
    writeln!(
        io::stdout(),
        "listening on http://{}",
        listener.local_addr()?
    )?;
    io::stdout().flush()?;
    server::serve(
        listener,
        &arguments.directory,
        &arguments.access_key,
        &arguments.secret_key,
        &arguments.denied,
    )
    .await
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut plain = Vec::new();
    let (mut buckets, mut denied) = (Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bucket" => buckets.push(arguments.next()?),
            "--deny" => denied.push(arguments.next()?),
            _ => plain.push(argument),
        }
    }
    let [directory, port, access_key, secret_key] = plain.try_into().ok()?;
    Some(Arguments {
        directory: directory.into(),
        port: port.parse().ok()?,
        access_key,
        secret_key,
        buckets,
        denied,
    })
}
