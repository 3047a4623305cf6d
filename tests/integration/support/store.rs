//! The stores that tests archive to.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use walhalla_providers::testing::emulators::{Azurite, FakeGcs};

use super::{Area, Walhalla};

/// A store of a test's own.
pub enum Store {
    /// A directory.
    Directory(PathBuf),
    /// An S3 server on this machine.
    S3(S3Server),
    /// An emulator of Google Cloud Storage on this machine.
    Gcs(FakeGcs),
    /// An emulator of Azure Blob Storage on this machine.
    Azure(Azurite),
}

impl Store {
    pub fn directory(area: &Area) -> Self {
        Self::Directory(area.make_dir("store"))
    }

    pub fn s3(area: &Area) -> Self {
        Self::s3_denying(area, &[])
    }

    /// An S3 server whose key lacks these rights, as policies spell them.
    pub fn s3_denying(area: &Area, denied: &[&str]) -> Self {
        Self::S3(S3Server::start(area, denied))
    }

    pub fn gcs(area: &Area) -> Self {
        Self::Gcs(FakeGcs::start(&area.make_dir("gcs")))
    }

    /// The same with a bucket that keeps versions.
    pub fn gcs_with_versions(area: &Area) -> Self {
        Self::Gcs(FakeGcs::start_with_versions(&area.make_dir("gcs")))
    }

    pub fn azure(area: &Area) -> Self {
        Self::Azure(Azurite::start(&area.make_dir("azure")))
    }

    pub fn url(&self) -> String {
        match self {
            Self::Directory(path) => format!("file://{}", path.display()),
            Self::S3(_) => format!("s3://{BUCKET}/{PREFIX}"),
            Self::Gcs(_) => format!("gs://{}/{PREFIX}", FakeGcs::BUCKET),
            Self::Azure(_) => format!("az://{}/{PREFIX}", Azurite::CONTAINER),
        }
    }

    /// The variables that a client of this store wants.
    pub fn env(&self) -> Vec<(String, String)> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::S3(server) => s3_env(&server.endpoint),
            Self::Gcs(server) => {
                vec![("STORAGE_EMULATOR_HOST".to_owned(), server.endpoint())]
            }
            Self::Azure(server) => vec![(
                "AZURE_STORAGE_CONNECTION_STRING".to_owned(),
                server.connection_string(),
            )],
        }
    }

    /// Where the server listens, for tests that put something before it.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::S3(server) => server.address(),
            Self::Gcs(server) => address_in(&server.endpoint()),
            Self::Azure(server) => address_in(server.endpoint()),
            Self::Directory(_) => panic!("a directory is not on the network"),
        }
    }

    /// A client that takes the server for one at another endpoint, `http://HOST:PORT`.
    pub fn through(&self, endpoint: &str, walhalla: &Walhalla) -> Walhalla {
        match self {
            Self::S3(_) => walhalla.with_env("AWS_ENDPOINT_URL_S3", endpoint),
            Self::Gcs(_) => walhalla.with_env("STORAGE_EMULATOR_HOST", endpoint),
            Self::Azure(server) => {
                let own = format!("http://{}", address_in(server.endpoint()));
                let other = server.connection_string().replace(&own, endpoint);
                walhalla.with_env("AZURE_STORAGE_CONNECTION_STRING", &other)
            }
            Self::Directory(_) => panic!("a directory is not on the network"),
        }
    }

    /// The directory, or the one in which the server keeps the objects, for tests that look into it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::S3(server) => &server.objects,
            _ => panic!("the emulators keep their objects in files of their own kind"),
        }
    }

    /// The one object of this WAL file.
    #[track_caller]
    pub fn object_of(&self, wal_file: &str) -> PathBuf {
        let mut objects = self.objects_named(wal_file);
        // `NAME` is the beginning of `NAME.partial` and of `NAME.00000028.backup` too.
        let is_suffix = |rest: &str| {
            rest.split('.')
                .all(|word| matches!(word, "" | "lz4" | "zst" | "age"))
        };
        objects.retain(|path| {
            is_suffix(&path.file_name().unwrap().to_string_lossy()[wal_file.len()..])
        });
        assert_eq!(objects.len(), 1, "one object of {wal_file}: {objects:?}");
        objects.remove(0)
    }

    /// The objects below the store whose names start so, as paths; but for summaries, which are derived, and claims, whose
    /// names say all and whose content nobody reads.
    pub fn objects_named(&self, prefix: &str) -> Vec<PathBuf> {
        let mut objects = self.everything_named(prefix);
        objects.retain(|path| !is_summary(path) && !path.parent().unwrap().ends_with("claims"));
        objects
    }

    /// The summaries of segments whose names start so, as paths.
    pub fn summaries_named(&self, prefix: &str) -> Vec<PathBuf> {
        let mut summaries = self.everything_named(prefix);
        summaries.retain(|path| is_summary(path));
        summaries
    }

    fn everything_named(&self, prefix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.path().to_path_buf()];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                } else if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

/// The address in `http://HOST:PORT/…`.
fn address_in(endpoint: &str) -> SocketAddr {
    let rest = endpoint.strip_prefix("http://").unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

const BUCKET: &str = "walhalla-test";
const PREFIX: &str = "some/prefix";
const ACCESS_KEY: &str = "walhalla-test-key";
const SECRET_KEY: &str = "walhalla-test-secret";

/// The variables for a client of an S3 server at this endpoint.
pub fn s3_env(endpoint: &str) -> Vec<(String, String)> {
    let pairs = [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL_S3", endpoint),
        ("WALHALLA_S3_FORCE_PATH_STYLE", "true"),
    ];
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
}

/// The providers' example server as a process.
pub struct S3Server {
    process: Child,
    endpoint: String,
    objects: PathBuf,
}

impl S3Server {
    fn start(area: &Area, denied: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_walhalla"))
            .with_file_name("examples")
            .join("s3_server");
        assert!(
            program.exists(),
            "{} is missing; `make test` builds it, and `cargo build -p walhalla-providers --examples`",
            program.display()
        );
        let dir = area.make_dir("s3");
        let mut command = Command::new(&program);
        command
            .arg(&dir)
            .args(["0", ACCESS_KEY, SECRET_KEY, "--bucket", BUCKET])
            .args(denied.iter().flat_map(|action| ["--deny", action]));
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let endpoint = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let endpoint = endpoint
            .unwrap_or_else(|| panic!("{} said {line:?}, not where it listens", program.display()));
        Self {
            process,
            endpoint,
            objects: dir.join(BUCKET).join(PREFIX),
        }
    }

    fn address(&self) -> SocketAddr {
        let address = self.endpoint.strip_prefix("http://").unwrap();
        address.parse().unwrap()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_summary(path: &Path) -> bool {
    path.iter().any(|folder| folder == "summary")
}
