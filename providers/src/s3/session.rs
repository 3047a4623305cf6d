//! The SDK's client: how it is set up, and set up anew when its credentials have expired.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{self, ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::service_config::ServiceConfigKey;

use crate::endpoint::{CONNECT_TIMEOUT, ca_certificates, endpoint, proxy};
use crate::transfer::{StoreSettings, shown};
use crate::{Error, ErrorKind, Location, Operation, Result};

/// The region that servers other than AWS expect in signatures when none is set.
const FALLBACK_REGION: &str = "us-east-1";

/// Credentials that the server calls expired so soon after they were loaded will not get better by loading them again.
/// The first repetition of a request comes within a fraction of this.
const RENEWAL_PAUSE: Duration = Duration::from_secs(2);

/// A client, and the means to make another with fresh credentials.
pub(super) struct Sessions {
    current: RwLock<Arc<Session>>,
    /// What the client is made from; none where the caller made it.
    source: Option<(Location, StoreSettings)>,
}

/// A client in use; requests keep the one that they began with.
pub(super) struct Session {
    pub(super) client: Client,
    /// Whether requests carry checksums, and whole bodies are compared with theirs.
    pub(super) checksums: bool,
    /// Whether the signature of a request is one of its body, too.
    pub(super) signs_bodies: bool,
    /// The server's address, if it is not AWS's own.
    pub(super) endpoint: Option<String>,
    /// Endpoint, region, profile and proxy, as errors name them.
    pub(super) place: Arc<str>,
    made: Instant,
    is_renewed: bool,
}

impl Sessions {
    /// With a client set up from the environment, the profile files, a container, an instance or
    /// whatever else the AWS chain finds. No request goes out yet; credentials are fetched with the first.
    pub(super) async fn connect(location: &Location, settings: &StoreSettings) -> Result<Self> {
        let session = Session::load(location, settings).await?;
        Ok(Self {
            current: RwLock::new(Arc::new(session)),
            source: Some((location.clone(), settings.clone())),
        })
    }

    pub(super) fn of_client(client: Client, checksums: bool, signs_bodies: bool) -> Self {
        let session = Session {
            client,
            checksums,
            signs_bodies,
            endpoint: None,
            place: Arc::from("a client of the caller's"),
            made: Instant::now(),
            is_renewed: false,
        };
        Self {
            current: RwLock::new(Arc::new(session)),
            source: None,
        }
    }

    pub(super) fn current(&self) -> Arc<Session> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a new session after the server called `expired`'s credentials so; whether another try
    /// may do. The SDK keeps credentials until the time that came with them, and has no way to drop
    /// them earlier but a new client.
    pub(super) async fn renew(&self, expired: &Arc<Session>) -> bool {
        let Some((location, settings)) = &self.source else {
            return false;
        };
        if !Arc::ptr_eq(expired, &self.current()) {
            return true;
        }
        if expired.is_renewed && expired.made.elapsed() < RENEWAL_PAUSE {
            return false;
        }
        let Ok(mut session) = Session::load(location, settings).await else {
            return false;
        };
        session.is_renewed = true;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Another request may have been faster.
        if Arc::ptr_eq(expired, &current) {
            *current = Arc::new(session);
        }
        true
    }
}

impl Session {
    async fn load(location: &Location, settings: &StoreSettings) -> Result<Self> {
        let shared = load_settings(settings)
            .await
            .map_err(|error| match error.kind {
                ErrorKind::NoCredentials => Error {
                    object: location.url(),
                    ..error
                },
                _ => error,
            })?;
        let own_endpoint = match settings.s3.profile {
            Some(_) => endpoint_of_profile(&shared),
            None => own_endpoint(&shared),
        };
        if let Some(url) = &own_endpoint {
            endpoint("AWS_ENDPOINT_URL_S3", url)?;
        }
        let has_endpoint = own_endpoint.is_some();
        let checksums = settings.s3.checksums.unwrap_or_else(|| {
            shared.request_checksum_calculation() != Some(RequestChecksumCalculation::WhenRequired)
        });
        let mut config = aws_sdk_s3::config::Builder::from(&shared);
        config.set_endpoint_url(own_endpoint.clone());
        let mut config = config
            .force_path_style(settings.s3.force_path_style.unwrap_or(has_endpoint))
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .build(),
            );
        if !checksums {
            config = config
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        if shared.region().is_none() {
            if !has_endpoint {
                let error = Error::new(Operation::Open, location.url(), ErrorKind::Invalid);
                return Err(error.with_source(NoRegion));
            }
            config = config.region(Region::new(FALLBACK_REGION));
        }
        let place = place(own_endpoint.as_deref(), shared.region(), settings);
        Ok(Self {
            place: place.into(),
            client: Client::from_conf(config.build()),
            checksums,
            signs_bodies: { settings.s3.sign_bodies }
                .unwrap_or_else(|| must_sign_bodies(checksums, own_endpoint.as_deref())),
            endpoint: own_endpoint,
            made: Instant::now(),
            is_renewed: false,
        })
    }
}

