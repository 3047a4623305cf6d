//! A line to a server that breaks, or leads elsewhere.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What a connection over the line comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server that listens on this port of this host.
    Port(u16),
    /// Nothing: it breaks as soon as it is there.
    Broken,
}

/// A port of this host from which connections lead on. It stays until the test's process ends.
pub struct Line {
    port: u16,
    opened: Arc<AtomicUsize>,
}

impl Line {
    /// A line of which `end` says where each connection leads, the first of which has the number 1.
    pub fn new(end: impl Fn(usize) -> End + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let opened = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&opened);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
                if let End::Port(port) = end(number) {
                    // A server that is away is a line that breaks.
                    let _ = TcpStream::connect(("127.0.0.1", port)).and_then(|far| join(near, far));
                }
            }
        });
        Self { port, opened }
    }

    /// libpq's variables for a server at the end. There is one try to each connection.
    pub fn connection(&self) -> [(&'static str, String); 3] {
        [
            ("PGHOST", "127.0.0.1".to_owned()),
            ("PGPORT", self.port.to_string()),
            ("PGSSLMODE", "disable".to_owned()),
        ]
    }

    /// How many connections there were.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

/// Passes on what comes from either side, until one of them ends.
fn join(near: TcpStream, far: TcpStream) -> io::Result<()> {
    let ways = [(near.try_clone()?, far.try_clone()?), (far, near)];
    for (mut from, mut to) in ways {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            for stream in [from, to] {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }
    Ok(())
}
