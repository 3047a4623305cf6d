//! fake-gcs-server, for Google Cloud Storage.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a port that was free may be taken before the server has it.
const PORT_TRIES: u32 = 5;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running fake-gcs-server with one bucket, in memory, on 127.0.0.1; killed on drop.
///
/// What it is known not to do as GCS does: it ignores conditions on resumable uploads, checksums that come with a body,
/// `fields`, storage classes and keys; it takes the question how far an upload has come for its end; and its 404s do
/// not say what is missing.
#[derive(Debug)]
pub struct FakeGcs {
    server: Child,
    port: u16,
}

impl FakeGcs {
    /// The bucket that is there.
    pub const BUCKET: &'static str = "bucket";

    /// A server that answers, and writes its log to `fake-gcs-server.log` in `dir`.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// The same with a bucket that keeps versions.
    ///
    /// # Panics
    /// As [`FakeGcs::start`].
    pub fn start_with_versions(dir: &Path) -> Self {
        Self::start_with(dir, r#","versioning":{"enabled":true}"#)
    }

    fn start_with(dir: &Path, bucket: &str) -> Self {
        let log = dir.join("fake-gcs-server.log");
        for _ in 0..PORT_TRIES {
            if let Some(server) = Self::start_on(free_port(), &log) {
                server.make_bucket(bucket);
                return server;
            }
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        panic!("fake-gcs-server did not start: {said}");
    }

    /// The server's address, with `http://`, as `STORAGE_EMULATOR_HOST` takes it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The server on this port; none when it ended, as when the port was taken meanwhile.
    fn start_on(port: u16, log: &Path) -> Option<Self> {
        let file = File::create(log).unwrap();
        let mut command = Command::new(program());
        command.args([
            "-scheme",
            "http",
            "-host",
            "127.0.0.1",
            "-backend",
            "memory",
        ]);
        command.args(["-port", &port.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let server = command.spawn().unwrap();
        let mut server = Self { server, port };
        server.waited(log).then_some(server)
    }

    /// Whether it says itself that it listens. To connect would not show who answers.
    fn waited(&mut self, log: &Path) -> bool {
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            let said = std::fs::read_to_string(log).unwrap();
            if said.contains("server started at") {
                return true;
            }
            if self.server.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn make_bucket(&self, settings: &str) {
        let body = format!(r#"{{"name":"{}"{settings}}}"#, Self::BUCKET);
        let length = body.len();
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            connection,
            "POST /storage/v1/b?project=test HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Where `tests/setup.sh` puts it.
fn program() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let program = workspace.join(".cache/emulators/fake-gcs-server/fake-gcs-server");
    assert!(
        program.is_file(),
        "{} is missing; run tests/setup.sh",
        program.display()
    );
    program
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
