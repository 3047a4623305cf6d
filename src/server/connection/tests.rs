use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Variables, a home directory, and a user that is called `op`.
struct Here {
    variables: BTreeMap<&'static str, OsString>,
    home: tempfile::TempDir,
}

impl Here {
    fn with(variables: &[(&'static str, &str)]) -> Self {
        let variables = variables
            .iter()
            .map(|(name, value)| (*name, (*value).into()));
        Self {
            variables: variables.collect(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn file(self, name: &str, mode: u32, text: &str) -> Self {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn resolve(&self, listens: Option<&Listens>) -> Result<Connection, Error> {
        let surroundings = Surroundings {
            variable: &|name| self.variables.get(name).cloned(),
            home: Some(self.home.path().to_owned()),
            user: &|| Ok("op".to_owned()),
        };
        connection(&surroundings, listens)
    }

    fn urls(&self, listens: Option<&Listens>) -> Vec<String> {
        let connection = self.resolve(listens).unwrap();
        let attempts = connection.attempts.iter();
        attempts
            .map(|attempt| attempt.options.to_url_lossy().to_string())
            .collect()
    }

    fn places(&self, listens: Option<&Listens>) -> Vec<String> {
        let connection = self.resolve(listens).unwrap();
        let first = connection
            .attempts
            .into_iter()
            .filter(|attempt| !attempt.is_second_try);
        first.map(|attempt| attempt.place).collect()
    }

    fn refusal(&self) -> String {
        let error = self.resolve(None).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }
}

fn listens(socket_directory: Option<&str>) -> Listens {
    Listens {
        socket_directory: socket_directory.map(PathBuf::from),
        address: Some("127.0.0.7".to_owned()),
        port: 5433,
    }
}

#[test]
fn without_anything_the_user_is_the_operating_systems_and_the_places_are_the_usual_ones() {
    let here = Here::with(&[]);
    assert_eq!(
        here.places(None),
        [
            "socket /var/run/postgresql/.s.PGSQL.5432",
            "socket /tmp/.s.PGSQL.5432"
        ]
    );
    assert!(
        here.urls(None)[0].starts_with("postgres://op@"),
        "{:?}",
        here.urls(None)
    );
}

#[test]
fn an_empty_variable_is_as_none() {
    let here = Here::with(&[("PGUSER", ""), ("PGHOST", ""), ("PGPORT", "")]);
    assert_eq!(
        here.places(Some(&listens(Some("/s")))),
        ["socket /s/.s.PGSQL.5433"]
    );
    assert!(here.urls(None)[0].starts_with("postgres://op@"));
}

#[test]
fn the_server_of_the_directory_is_found_by_its_socket_or_its_address() {
    let here = Here::with(&[]);
    assert_eq!(
        here.places(Some(&listens(Some("/s")))),
        ["socket /s/.s.PGSQL.5433"]
    );
    assert_eq!(
        here.places(Some(&listens(Some("@pg")))),
        ["socket @pg/.s.PGSQL.5433"]
    );
    assert_eq!(here.places(Some(&listens(None))), ["127.0.0.7 port 5433"]);
}

#[test]
fn an_abstract_socket_begins_with_a_zero_byte() {
    assert_eq!(driver_path(Path::new("@pg")), PathBuf::from("\0pg"));
    assert_eq!(driver_path(Path::new("/pg")), PathBuf::from("/pg"));
}

#[test]
fn hosts_and_ports_are_lists() {
    let here = Here::with(&[("PGHOST", "a,/s,"), ("PGPORT", "1,2,3")]);
    assert_eq!(
        here.places(Some(&listens(Some("/own")))),
        ["a port 1", "socket /s/.s.PGSQL.2", "socket /own/.s.PGSQL.3"]
    );
    let one_port = Here::with(&[("PGHOST", "a,b"), ("PGPORT", "7")]);
    assert_eq!(one_port.places(None), ["a port 7", "b port 7"]);
    let addresses = Here::with(&[("PGHOST", "a,b"), ("PGHOSTADDR", "10.0.0.1,10.0.0.2")]);
    assert_eq!(
        addresses.places(None),
        ["10.0.0.1 port 5432", "10.0.0.2 port 5432"]
    );
}

#[test]
fn lists_of_other_lengths_are_refused() {
    let here = Here::with(&[("PGHOST", "a,b,c"), ("PGPORT", "1,2")]);
    assert!(here.refusal().contains("PGPORT"), "{}", here.refusal());
    let here = Here::with(&[("PGHOST", "a"), ("PGHOSTADDR", "10.0.0.1,10.0.0.2")]);
    assert!(here.refusal().contains("PGHOST"), "{}", here.refusal());
}

#[test]
fn values_that_are_none_are_refused_by_name() {
    for (name, value) in [
        ("PGSSLMODE", "verify-ful"),
        ("PGPORT", "0"),
        ("PGPORT", "65536"),
        ("PGCONNECT_TIMEOUT", "soon"),
        ("PGTARGETSESSIONATTRS", "leader"),
        ("PGLOADBALANCEHOSTS", "yes"),
    ] {
        let here = Here::with(&[("PGHOST", "h"), (name, value)]);
        let refusal = here.refusal();
        assert!(
            refusal.contains(name) && refusal.contains(value),
            "{name}: {refusal}"
        );
    }
}

#[test]
fn demands_that_the_driver_cannot_meet_are_refused() {
    for (name, value) in [
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGCHANNELBINDING", "require"),
        ("PGGSSENCMODE", "require"),
        ("PGSSLCRL", "/crl"),
        ("PGREQUIREPEER", "postgres"),
        ("PGSSLNEGOTIATION", "direct"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
    ] {
        let here = Here::with(&[("PGHOST", "h"), (name, value)]);
        assert!(here.refusal().contains(name), "{name}: {}", here.refusal());
    }
    Here::with(&[("PGCHANNELBINDING", "prefer")])
        .resolve(None)
        .unwrap();
}

#[test]
fn a_service_comes_before_the_variables() {
    let file = "# ours\n[other]\nhost=x\n\n[mine]\nhost=db\nport=6000\nuser=saver\nhost=second\n[mine]\nport=1\n";
    let here = Here::with(&[
        ("PGSERVICE", "mine"),
        ("PGHOST", "elsewhere"),
        ("PGDATABASE", "d"),
    ])
    .file(".pg_service.conf", 0o644, file);
    assert_eq!(here.places(None), ["db port 6000"]);
    assert!(
        here.urls(None)[0].starts_with("postgres://saver@db:6000/d"),
        "{:?}",
        here.urls(None)
    );
}

#[test]
fn a_service_that_is_not_defined_is_refused() {
    let here = Here::with(&[("PGSERVICE", "mine"), ("PGSYSCONFDIR", "/nowhere")]);
    assert!(here.refusal().contains("\"mine\""), "{}", here.refusal());
    let here = here.file(".pg_service.conf", 0o644, "[mine]\nhost\n");
    assert!(here.refusal().contains("line 2"), "{}", here.refusal());
}

#[test]
fn the_password_is_that_of_the_first_line_that_fits() {
    let file = "#h:5432:postgres:op:comment\nh:5433:*:*:port\nh:*:postgres:op:s\\:e\\\\c:rest\n*:*:*:*:last\n";
    let here = Here::with(&[("PGHOST", "h")]).file(".pgpass", 0o600, file);
    assert!(
        here.urls(None)[0].contains(":s%3Ae%5Cc@"),
        "{:?}",
        here.urls(None)
    );
    let here =
        Here::with(&[("PGHOST", "other"), ("PGPASSWORD", "own")]).file(".pgpass", 0o600, file);
    assert!(
        here.urls(None)[0].contains(":own@"),
        "{:?}",
        here.urls(None)
    );
}

#[test]
fn a_password_file_that_others_may_read_is_not_used() {
    let here = Here::with(&[("PGHOST", "h")]).file(".pgpass", 0o640, "*:*:*:*:secret\n");
    assert!(!here.urls(None)[0].contains("secret"));
}

#[test]
fn a_socket_of_the_server_itself_is_called_localhost_in_the_password_file() {
    let here = Here::with(&[]).file(".pgpass", 0o600, "localhost:5433:postgres:op:secret\n");
    assert!(here.urls(Some(&listens(Some("/s"))))[0].contains("secret"));
    let named = Here::with(&[("PGHOST", "/s"), ("PGPORT", "5433")]).file(
        ".pgpass",
        0o600,
        "localhost:5433:postgres:op:secret\n",
    );
    assert!(!named.urls(None)[0].contains("secret"));
}

/// The kinds of encryption that are tried with a host by TCP, in order.
fn modes(here: &Here) -> Vec<String> {
    let mode = |url: &String| {
        url.split("sslmode=")
            .nth(1)
            .map(|rest| rest.split('&').next().unwrap().to_owned())
    };
    here.urls(None).iter().filter_map(mode).collect()
}

#[test]
fn kinds_of_encryption_are_tried_in_libpqs_order() {
    let of = |mode: &str| modes(&Here::with(&[("PGHOST", "h"), ("PGSSLMODE", mode)]));
    assert_eq!(
        modes(&Here::with(&[("PGHOST", "h")])),
        ["require", "disable"]
    );
    assert_eq!(of("allow"), ["disable", "require"]);
    assert_eq!(of("require"), ["require"]);
    assert_eq!(of("disable"), ["disable"]);
    assert_eq!(
        modes(&Here::with(&[("PGHOST", "/s"), ("PGSSLMODE", "require")])),
        ["disable"]
    );
}

#[test]
fn a_known_authority_is_asked_for_whatever_the_mode() {
    let of = |mode: &str| {
        let here = Here::with(&[("PGHOST", "h"), ("PGSSLMODE", mode)]);
        modes(&here.file(".postgresql/root.crt", 0o644, "x"))
    };
    assert_eq!(of("require"), ["verify-ca"]);
    assert_eq!(of("prefer"), ["verify-ca", "disable"]);
    assert_eq!(of("verify-full"), ["verify-full"]);
}

#[test]
fn verifying_without_an_authority_is_refused() {
    let here = Here::with(&[("PGHOST", "h"), ("PGSSLMODE", "verify-full")]);
    assert!(here.refusal().contains("root.crt"), "{}", here.refusal());
    let system = Here::with(&[("PGHOST", "h"), ("PGSSLROOTCERT", "system")]);
    assert_eq!(modes(&system), ["verify-full"]);
    let weaker = Here::with(&[
        ("PGHOST", "h"),
        ("PGSSLROOTCERT", "system"),
        ("PGSSLMODE", "require"),
    ]);
    assert!(
        weaker.refusal().contains("PGSSLMODE"),
        "{}",
        weaker.refusal()
    );
}

#[test]
fn a_name_that_the_driver_would_not_compare_is_refused() {
    let here = Here::with(&[
        ("PGHOST", "h"),
        ("PGHOSTADDR", "10.0.0.1"),
        ("PGSSLROOTCERT", "system"),
    ]);
    assert!(here.refusal().contains("PGHOSTADDR"), "{}", here.refusal());
}

#[test]
fn timeouts_are_as_libpqs() {
    let of = |text: &str| {
        Here::with(&[("PGCONNECT_TIMEOUT", text)])
            .resolve(None)
            .unwrap()
            .timeout
    };
    assert_eq!(of("7"), Some(Duration::from_secs(7)));
    assert_eq!(of("0"), None);
    assert_eq!(of("-1"), None);
}

#[test]
fn options_of_a_service_are_words() {
    let found = pairs("-c a=1 --b=two -cc=with\\ blank").unwrap();
    let shown: Vec<String> = found
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(shown, ["a=1", "b=two", "c=with blank"]);
    pairs("-x").unwrap_err();
}

#[test]
fn a_variable_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let mut here = Here::with(&[]);
    here.variables
        .insert("PGHOST", OsString::from_vec(vec![b'/', 0xff]));
    assert!(here.refusal().contains("PGHOST"), "{}", here.refusal());
}

#[test]
fn a_user_without_a_name_is_told_by_number() {
    let surroundings = Surroundings {
        variable: &|_| None,
        home: None,
        user: &|| Err(4711),
    };
    let error = connection(&surroundings, None).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("4711"), "{source}");
}
