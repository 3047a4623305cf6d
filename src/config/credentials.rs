//! Where the credentials of a store would come from: the chain of each kind of store, and what of it this environment has.
//!
//! Nothing is asked over the network, and no value of a variable and no line of a file leaves this module: only names, and
//! whether they are set. The order is that of the clients in `walhalla_providers`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Keys of a profile that give credentials, or say how to get some (aws-config, `profile/credentials/repr.rs`).
const PROFILE_KEYS: [&str; 8] = [
    "aws_access_key_id",
    "credential_process",
    "credential_source",
    "login_session",
    "role_arn",
    "sso_account_id",
    "sso_session",
    "web_identity_token_file",
];

/// The kinds of stores.
const SCHEMES: [&str; 4] = ["file", "s3", "gs", "az"];

/// The chain of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// `s3`, `gs`, `az` or `file`; none where no store is set, or one of no known kind.
    pub scheme: Option<&'static str>,
    /// What is tried, in order. None for a directory.
    pub sources: Vec<Source>,
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What it is called.
    pub name: &'static str,
    /// Whether credentials would come from here.
    pub state: State,
    /// What was looked at.
    pub parts: Vec<Part>,
}

/// Whether credentials would come from a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is the first that is set.
    Used,
    /// It is set, and one before it is used.
    Set,
    /// It is not set.
    NotSet,
    /// Only a request over the network would tell, or another program.
    NotAsked,
}

/// A variable or file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A variable's name, or which file.
    pub what: String,
    /// Whether it is set or there.
    pub is_set: bool,
}

impl Credentials {
    /// The chain for the store `url`, as this process would go along it.
    pub fn of(url: Option<&str>, profile: Option<&str>) -> Self {
        Self::with_variables(url, profile, &|name| std::env::var_os(name))
    }

    fn with_variables(
        url: Option<&str>,
        profile: Option<&str>,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Self {
        let host = Host { variable };
        let scheme = url.and_then(|url| url.split_once(':'));
        // In what is no URL, a secret may stand before the colon.
        let scheme = scheme.and_then(|(scheme, _)| SCHEMES.into_iter().find(|it| *it == scheme));
        let sources = match scheme {
            // With the setting `s3_profile`, nothing else is looked at.
            Some("s3") if let Some(profile) = profile => vec![host.aws_profile(profile)],
            Some("s3") => host.s3(),
            Some("gs") => host.gcs(),
            Some("az") => host.azure(),
            _ => Vec::new(),
        };
        Self {
            scheme,
            sources: with_the_used_one(sources),
        }
    }

    /// The source that would be used: the first that is set, else the first that only a request would tell of.
    pub fn chosen(&self) -> Option<&Source> {
        let first = |state| {
            self.sources
                .iter()
                .find(move |source| source.state == state)
        };
        first(State::Used).or_else(|| first(State::NotAsked))
    }
}

impl State {
    /// The state in words.
    pub fn described(self) -> &'static str {
        match self {
            Self::Used => "set, used",
            Self::Set => "set",
            Self::NotSet => "not set",
            Self::NotAsked => "not asked",
        }
    }
}

fn with_the_used_one(mut sources: Vec<Source>) -> Vec<Source> {
    let first = sources.iter_mut().find(|source| source.state == State::Set);
    if let Some(first) = first {
        first.state = State::Used;
    }
    sources
}