/// What is asked, as whom, and through which proxy.
fn place(endpoint: Option<&str>, region: Option<&Region>, settings: &StoreSettings) -> String {
    let region = region.map_or(FALLBACK_REGION, Region::as_ref);
    let mut words = vec![match endpoint {
        Some(url) => format!("endpoint {}", shown(url)),
        None => "endpoint of AWS".to_owned(),
    }];
    words.push(format!("region {region}"));
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let profile = settings
        .s3
        .profile
        .clone()
        .or_else(|| variable("AWS_PROFILE"));
    words.extend(profile.map(|profile| format!("profile {profile:?}")));
    words.extend(proxy(endpoint.unwrap_or("https://")));
    words.join(", ")
}

/// Whether nothing but the signature shows that a body is the one that was sent: without TLS, and without a checksum in a header
/// that is signed.
fn must_sign_bodies(checksums: bool, own_endpoint: Option<&str>) -> bool {
    let begins = |url: &str| {
        url.get(..8)
            .is_some_and(|begin| begin.eq_ignore_ascii_case("https://"))
    };
    let has_tls = own_endpoint.is_none_or(begins);
    !(has_tls && checksums)
}

async fn load_settings(settings: &StoreSettings) -> Result<SdkConfig> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(path) = &settings.ca_file {
        let roots = TrustStore::default().with_pem_certificate(ca_certificates(path)?);
        let context = TlsContext::builder().with_trust_store(roots).build();
        let context = context.expect("no part of a context with roots alone can be wrong");
        // As the SDK's own client, which takes the proxy from the environment.
        let builder = aws_smithy_http_client::Builder::new();
        let client = builder.build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(
                components.and_then(aws_sdk_s3::config::RuntimeComponents::sleep_impl),
            );
            connector
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .tls_context(context.clone())
                .build()
        });
        loader = loader.http_client(client);
    }
    // A server that was started without HOME, as by `pg_ctlcluster`, has one all the same: its user's.
    let has_home = std::env::var_os("HOME").is_some_and(|home| !home.is_empty());
    let home = std::env::home_dir().filter(|_| !has_home);
    let files = profile_files(home.as_deref());
    loader = loader.profile_files(files.clone());
    must_have_profile(settings, &files).await?;
    if let Some(name) = &settings.s3.profile {
        let credentials = ProfileFileCredentialsProvider::builder()
            .profile_files(files.clone())
            .profile_name(name);
        let region = ProfileFileRegionProvider::builder()
            .profile_files(files)
            .profile_name(name);
        let loader = loader
            .profile_name(name)
            .credentials_provider(credentials.build());
        return Ok(loader.region(region.build()).load().await);
    }
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    if variables
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
    {
        // Beside an endpoint of its own nobody runs the instance service that the chain would ask
        // for a region, and wait for, last.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(
                ProfileFileRegionProvider::builder()
                    .profile_files(files)
                    .build(),
            )
            .or_else(FALLBACK_REGION);
        loader = loader.region(region);
    }
    Ok(loader.load().await)
}

