//! How a server is found and entered: libpq's rules for connections, which users know from `psql`.
//!
//! ```text
//! service file ─┐
//! PG* variables ┼▶ Parameters ─▶ one Attempt for each host and kind of encryption ─▶ connect, in order
//! postmaster.pid┘
//! ```
//!
//! Source: PostgreSQL's manual, "libpq: Connection Control Functions", and fe-connect.c (`conninfo_add_defaults`,
//! `connectOptions2`, `passwordFromFile`). What the driver cannot honour and would weaken the connection is refused.

mod password;
mod service;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::Error;

/// How long one attempt may take where `connect_timeout` is not set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Where sockets are on Debian and its relatives, and where PostgreSQL puts them by default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT: u16 = 5432;

/// What is wrong with the settings of a connection.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A value that is none of those allowed.
    #[error("{value:?} is none of its values")]
    Value {
        /// The value.
        value: String,
    },
    /// Bytes that are no text.
    #[error("it is not UTF-8")]
    NotText,
    /// As many as there are hosts are needed, or one.
    #[error("it names {given}, and there are {hosts} hosts")]
    Count {
        /// How many there are.
        given: usize,
        /// How many hosts there are.
        hosts: usize,
    },
    /// A demand that the driver cannot meet.
    #[error("Walhalla cannot do what {value:?} demands")]
    Unsupported {
        /// The value.
        value: String,
    },
    /// A service that no file defines.
    #[error("no service file defines {name:?}")]
    NoService {
        /// The service.
        name: String,
    },
    /// A line of a service file that does not read as one.
    #[error("line {line} of {} does not read as a service file", path.display())]
    ServiceLine {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A file that cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The user that runs this has no name.
    #[error("it is not set, and user {0} of the operating system has no name")]
    NoUser(u32),
}

/// A parameter of libpq: its keyword, its variable and, for what the driver does not know, the values that demand nothing.
struct Known {
    keyword: &'static str,
    variable: &'static str,
    harmless: Option<&'static [&'static str]>,
}

const fn known(keyword: &'static str, variable: &'static str) -> Known {
    Known {
        keyword,
        variable,
        harmless: None,
    }
}

const fn unsupported(
    keyword: &'static str,
    variable: &'static str,
    harmless: &'static [&'static str],
) -> Known {
    Known {
        keyword,
        variable,
        harmless: Some(harmless),
    }
}

/// fe-connect.c, `PQconninfoOptions`. Those that only tune a connection are not here: they are passed over.
const KNOWN: &[Known] = &[
    known("host", "PGHOST"),
    known("hostaddr", "PGHOSTADDR"),
    known("port", "PGPORT"),
    known("dbname", "PGDATABASE"),
    known("user", "PGUSER"),
    known("password", "PGPASSWORD"),
    known("passfile", "PGPASSFILE"),
    known("sslmode", "PGSSLMODE"),
    known("sslrootcert", "PGSSLROOTCERT"),
    known("sslcert", "PGSSLCERT"),
    known("sslkey", "PGSSLKEY"),
    known("options", "PGOPTIONS"),
    known("application_name", "PGAPPNAME"),
    known("connect_timeout", "PGCONNECT_TIMEOUT"),
    known("target_session_attrs", "PGTARGETSESSIONATTRS"),
    known("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    unsupported("require_auth", "PGREQUIREAUTH", &[]),
    unsupported("requirepeer", "PGREQUIREPEER", &[]),
    unsupported("sslcrl", "PGSSLCRL", &[]),
    unsupported("sslcrldir", "PGSSLCRLDIR", &[]),
    unsupported("sslpassword", "", &[]),
    unsupported(
        "channel_binding",
        "PGCHANNELBINDING",
        &["prefer", "disable"],
    ),
    unsupported("gssencmode", "PGGSSENCMODE", &["prefer", "disable"]),
    unsupported("sslnegotiation", "PGSSLNEGOTIATION", &["postgres"]),
    unsupported("sslcertmode", "PGSSLCERTMODE", &["allow"]),
    unsupported(
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
    ),
    unsupported(
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        &["TLSv1.3"],
    ),
];

/// What is read of the process's surroundings.
pub struct Surroundings<'a> {
    /// A variable's value.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The operating system's name for the effective user.
    pub user: &'a dyn Fn() -> Result<String, u32>,
}

/// Where the server of a data directory listens (`postmaster.pid`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listens {
    /// Its first socket directory, absolute, or `@` and a name; `None` where it has none.
    pub socket_directory: Option<PathBuf>,
    /// Its first address for TCP.
    pub address: Option<String>,
    /// Its port.
    pub port: u16,
}

