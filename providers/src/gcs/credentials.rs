//! Who asks: Google's credentials, and a way out when Google no longer takes a token that had time left.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use google_cloud_auth::build_errors::Error as BuildError;
use google_cloud_auth::credentials::{
    Builder, CacheableResource, Credentials, CredentialsProvider, EntityTag,
};
use google_cloud_auth::errors::CredentialsError;
use http::{Extensions, HeaderMap};
use tokio::time::Instant;

use super::failure::Failure;
use crate::ErrorKind;
use crate::refusal::{find, text};

/// How long credentials that were built anew must do before they are built once more.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

/// Credentials that are looked for with the first request, and again when they turn out to be worthless.
///
/// Tokens are cached and refreshed some minutes before they expire by Google's library, in a task of the runtime that
/// the first request runs in.
pub(super) struct Access {
    source: Source,
    held: Mutex<Held>,
}

enum Source {
    /// Application default credentials: a file, gcloud's or the metadata server.
    Environment,
    Given(Credentials),
}

#[derive(Default)]
struct Held {
    credentials: Option<Credentials>,
    age: Age,
    renewed: Option<Instant>,
}

/// How often credentials had been built when a request took its headers from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Age(u64);

impl Access {
    /// Application default credentials.
    pub(super) fn of_environment() -> Self {
        Self::new(Source::Environment)
    }

    /// These credentials and no others.
    pub(super) fn given(credentials: Credentials) -> Self {
        Self::new(Source::Given(credentials))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            held: Mutex::default(),
        }
    }

    /// How often credentials were built so far.
    pub(super) fn age(&self) -> Age {
        self.held().age
    }

    /// The headers that a request carries now; none for anonymous ones.
    pub(super) async fn headers(&self) -> Result<(HeaderMap, Age), CredentialsError> {
        let (credentials, age) = self.current()?;
        match credentials.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok((data, age)),
            // Answered only to those who name a version that they have.
            Ok(CacheableResource::NotModified) => Ok((HeaderMap::new(), age)),
            Err(error) => {
                if !error.is_transient() {
                    // The library never asks again after such an answer, and a long-lived process would have to.
                    self.renew(age);
                }
                Err(error)
            }
        }
    }

    /// Whether there is hope after a 401 on headers of this age: other headers exist, or will be asked for.
    fn renew(&self, age: Age) -> bool {
        let mut held = self.held();
        if held.age != age {
            return true;
        }
        let is_too_early = held
            .renewed
            .is_some_and(|renewed| renewed.elapsed() < RENEWAL_PAUSE);
        if is_too_early || matches!(self.source, Source::Given(_)) {
            return false;
        }
        *held = Held {
            credentials: None,
            age: Age(age.0 + 1),
            renewed: Some(Instant::now()),
        };
        true
    }

    /// The failure of a request with headers of this age: a 401 passes where there is hope.
    pub(super) fn judged(&self, failure: Failure, age: Age) -> Failure {
        if failure.status() == Some(401) && self.renew(age) {
            failure.with_kind(ErrorKind::Unavailable)
        } else {
            failure
        }
    }

    fn current(&self) -> Result<(Credentials, Age), CredentialsError> {
        let mut held = self.held();
        let credentials = match &held.credentials {
            Some(credentials) => credentials.clone(),
            None => self.source.build()?,
        };
        held.credentials = Some(credentials.clone());
        Ok((credentials, held.age))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same credentials as Google's crate takes them. It asks before each request, so that its requests are made with
/// what is held then.
pub(super) struct Shared(pub(super) Arc<Access>);

impl CredentialsProvider for Shared {
    async fn headers(
        &self,
        _: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let (data, _) = self.0.headers().await?;
        let entity_tag = EntityTag::new();
        Ok(CacheableResource::New { entity_tag, data })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

/// The credentials do not show.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared(…)")
    }
}

impl Source {
    /// Begins to fetch a token, so it is called with the first request and not before.
    fn build(&self) -> Result<Credentials, CredentialsError> {
        match self {
            // Without a scope of its own, as Google's clients are: a user's refresh token is refused when it is used
            // with a scope that was not named when it was granted. What may be done is IAM's to say.
            Self::Environment => {
                let built = Builder::default().build();
                built.map_err(|error| CredentialsError::from_source(false, error))
            }
            Self::Given(credentials) => Ok(credentials.clone()),
        }
    }
}

impl From<&CredentialsError> for Failure {
    fn from(error: &CredentialsError) -> Self {
        let is_worthless = find::<BuildError>(error).is_some_and(|error| !error.is_loading());
        let is_refused =
            find::<reqwest::Error>(error).is_some_and(|error| error.status().is_some());
        let kind = if error.is_transient() {
            ErrorKind::Unavailable
        } else if is_worthless || is_refused {
            ErrorKind::Unauthenticated
        } else {
            ErrorKind::NoCredentials
        };
        Self::new(kind, CredentialsFault::of(error))
    }
}

/// Why there is no token, in words only: the library's errors also hold requests.
#[derive(Debug)]
struct CredentialsFault {
    words: String,
}

impl CredentialsFault {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut chain = vec![error];
        let mut cause = error.source();
        while let Some(error) = cause {
            chain.push(error);
            cause = error.source();
        }
        let mut words = Vec::new();
        for (index, error) in chain.iter().enumerate() {
            let cause = chain.get(index + 1).map(ToString::to_string);
            let said = own_words(*error, cause.as_deref());
            if !said.is_empty() && !words.contains(&said) {
                words.push(said);
            }
        }
        Self {
            words: words.join(": "),
        }
    }
}

/// What an error says beside its cause, whose words the library's errors repeat.
fn own_words(error: &(dyn StdError + 'static), cause: Option<&str>) -> String {
    // A request's URL may hold what identifies the account.
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        return match error.status() {
            Some(status) => format!("HTTP {status}"),
            None if error.is_timeout() => "no answer in time".to_owned(),
            None => "the exchange with the token service failed".to_owned(),
        };
    }
    let said = error.to_string();
    let own = match cause.filter(|cause| !cause.is_empty()) {
        Some(cause) => said.replace(cause, ""),
        None => said,
    };
    text(Some(own.trim_matches([' ', ':', '.'])))
}

impl fmt::Display for CredentialsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = &self.words;
        write!(
            f,
            "no Google credentials: {words}; hint: set GOOGLE_APPLICATION_CREDENTIALS where this process sees it"
        )
    }
}

impl StdError for CredentialsFault {}