/// Where profiles are looked for: where the SDK looks, or in `home`, which no variable names.
fn profile_files(home: Option<&Path>) -> EnvConfigFiles {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let in_home = |variable: &str, name: &str| {
        let home = home.filter(|_| !is_set(variable));
        let path = home.map(|home| home.join(".aws").join(name));
        path.filter(|path| path.exists())
    };
    let files = EnvConfigFiles::builder();
    let files = match in_home("AWS_CONFIG_FILE", "config") {
        Some(path) => files.with_file(EnvConfigFileKind::Config, path),
        None => files.include_default_config_file(true),
    };
    let files = match in_home("AWS_SHARED_CREDENTIALS_FILE", "credentials") {
        Some(path) => files.with_file(EnvConfigFileKind::Credentials, path),
        None => files.include_default_credentials_file(true),
    };
    files.build()
}

/// Refuses a profile that no file has. The SDK would pass it over, and ask the network for credentials again and again.
async fn must_have_profile(settings: &StoreSettings, files: &EnvConfigFiles) -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let name = match &settings.s3.profile {
        Some(name) => Some(name.clone()),
        // With keys in the environment it is not asked.
        None if variable("AWS_ACCESS_KEY_ID").is_some() => None,
        None => variable("AWS_PROFILE"),
    };
    let Some(name) = name.filter(|name| name != "default") else {
        return Ok(());
    };
    let (fs, env) = (Fs::real(), Env::real());
    match profile::load(&fs, &env, files, None).await {
        Ok(known) if known.get_profile(&name).is_none() => {
            let mut known: Vec<String> = known.profiles().map(str::to_owned).collect();
            known.sort();
            let error = Error::new(Operation::Open, "the S3 store", ErrorKind::NoCredentials);
            Err(error.with_source(NoProfile { name, known }))
        }
        // What is wrong with the files, the request for credentials says.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The endpoint set in the environment or the profile, for S3 or for all services.
fn own_endpoint(shared: &SdkConfig) -> Option<String> {
    let for_s3 = endpoint_by(shared, "AWS_ENDPOINT_URL");
    for_s3.or_else(|| shared.endpoint_url().map(str::to_owned))
}

/// The endpoint set in the profile, for S3 or for all services.
fn endpoint_of_profile(shared: &SdkConfig) -> Option<String> {
    // The SDK always asks for a variable, too; nobody sets this one.
    endpoint_by(shared, "NO_ENDPOINT_URL")
}

fn endpoint_by(shared: &SdkConfig, variable: &str) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env(variable)
        .profile("endpoint_url")
        .build();
    let config = shared.service_config().zip(key.ok());
    config.and_then(|(config, key)| config.load_config(key))
}

/// Nothing says in which region the bucket lies.
#[derive(Debug, thiserror::Error)]
#[error("no region is set; hint: set AWS_REGION, or `region` in the AWS profile")]
struct NoRegion;

/// A profile that is not in the files, and those that are.
#[derive(Debug, thiserror::Error)]
#[error("no file of AWS profiles has the profile {name:?}{}", has(.known))]
struct NoProfile {
    name: String,
    known: Vec<String>,
}

fn has(known: &[String]) -> String {
    match known {
        [] => "; none was found in ~/.aws/config and ~/.aws/credentials (AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE)".to_owned(),
        known => format!("; they have: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn profiles_are_found_in_a_home_that_no_variable_names() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let text = "[profile minio]\nregion = us-east-1\n";
        std::fs::write(home.path().join(".aws/config"), text).unwrap();
        for (home, is_found) in [(Some(home.path()), true), (None, false)] {
            let (fs, env) = (Fs::real(), Env::from_slice(&[]));
            let known = profile::load(&fs, &env, &profile_files(home), None).await;
            let found = known.unwrap().get_profile("minio").is_some();
            assert_eq!(found, is_found, "{home:?}");
        }
    }

    #[test]
    fn bodies_are_signed_where_nothing_else_protects_them() {
        for (endpoint, has_tls) in [
            (None, true),
            (Some("https://s3.example.org"), true),
            (Some("HTTPS://s3.example.org"), true),
            (Some("http://s3.example.org"), false),
            (Some("httpsx"), false),
        ] {
            assert_eq!(must_sign_bodies(true, endpoint), !has_tls, "{endpoint:?}");
            assert!(must_sign_bodies(false, endpoint), "{endpoint:?}");
        }
    }
}