/// Which servers are accepted (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Each.
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// A standby, or any server if none is.
    PreferStandby,
}

/// A way to connect.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What the driver is told.
    pub options: PgConnectOptions,
    /// The same for who speaks to the server without the driver.
    pub login: Login,
    /// Where it leads, for messages.
    pub place: String,
    /// Tried only where the attempt before it, with encryption or without, failed.
    pub is_second_try: bool,
}

/// Who connects, to where, and what is demanded of the connection.
#[derive(Clone)]
pub struct Login {
    /// Where the server listens.
    pub endpoint: Endpoint,
    /// The user.
    pub user: String,
    /// The password, if one is known.
    pub password: Option<String>,
    /// The one for replication, which password files may give apart, as that of the database `replication`.
    pub replication_password: Option<String>,
    /// The database.
    pub database: String,
    /// What the connection calls itself.
    pub application_name: String,
    /// Settings of the session, as `options` gives them.
    pub options: Option<String>,
    /// How it is encrypted.
    pub encryption: PgSslMode,
    /// The authority that has to have signed the server's certificate; without one, those that the world knows.
    pub root_certificate: Option<PathBuf>,
    /// The client's own certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket, or with a zero byte at its begin an abstract one.
    Socket(PathBuf),
    /// A host's name or address, and the port.
    Tcp(String, u16),
}

impl Attempt {
    /// Where it leads and as whom, for messages.
    pub fn whom(&self) -> String {
        let (user, database) = (&self.login.user, &self.login.database);
        format!("{} as role {user:?}, database {database:?}", self.place)
    }
}

impl std::fmt::Debug for Login {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("endpoint", &self.endpoint)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// All that is needed to connect.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Ways, in the order in which they are tried.
    pub attempts: Vec<Attempt>,
    /// Which servers are accepted.
    pub wanted: Wanted,
    /// For each attempt; `None`: as long as it takes.
    pub timeout: Option<Duration>,
}

impl Connection {
    /// Each way, with the servers that are accepted at its end, in the order in which they are tried.
    pub fn tries(&self) -> impl Iterator<Item = (&Attempt, Wanted)> {
        let passes = match self.wanted {
            Wanted::PreferStandby => [Some(Wanted::Standby), Some(Wanted::Any)],
            wanted => [Some(wanted), None],
        };
        let of_pass = move |wanted| self.attempts.iter().map(move |attempt| (attempt, wanted));
        passes.into_iter().flatten().flat_map(of_pass)
    }
}

/// Why one way led nowhere.
pub trait Tried: std::error::Error {
    /// Whether the server does not encrypt, and that was demanded.
    fn is_without_tls(&self) -> bool;
}

/// Keeps a failure. A second try, without encryption or with it, tells less than the first, unless the server does not
/// encrypt at all: then nothing but the second try was a try.
pub fn note<'a, E: Tried>(failures: &mut Vec<(&'a Attempt, E)>, attempt: &'a Attempt, error: E) {
    tracing::debug!(
        "no connection to {}: {}",
        attempt.place,
        crate::output::chain(&error)
    );
    match failures.last_mut() {
        Some(last) if attempt.is_second_try => {
            if last.1.is_without_tls() {
                *last = (attempt, error);
            }
        }
        _ => failures.push((attempt, error)),
    }
}

/// Where one host is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// A directory with a socket in it, or `@` and an abstract name.
    Socket(PathBuf),
    /// A name or an address.
    Tcp(String),
}

/// A host of the list, and what the password file calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: Host,
    port: u16,
    called: Vec<String>,
}

