//! A proxy before a real server, on a line that fails when told to.
//!
//! ```text
//! client ─▶ request ─▶ first rule that it meets ─▶ its head, its body byte by byte ─▶ server
//!        ◀─ the answer's head and body, or what the fault makes of them ◀───────────
//! ```
//!
//! It reads HTTP/1.1 in clear as far as to tell where a message ends, so that a fault hits the
//! request that it is meant for on a connection that is kept; what passes, passes unchanged, `Host`
//! too, which S3 signs. Each connection of a client has one of its own to the server.
//!
//! The proxy runs on a thread of its own, so that blocking tests can use it like async ones.

mod http;
mod line;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// A direction of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the client to the server.
    Request,
    /// From the server to the client.
    Answer,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is closed in order.
    Close,
    /// It is reset (RST).
    Reset,
    /// It stays open, and nothing comes any more.
    Silence,
}

/// What happens to a request. Offsets count the bytes of a body, without its head.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The proxy answers by itself; the server sees nothing.
    Answer(Answer),
    /// The server does what it is asked, and the client never hears of it.
    LoseAnswer(Ending),
    /// The connection ends in the body; after 0 bytes of a request the server sees nothing of it. A shorter body passes whole.
    Break {
        /// In which body.
        side: Side,
        /// Bytes that still pass.
        after_bytes: u64,
        /// How the client sees it.
        ending: Ending,
    },
    /// A body passes in small pieces.
    Slow {
        /// Which body.
        side: Side,
        /// Length of a piece.
        bytes: usize,
        /// The time after each.
        every: Duration,
    },
    /// A bit of a byte of a body is turned; a shorter body passes unchanged.
    Flip {
        /// In which body.
        side: Side,
        /// Bytes before the one that changes.
        at: u64,
    },
}

/// An answer that no server gave.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: String,
    body: String,
}

/// Which requests a rule is about.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    method: Option<&'static str>,
    target_part: String,
}

/// Which of the requests that a rule is about meet its fault, counted from when the rule was made.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// This one, from 1.
    Nth(u32),
    /// The k-th, the 2k-th and so on.
    Every(u32),
    /// All.
    Always,
}

/// A proxy that listens on a port of its own until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What the connections share.
struct State {
    server: SocketAddr,
    latency: Mutex<Duration>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<(String, String)>>,
    faults_met: AtomicUsize,
    request_bytes: AtomicU64,
    answer_bytes: AtomicU64,
}

struct Rule {
    requests: Requests,
    when: When,
    fault: Fault,
    met: u32,
}

/// To the proxy's thread, with where to say that it is done.
enum Order {
    Refuse(std::sync::mpsc::Sender<()>),
    Accept(std::sync::mpsc::Sender<()>),
}

enum Door {
    Open(TcpListener),
    /// The port is kept, so that nobody else gets it meanwhile.
    Shut(TcpSocket),
}

impl Proxy {
    /// A proxy before `server`, without faults yet.
    pub fn start(server: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            server,
            latency: Mutex::default(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            faults_met: AtomicUsize::default(),
            request_bytes: AtomicU64::default(),
            answer_bytes: AtomicU64::default(),
        });
        let (orders, received) = mpsc::unbounded_channel();
        let of_thread = Arc::clone(&state);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(run(listener, address, of_thread, received));
        });
        Self {
            address,
            state,
            orders: Some(orders),
            thread: Some(thread),
        }
    }

    /// Where clients find the server now.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets requests meet a fault. Where several rules hit one request, the first that was made counts.
    pub fn on(&self, requests: Requests, when: When, fault: Fault) {
        let rule = Rule {
            requests,
            when,
            fault,
            met: 0,
        };
        self.state.rules.lock().unwrap().push(rule);
    }

    /// Lets the next request meet a fault.
    pub fn next(&self, fault: Fault) {
        self.on(Requests::all(), When::Nth(1), fault);
    }

    /// Lets every request meet a fault.
    pub fn always(&self, fault: Fault) {
        self.on(Requests::all(), When::Always, fault);
    }

    /// Lets each head wait so long, each way.
    pub fn delay(&self, latency: Duration) {
        *self.state.latency.lock().unwrap() = latency;
    }

    /// Takes all faults and the latency away. A connection that fell silent stays so.
    pub fn heal(&self) {
        self.state.rules.lock().unwrap().clear();
        self.delay(Duration::ZERO);
    }

    /// Resets all connections and refuses new ones, as a host does whose server is gone.
    pub fn refuse(&self) {
        self.order(Order::Refuse);
    }

    /// Takes connections again.
    pub fn accept(&self) {
        self.order(Order::Accept);
    }

    /// How many such requests came so far, those that met a fault among them.
    pub fn count(&self, requests: &Requests) -> usize {
        let seen = self.state.seen.lock().unwrap();
        seen.iter()
            .filter(|(method, target)| requests.include(method, target))
            .count()
    }

    /// How many requests met a fault so far.
    pub fn faults_met(&self) -> usize {
        self.state.faults_met.load(Ordering::Relaxed)
    }

    /// How many bytes of bodies passed in a direction.
    pub fn passed_bytes(&self, side: Side) -> u64 {
        self.state.passed(side).load(Ordering::Relaxed)
    }

    fn order(&self, order: impl FnOnce(std::sync::mpsc::Sender<()>) -> Order) {
        let (done, is_done) = std::sync::mpsc::channel();
        let orders = self.orders.as_ref().unwrap();
        assert!(orders.send(order(done)).is_ok(), "the proxy runs");
        is_done.recv().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the proxy panicked");
        }
    }
}

