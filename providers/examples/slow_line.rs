//! `slow_line HOST:PORT MILLISECONDS`: a line to a server on which each request and its answer take so much longer, half of it
//! each way. Prints where it listens.

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;
use std::time::Duration;

use walhalla_providers::testing::proxy::Proxy;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .ok_or("usage: slow_line HOST:PORT MILLISECONDS")
    };
    let (server, milliseconds) = (next()?.parse()?, next()?.parse::<u64>()?);
    let proxy = Proxy::start(server);
    proxy.delay(Duration::from_micros(milliseconds * 500));
    println!("listening on {}", proxy.endpoint());
    loop {
        std::thread::park();
    }
}