/// The parameters that are set: the service file's before the variables.
#[derive(Debug, Default)]
struct Parameters(Vec<(&'static str, String)>);

impl Surroundings<'_> {
    fn text(&self, variable: &'static str) -> Result<Option<String>, Error> {
        if variable.is_empty() {
            return Ok(None);
        }
        let Some(value) = (self.variable)(variable).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let text = value.into_string();
        text.map(Some)
            .map_err(|_| problem(variable, Problem::NotText))
    }

    /// A file in libpq's folder of the home directory.
    fn of_home(&self, name: &str) -> Option<PathBuf> {
        Some(self.home.as_ref()?.join(".postgresql").join(name))
    }
}

impl Parameters {
    fn read(surroundings: &Surroundings) -> Result<Self, Error> {
        let mut set = Self(service::parameters(surroundings)?);
        for known in KNOWN {
            if set.get(known.keyword).is_none()
                && let Some(value) = surroundings.text(known.variable)?
            {
                set.0.push((known.keyword, value));
            }
        }
        if surroundings.text("PGREQUIRESSL")?.as_deref() == Some("1")
            && set.get("sslmode").is_none()
        {
            set.0.push(("sslmode", "require".to_owned()));
        }
        for known in KNOWN {
            let Some(harmless) = known.harmless else {
                continue;
            };
            if let Some(value) = set
                .get(known.keyword)
                .filter(|value| !harmless.contains(value))
            {
                let value = value.to_owned();
                return Err(problem(known.keyword, Problem::Unsupported { value }));
            }
        }
        Ok(set)
    }

    fn get(&self, keyword: &str) -> Option<&str> {
        let mut set = self.0.iter();
        set.find(|(known, _)| *known == keyword)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn list(&self, keyword: &str) -> Vec<&str> {
        self.get(keyword)
            .map(|value| value.split(',').map(str::trim).collect())
            .unwrap_or_default()
    }

    /// Hosts with their ports (fe-connect.c, `connectOptions2`).
    fn places(&self, listens: Option<&Listens>) -> Result<Vec<Place>, Error> {
        let (names, addresses, ports) =
            (self.list("host"), self.list("hostaddr"), self.list("port"));
        let hosts = if addresses.is_empty() {
            names.len()
        } else {
            addresses.len()
        }
        .max(1);
        let count = |keyword, given: usize, one_is_enough: bool| {
            let fits = given == 0 || given == hosts || (one_is_enough && given == 1);
            if fits {
                Ok(())
            } else {
                Err(problem(keyword, Problem::Count { given, hosts }))
            }
        };
        count("host", names.len(), false)?;
        count("port", ports.len(), true)?;
        let mut places = Vec::new();
        for index in 0..hosts {
            let port = match nth(&ports, if ports.len() == 1 { 0 } else { index }) {
                Some(text) => port_number(text)?,
                None => listens.map_or(DEFAULT_PORT, |listens| listens.port),
            };
            let (name, address) = (nth(&names, index), nth(&addresses, index));
            places.extend(place(name, address, port, listens));
        }
        Ok(places)
    }

    fn wanted(&self) -> Result<Wanted, Error> {
        Ok(match self.get("target_session_attrs") {
            None | Some("any") => Wanted::Any,
            Some("read-write") => Wanted::ReadWrite,
            Some("read-only") => Wanted::ReadOnly,
            Some("primary") => Wanted::Primary,
            Some("standby") => Wanted::Standby,
            Some("prefer-standby") => Wanted::PreferStandby,
            Some(other) => return Err(value("target_session_attrs", other)),
        })
    }

    /// `None` waits without end (fe-connect.c, `pqConnectDBComplete`).
    fn timeout(&self) -> Result<Option<Duration>, Error> {
        let Some(text) = self.get("connect_timeout") else {
            return Ok(Some(DEFAULT_TIMEOUT));
        };
        let seconds: i64 = text
            .trim()
            .parse()
            .map_err(|_| value("connect_timeout", text))?;
        Ok(u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs))
    }
}

/// What libpq's variables and files say, completed by where the server of a data directory listens.
///
/// # Errors
/// [`Error::Connection`] for what cannot be understood or honoured.
pub fn connection(
    surroundings: &Surroundings,
    listens: Option<&Listens>,
) -> Result<Connection, Error> {
    let set = Parameters::read(surroundings)?;
    let user = match set.get("user") {
        Some(user) => user.to_owned(),
        None => (surroundings.user)().map_err(|id| problem("user", Problem::NoUser(id)))?,
    };
    let mut places = set.places(listens)?;
    match set.get("load_balance_hosts") {
        None | Some("disable") => {}
        Some("random") => fastrand::shuffle(&mut places),
        Some(other) => return Err(value("load_balance_hosts", other)),
    }
    let mut attempts = Vec::new();
    for place in &places {
        let (options, login) = base(&set, surroundings, &user, place)?;
        let modes = encryption(&set, surroundings, &place.host)?;
        for (index, (mode, root)) in modes.into_iter().enumerate() {
            let mut options = options.clone().ssl_mode(mode);
            let login = Login {
                encryption: mode,
                root_certificate: root.clone(),
                ..login.clone()
            };
            // Without one nothing of the variable may be left, which may say "system".
            options = match root {
                Some(root) => options.ssl_root_cert(root),
                None => options.ssl_root_cert_from_pem(Vec::new()),
            };
            attempts.push(Attempt {
                options,
                login,
                place: place.to_string(),
                is_second_try: index > 0,
            });
        }
    }
    Ok(Connection {
        attempts,
        wanted: set.wanted()?,
        timeout: set.timeout()?,
    })
}

/// All but encryption.
fn base(
    set: &Parameters,
    surroundings: &Surroundings,
    user: &str,
    place: &Place,
) -> Result<(PgConnectOptions, Login), Error> {
    let database = set.get("dbname").unwrap_or("postgres");
    let application_name = set.get("application_name").unwrap_or("walhalla");
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(place.port)
        .username(user)
        .database(database)
        .application_name(application_name)
        .statement_cache_capacity(0)
        .disable_statement_logging();
    options = match &place.host {
        Host::Tcp(host) => options.host(host),
        Host::Socket(directory) => options.socket(driver_path(directory)),
    };
    let password = match set.get("password") {
        Some(password) => Some(password.to_owned()),
        None => password::of(set.get("passfile"), surroundings, place, database, user),
    };
    if let Some(password) = &password {
        options = options.password(password);
    }
    // The driver reads the variable by itself, and nothing else.
    if let Some(given) = set.get("options")
        && surroundings.text("PGOPTIONS")?.as_deref() != Some(given)
    {
        options = options.options(pairs(given)?);
    }
    let certificate = file_of(set.get("sslcert"), surroundings, "postgresql.crt");
    let key = file_of(set.get("sslkey"), surroundings, "postgresql.key");
    let client_certificate = certificate.zip(key);
    if let Some((certificate, key)) = &client_certificate {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    let replication_password = if set.get("password").is_some() {
        password.clone()
    } else {
        let passfile = set.get("passfile");
        let own = password::of(passfile, surroundings, place, "replication", user);
        own.or_else(|| password.clone())
    };
    let login = Login {
        endpoint: place.endpoint(),
        replication_password,
        user: user.to_owned(),
        password,
        database: database.to_owned(),
        application_name: application_name.to_owned(),
        options: set.get("options").map(str::to_owned),
        encryption: PgSslMode::Disable,
        root_certificate: None,
        client_certificate,
    };
    Ok((options, login))
}

impl Place {
    fn endpoint(&self) -> Endpoint {
        match &self.host {
            Host::Tcp(host) => Endpoint::Tcp(host.clone(), self.port),
            Host::Socket(directory) => {
                let mut socket = driver_path(directory).into_os_string();
                socket.push(format!("/.s.PGSQL.{}", self.port));
                Endpoint::Socket(socket.into())
            }
        }
    }
}

/// A file that is named, or the one in the home directory if it is there.
fn file_of(named: Option<&str>, surroundings: &Surroundings, default: &str) -> Option<PathBuf> {
    match named {
        Some(path) => Some(PathBuf::from(path)),
        None => surroundings.of_home(default).filter(|path| path.exists()),
    }
}

/// The kinds of encryption to try, in order, each with the authority that has to have signed the server's certificate
/// (fe-secure-openssl.c, `initialize_SSL`): where an authority is known the certificate is always checked.
fn encryption(
    set: &Parameters,
    surroundings: &Surroundings,
    host: &Host,
) -> Result<Vec<(PgSslMode, Option<PathBuf>)>, Error> {
    let named = set.get("sslrootcert");
    let is_system = named == Some("system");
    let mode = set
        .get("sslmode")
        .unwrap_or(if is_system { "verify-full" } else { "prefer" });
    if ![
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ]
    .contains(&mode)
    {
        return Err(value("sslmode", mode));
    }
    // A socket is never encrypted.
    if let Host::Socket(_) = host {
        return Ok(vec![(PgSslMode::Disable, None)]);
    }
    if is_system && mode != "verify-full" {
        return Err(value("sslmode", mode));
    }
    let root = if is_system {
        None
    } else {
        named
            .map(PathBuf::from)
            .or_else(|| surroundings.of_home("root.crt"))
    };
    let root = root.filter(|path| path.exists());
    let must_verify = mode.starts_with("verify-");
    if must_verify && root.is_none() && !is_system {
        let path = named
            .map(PathBuf::from)
            .or_else(|| surroundings.of_home("root.crt"));
        let source = std::io::ErrorKind::NotFound.into();
        let path = path.unwrap_or_else(|| PathBuf::from("~/.postgresql/root.crt"));
        return Err(problem("sslrootcert", Problem::File { path, source }));
    }
    // The driver compares the certificate with the address to which it connects.
    if mode == "verify-full" && set.get("host").is_some() && set.get("hostaddr").is_some() {
        return Err(problem(
            "hostaddr",
            Problem::Unsupported {
                value: "sslmode=verify-full with host and hostaddr".to_owned(),
            },
        ));
    }
    let checked = if root.is_some() {
        PgSslMode::VerifyCa
    } else {
        PgSslMode::Require
    };
    let open = (PgSslMode::Disable, None);
    Ok(match mode {
        "disable" => vec![open],
        "allow" => vec![open, (checked, root)],
        "prefer" => vec![(checked, root), open],
        "require" => vec![(checked, root)],
        "verify-ca" => vec![(PgSslMode::VerifyCa, root)],
        _ => vec![(PgSslMode::VerifyFull, root)],
    })
}

/// A host of the list; where none is named, all places where a server may listen.
fn place(
    name: Option<&str>,
    address: Option<&str>,
    port: u16,
    listens: Option<&Listens>,
) -> Vec<Place> {
    let tcp = |host: &str, called: &str| Place {
        host: Host::Tcp(host.to_owned()),
        port,
        called: vec![called.to_owned()],
    };
    let socket = |directory: PathBuf| {
        let mut called = vec![directory.to_string_lossy().into_owned()];
        if name.is_none() || SOCKET_DIRECTORIES.contains(&called.concat().as_str()) {
            called.push("localhost".to_owned());
        }
        Place {
            host: Host::Socket(directory),
            port,
            called,
        }
    };
    if let Some(address) = address {
        return vec![tcp(address, name.unwrap_or(address))];
    }
    match name {
        Some(name) if name.starts_with(['/', '@']) => return vec![socket(PathBuf::from(name))],
        Some(name) => return vec![tcp(name, name)],
        None => {}
    }
    match listens {
        Some(Listens {
            socket_directory: Some(directory),
            ..
        }) => vec![socket(directory.clone())],
        Some(Listens {
            address: Some(address),
            ..
        }) => vec![tcp(address, "localhost")],
        _ => SOCKET_DIRECTORIES
            .iter()
            .map(|directory| socket(PathBuf::from(directory)))
            .collect(),
    }
}

/// The socket directory as the driver takes it: an abstract name begins with a zero byte.
fn driver_path(directory: &Path) -> PathBuf {
    match directory.to_str().and_then(|text| text.strip_prefix('@')) {
        Some(name) => PathBuf::from(format!("\0{name}")),
        None => directory.to_owned(),
    }
}

/// `-c name=value` and `--name=value` of `options`, in which a backslash keeps the next character as it is.
fn pairs(options: &str) -> Result<Vec<(String, String)>, Error> {
    let mut words = vec![String::new()];
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => words
                .last_mut()
                .into_iter()
                .for_each(|word| word.extend(characters.next())),
            blank if blank.is_whitespace() => words.push(String::new()),
            other => words
                .last_mut()
                .into_iter()
                .for_each(|word| word.push(other)),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut pairs = Vec::new();
    while let Some(word) = words.next() {
        let pair = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (None, Some("")) => words.next().unwrap_or_default(),
            (Some(pair), _) | (None, Some(pair)) => pair.to_owned(),
            (None, None) => String::new(),
        };
        let Some((name, setting)) = pair.split_once('=') else {
            return Err(value("options", options));
        };
        pairs.push((name.to_owned(), setting.to_owned()));
    }
    Ok(pairs)
}

fn nth<'a>(list: &[&'a str], index: usize) -> Option<&'a str> {
    list.get(index).copied().filter(|value| !value.is_empty())
}

fn port_number(text: &str) -> Result<u16, Error> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| value("port", text))
}

fn problem(name: &'static str, problem: Problem) -> Error {
    let variable = KNOWN
        .iter()
        .find(|known| known.keyword == name && !known.variable.is_empty());
    Error::Connection {
        name: variable.map_or(name, |known| known.variable),
        problem,
    }
}

fn value(name: &'static str, value: &str) -> Error {
    problem(
        name,
        Problem::Value {
            value: value.to_owned(),
        },
    )
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Socket(directory) => {
                write!(f, "socket {}/.s.PGSQL.{}", directory.display(), self.port)
            }
            Host::Tcp(host) => write!(f, "{host} port {}", self.port),
        }
    }
}

#[cfg(test)]
mod tests;
