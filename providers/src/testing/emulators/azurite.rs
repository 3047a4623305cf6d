//! Azurite, Microsoft's emulator of Azure Blob Storage.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use azure_core::credentials::Secret;
use azure_core::hmac::hmac_sha256;

use crate::Location;
use crate::azure::AzureStore;
use crate::transfer::StoreSettings;

const PROGRAM: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../.cache/emulators/azurite/node_modules/azurite/dist/src/blob/main.js"
);

const ACCOUNT: &str = "devstoreaccount1";
/// Published by Microsoft for every Azurite.
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const SAS_VERSION: &str = "2022-11-02";

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const LISTENS: &str = "successfully listens on ";

/// A running Azurite with an empty container; killed when dropped.
#[derive(Debug)]
pub struct Azurite {
    process: Child,
    endpoint: String,
    ca_file: Option<PathBuf>,
}

impl Azurite {
    /// The container that every Azurite begins with.
    pub const CONTAINER: &str = "container";

    /// An Azurite that keeps its data in `dir`, on a free port of 127.0.0.1; returns once it answers.
    ///
    /// # Panics
    /// When Azurite is not installed or does not start.
    pub fn start(dir: &Path) -> Self {
        Self::launch(dir, &[], None)
    }

    /// The same over https, with the certificate for 127.0.0.1 in `certificate` (which is trusted as
    /// it is) and its `key`, both PEM; it takes any Entra token that is not expired.
    ///
    /// # Panics
    /// As [`Azurite::start`].
    pub fn start_https(dir: &Path, certificate: &Path, key: &Path) -> Self {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let arguments = [
            "--cert",
            &text(certificate),
            "--key",
            &text(key),
            "--oauth",
            "basic",
        ];
        Self::launch(dir, &arguments, Some(certificate.to_owned()))
    }

    fn launch(dir: &Path, arguments: &[&str], ca_file: Option<PathBuf>) -> Self {
        assert!(
            Path::new(PROGRAM).is_file(),
            "Azurite is not installed; run tests/setup.sh, or tests/get-azurite.sh .cache/emulators/azurite"
        );
        let log = dir.join("azurite.log");
        let output = File::create(&log).unwrap();
        // It chooses the port itself and tells it, so nobody can take it in between.
        let mut process = Command::new("node")
            .arg(PROGRAM)
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0"])
            .args(["--silent", "--disableTelemetry", "--location"])
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .spawn()
            .expect("node starts");
        let address = address(&mut process, &log);
        let azurite = Self {
            process,
            endpoint: format!("{address}/{ACCOUNT}"),
            ca_file,
        };
        azurite.create_container(Self::CONTAINER);
        azurite
    }

    /// The blob service's address: the account is in the path.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What `AZURE_STORAGE_CONNECTION_STRING` is to be.
    pub fn connection_string(&self) -> String {
        let endpoint = &self.endpoint;
        format!("AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}")
    }

    /// A shared access signature for the container, with `permissions` as Azure spells them (`rcwdl`).
    ///
    /// # Panics
    /// Never: the key is a constant.
    pub fn sas(&self, container: &str, permissions: &str) -> String {
        let (begins, ends) = ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
        // "Create a service SAS" in Azure's reference; what is not restricted stays empty.
        let signed = format!(
            "{permissions}\n{begins}\n{ends}\n/blob/{ACCOUNT}/{container}\n\n\n\n{SAS_VERSION}\nc\n\n\n\n\n\n\n"
        );
        let signature = hmac_sha256(&signed, &Secret::new(KEY)).unwrap();
        let signature = signature
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D");
        format!("sp={permissions}&st={begins}&se={ends}&sv={SAS_VERSION}&sr=c&sig={signature}")
    }

    /// Makes another container.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_container(&self, name: &str) {
        let settings = StoreSettings {
            ca_file: self.ca_file.clone(),
            ..StoreSettings::default()
        };
        let string = self.connection_string();
        let store =
            AzureStore::with_variables(Location::new("az", name, ""), &settings, |variable| {
                (variable == "AZURE_STORAGE_CONNECTION_STRING").then(|| string.clone())
            })
            .unwrap();
        // On a thread of its own, as a runtime cannot wait inside another one.
        thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(store.create_container()).unwrap();
            });
        });
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Waits until the process tells where it listens.
fn address(process: &mut Child, log: &Path) -> String {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let told = text
            .split_once(LISTENS)
            .and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((address, _)) = told {
            return address.trim().to_owned();
        }
        let ended = process.try_wait().unwrap();
        if ended.is_some() || started.elapsed() > STARTS_WITHIN {
            let _killed = process.kill();
            panic!("Azurite did not start ({ended:?}): {text}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