/// What the chains look at.
struct Host<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Host<'_> {
    /// The AWS SDK's default chain (aws-config, `default_provider/credentials.rs`).
    fn s3(&self) -> Vec<Source> {
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let web = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"];
        let container = [
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        vec![
            self.of_variables("environment variables", &keys, all),
            self.aws_profile(&self.text("AWS_PROFILE").unwrap_or("default".to_owned())),
            self.of_variables("web identity", &web, all),
            self.of_variables("container role", &container, any),
            self.instance_role(),
        ]
    }

    fn aws_profile(&self, name: &str) -> Source {
        let files = [
            self.aws_file("AWS_CONFIG_FILE", ".aws/config"),
            self.aws_file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        ];
        let parts = files.into_iter().flatten().map(|file| Part {
            is_set: has_profile(&file, name),
            what: format!("keys of the profile {name} in {}", file.display()),
        });
        source("profile", parts.collect(), any)
    }

    /// The file that the variable names, in which `~` is the home, or the usual one in the home.
    fn aws_file(&self, variable: &str, usual: &str) -> Option<PathBuf> {
        let home = self.path("HOME");
        match (self.path(variable), home) {
            (Some(named), Some(home)) => Some(match named.strip_prefix("~") {
                Ok(below) => home.join(below),
                Err(_) => named,
            }),
            (Some(named), None) => Some(named),
            (None, home) => Some(home?.join(usual)),
        }
    }

    fn instance_role(&self) -> Source {
        let name = "AWS_EC2_METADATA_DISABLED";
        let is_off = self
            .text(name)
            .is_some_and(|text| text.eq_ignore_ascii_case("true"));
        Source {
            name: "instance role",
            state: if is_off {
                State::NotSet
            } else {
                State::NotAsked
            },
            parts: vec![Part {
                what: name.to_owned(),
                is_set: is_off,
            }],
        }
    }

    /// Google's application default credentials (google-cloud-auth, `credentials.rs`).
    fn gcs(&self) -> Vec<Source> {
        let emulator = "emulator, without credentials";
        let metadata = vec![self.variable("GCE_METADATA_HOST")];
        vec![
            self.of_variables(emulator, &["STORAGE_EMULATOR_HOST"], all),
            self.google_file(),
            self.gcloud_file(),
            asked_later("metadata server", metadata),
        ]
    }

    /// Google's library takes the variable also where it is empty or its file missing, and fails.
    fn google_file(&self) -> Source {
        let name = "GOOGLE_APPLICATION_CREDENTIALS";
        let path = (self.variable)(name).map(PathBuf::from);
        let parts = [
            Part {
                what: name.to_owned(),
                is_set: path.is_some(),
            },
            Part {
                what: "the file that it names".to_owned(),
                is_set: path.is_some_and(|path| path.is_file()),
            },
        ];
        source("file of a variable", parts.into(), first)
    }

    fn gcloud_file(&self) -> Source {
        let usual = ".config/gcloud/application_default_credentials.json";
        let part = match self.path("HOME").map(|home| home.join(usual)) {
            Some(path) => Part {
                what: path.display().to_string(),
                is_set: path.is_file(),
            },
            None => self.variable("HOME"),
        };
        source("file of gcloud", vec![part], all)
    }

    /// As `walhalla_providers` reads them (`azure/account.rs`).
    fn azure(&self) -> Vec<Source> {
        let workload = [
            "AZURE_FEDERATED_TOKEN_FILE",
            "AZURE_CLIENT_ID",
            "AZURE_TENANT_ID",
        ];
        let service = ["AZURE_CLIENT_SECRET", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"];
        let managed = ["IDENTITY_ENDPOINT", "AZURE_CLIENT_ID"].map(|name| self.variable(name));
        let connection = ["AZURE_STORAGE_CONNECTION_STRING"];
        vec![
            self.of_variables("connection string", &connection, all),
            self.of_variables("account key", &["AZURE_STORAGE_KEY"], all),
            self.of_variables("shared access signature", &["AZURE_STORAGE_SAS_TOKEN"], all),
            self.of_variables("Entra workload identity", &workload, first),
            self.of_variables("Entra service principal", &service, first),
            asked_later("Entra managed identity", managed.into()),
            asked_later("login of the Azure CLI", Vec::new()),
        ]
    }

    fn of_variables(
        &self,
        name: &'static str,
        variables: &[&str],
        is_set: fn(&[Part]) -> bool,
    ) -> Source {
        let parts = variables.iter().map(|name| self.variable(name)).collect();
        source(name, parts, is_set)
    }

    fn variable(&self, name: &str) -> Part {
        Part {
            what: name.to_owned(),
            is_set: self.path(name).is_some(),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.path(name)?.into_os_string().into_string().ok()
    }

    /// The value of a variable that is set and not empty.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let value = (self.variable)(name)?;
        Some(value.into()).filter(|value: &PathBuf| !value.as_os_str().is_empty())
    }
}

fn source(name: &'static str, parts: Vec<Part>, is_set: fn(&[Part]) -> bool) -> Source {
    let state = if is_set(&parts) {
        State::Set
    } else {
        State::NotSet
    };
    Source { name, state, parts }
}

fn asked_later(name: &'static str, parts: Vec<Part>) -> Source {
    Source {
        name,
        state: State::NotAsked,
        parts,
    }
}

fn all(parts: &[Part]) -> bool {
    parts.iter().all(|part| part.is_set)
}

fn any(parts: &[Part]) -> bool {
    parts.iter().any(|part| part.is_set)
}

/// Where the first one decides, and the others are wanted beside it.
fn first(parts: &[Part]) -> bool {
    parts.first().is_some_and(|part| part.is_set)
}

/// Whether an AWS file has the profile, with a key that gives credentials.
fn has_profile(file: &Path, name: &str) -> bool {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut is_in_profile = false;
    for line in text.lines().map(str::trim) {
        if let Some(header) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            let header = header.trim();
            let section = header.strip_prefix("profile ").unwrap_or(header);
            is_in_profile = section.trim().trim_matches(['"', '\'']) == name;
        } else if is_in_profile {
            let key = line.split('=').next().unwrap_or_default().trim();
            if PROFILE_KEYS.contains(&key.to_ascii_lowercase().as_str()) {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(url: &str, variables: &[(&str, &str)]) -> Credentials {
        Credentials::with_variables(Some(url), None, &|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })
    }

    fn chosen(url: &str, variables: &[(&str, &str)]) -> Option<(&'static str, State)> {
        let credentials = credentials(url, variables);
        let chosen = credentials.chosen()?;
        Some((chosen.name, chosen.state))
    }

    #[test]
    fn the_first_source_that_is_set_is_used() {
        let keys = [
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        let web = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
            ("AWS_ROLE_ARN", "arn"),
        ];
        let s3 = "s3://bucket/prefix";
        let used = |name| Some((name, State::Used));
        assert_eq!(chosen(s3, &keys), used("environment variables"));
        assert_eq!(chosen(s3, &web), used("web identity"));
        assert_eq!(
            chosen(s3, &[keys, web].concat()),
            used("environment variables")
        );
        // One half of a pair is none.
        assert_eq!(
            chosen(s3, &[keys[0]]),
            Some(("instance role", State::NotAsked))
        );
        assert_eq!(chosen(s3, &[("AWS_EC2_METADATA_DISABLED", "true")]), None);
        assert_eq!(chosen("file:///srv", &keys), None);

        let az = "az://container";
        let key = ("AZURE_STORAGE_KEY", "c2VjcmV0");
        let sas = ("AZURE_STORAGE_SAS_TOKEN", "sig=x");
        assert_eq!(chosen(az, &[key, sas]), used("account key"));
        assert_eq!(chosen(az, &[sas]), used("shared access signature"));
        assert_eq!(
            chosen(az, &[("AZURE_STORAGE_KEY", "")]),
            Some(("Entra managed identity", State::NotAsked))
        );
        assert_eq!(
            chosen(
                "gs://bucket",
                &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")]
            ),
            used("file of a variable")
        );
    }

    #[test]
    fn files_of_profiles_and_of_gcloud_are_found() {
        let home = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            ".aws/config",
            "[default]\nregion = eu-north-1\n[profile backup]\nrole_arn = arn\n",
        );
        write(".config/gcloud/application_default_credentials.json", "{}");
        let home = home.path().to_str().unwrap();
        let of_home = [("HOME", home)];
        let s3 = "s3://bucket";
        // A region alone gives no credentials.
        assert_eq!(
            chosen(s3, &of_home),
            Some(("instance role", State::NotAsked))
        );
        assert_eq!(
            chosen(s3, &[("HOME", home), ("AWS_PROFILE", "backup")]),
            Some(("profile", State::Used))
        );
        let of_setting = |profile| {
            let variable = |name: &str| (name == "HOME").then(|| home.into());
            let credentials = Credentials::with_variables(Some(s3), Some(profile), &variable);
            credentials.chosen().map(|source| source.state)
        };
        assert_eq!(of_setting("backup"), Some(State::Used));
        assert_eq!(of_setting("default"), None);
        assert_eq!(
            chosen("gs://bucket", &of_home),
            Some(("file of gcloud", State::Used))
        );
    }

    #[test]
    fn what_is_no_url_is_not_shown() {
        let credentials = credentials("verysecret:key@host", &[]);
        assert_eq!((credentials.scheme, credentials.sources.len()), (None, 0));
    }

    #[test]
    fn no_value_of_a_variable_is_in_what_is_told() {
        let names = [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "STORAGE_EMULATOR_HOST",
            "AZURE_STORAGE_CONNECTION_STRING",
            "AZURE_STORAGE_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_CLIENT_SECRET",
        ];
        let variables = names.map(|name| (name, "verysecret"));
        for url in ["s3://b", "gs://b", "az://c"] {
            let told = format!("{:?}", credentials(url, &variables));
            assert!(!told.contains("verysecret"), "{told}");
        }
    }
}