impl Requests {
    /// Every request.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those with this method.
    pub fn with_method(method: &'static str) -> Self {
        Self::all().and_method(method)
    }

    /// Those whose path or query holds this text.
    pub fn naming(target_part: impl Into<String>) -> Self {
        Self::all().and_naming(target_part)
    }

    /// Those of them with this method.
    #[must_use]
    pub fn and_method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Those of them whose path or query holds this text.
    #[must_use]
    pub fn and_naming(mut self, target_part: impl Into<String>) -> Self {
        self.target_part = target_part.into();
        self
    }

    fn include(&self, method: &str, target: &str) -> bool {
        self.method.is_none_or(|wanted| wanted == method) && target.contains(&self.target_part)
    }
}

impl Answer {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: String::new(),
            body: String::new(),
        }
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers = format!("{}{name}: {value}\r\n", self.headers);
        self
    }

    /// The same with this body.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// The answer as it is sent; to a HEAD without its body.
    fn message(&self, method: &str) -> Vec<u8> {
        let Self {
            status,
            headers,
            body,
        } = self;
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Fault\r\nContent-Length: {length}\r\n{headers}\r\n");
        let body = if method == "HEAD" { "" } else { body };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}

impl State {
    /// Notes a request; returns what it is to meet.
    fn meet(&self, method: &str, target: &str) -> Option<Fault> {
        let seen = (method.to_owned(), target.to_owned());
        self.seen.lock().unwrap().push(seen);
        let mut rules = self.rules.lock().unwrap();
        let mut fault = None;
        for rule in rules.iter_mut() {
            if rule.requests.include(method, target) {
                rule.met += 1;
                let hit = match rule.when {
                    When::Nth(nth) => rule.met == nth,
                    When::Every(nth) => rule.met.is_multiple_of(nth),
                    When::Always => true,
                };
                fault = fault.or_else(|| hit.then(|| rule.fault.clone()));
            }
        }
        let met = usize::from(fault.is_some());
        self.faults_met.fetch_add(met, Ordering::Relaxed);
        fault
    }

    fn latency(&self) -> Duration {
        *self.latency.lock().unwrap()
    }

    fn passed(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Request => &self.request_bytes,
            Side::Answer => &self.answer_bytes,
        }
    }
}

/// Accepts connections and takes orders until no [`Proxy`] is left.
async fn run(
    listener: std::net::TcpListener,
    address: SocketAddr,
    state: Arc<State>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut door = Door::Open(TcpListener::from_std(listener).unwrap());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            client = door.next_client() => {
                connections.spawn(line::serve(client, Arc::clone(&state)));
            }
            order = orders.recv() => match order {
                None => return,
                Some(Order::Refuse(done)) => {
                    door = door.shut(address);
                    connections.shutdown().await;
                    done.send(()).unwrap();
                }
                Some(Order::Accept(done)) => {
                    door = door.open();
                    done.send(()).unwrap();
                }
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

impl Door {
    async fn next_client(&self) -> TcpStream {
        match self {
            Self::Open(listener) => loop {
                // A client that is gone again is none.
                if let Ok((client, _)) = listener.accept().await {
                    return client;
                }
            },
            Self::Shut(_) => std::future::pending().await,
        }
    }

    fn shut(self, address: SocketAddr) -> Self {
        drop(self);
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        Self::Shut(socket)
    }

    fn open(self) -> Self {
        match self {
            Self::Open(_) => self,
            Self::Shut(socket) => Self::Open(socket.listen(BACKLOG).unwrap()),
        }
    }
}
