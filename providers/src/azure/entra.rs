//! Requests authorized by tokens of Microsoft Entra ID: workload, service, managed and people's identities.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind as AzureKind;
use azure_core::http::policies::auth::BearerTokenAuthorizationPolicy;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{ClientOptions, Context, Request, StatusCode};
use azure_identity::{
    AzureCliCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};

type Credential = Arc<dyn TokenCredential>;

const SCOPE: &str = "https://storage.azure.com/.default";

/// How long a credential that was made anew is trusted, whatever the store says of its tokens.
const REBUILD_INTERVAL: Duration = Duration::from_secs(30);

/// Who this process is to Entra.
pub(super) enum Identity {
    /// A Kubernetes service account, by the token that the cluster keeps in a file.
    Workload {
        token_file: PathBuf,
        client_id: String,
        tenant_id: String,
    },
    /// A service principal with a secret.
    Service {
        client_id: String,
        tenant_id: String,
        secret: Secret,
    },
    /// The machine's identity, at an address that the machine names.
    Managed { client_id: Option<String> },
    /// The machine's identity or, where it has none, that of whoever logged in with the Azure CLI.
    ManagedOrCli { client_id: Option<String> },
}

impl Identity {
    /// The SDK's credential, which fetches and renews tokens as they are needed.
    fn credential(&self, options: &ClientOptions) -> azure_core::Result<Credential> {
        let client_options = options.clone();
        Ok(match self {
            Self::Workload {
                token_file,
                client_id,
                tenant_id,
            } => WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                credential_options: ClientAssertionCredentialOptions { client_options },
                client_id: Some(client_id.clone()),
                tenant_id: Some(tenant_id.clone()),
                token_file_path: Some(token_file.clone()),
            }))?,
            Self::Service {
                client_id,
                tenant_id,
                secret,
            } => ClientSecretCredential::new(
                tenant_id,
                client_id.clone(),
                secret.clone(),
                Some(ClientSecretCredentialOptions { client_options }),
            )?,
            Self::Managed { client_id } => managed(client_id.as_ref(), client_options)?,
            Self::ManagedOrCli { client_id } => Arc::new(FirstThatWorks {
                managed: managed(client_id.as_ref(), client_options)?,
                cli: AzureCliCredential::new(None)?,
                chosen: OnceLock::new(),
            }),
        })
    }
}

fn managed(client_id: Option<&String>, options: ClientOptions) -> azure_core::Result<Credential> {
    let options = ManagedIdentityCredentialOptions {
        user_assigned_id: client_id.cloned().map(UserAssignedId::ClientId),
        client_options: options,
    };
    Ok(ManagedIdentityCredential::new(Some(options))?)
}

/// The identities' variables hold no secrets but one, and none of it is needed in a log.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Workload { .. } => "Workload",
            Self::Service { .. } => "Service",
            Self::Managed { .. } => "Managed",
            Self::ManagedOrCli { .. } => "ManagedOrCli",
        })
    }
}

/// The first source that gave a token is asked ever after.
#[derive(Debug)]
struct FirstThatWorks {
    managed: Credential,
    cli: Credential,
    chosen: OnceLock<Credential>,
}

#[async_trait]
impl TokenCredential for FirstThatWorks {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        if let Some(chosen) = self.chosen.get() {
            return chosen.get_token(scopes, options).await;
        }
        let of_machine = match self.managed.get_token(scopes, options.clone()).await {
            Ok(token) => return Ok(self.choose(&self.managed, token)),
            Err(error) => error,
        };
        match self.cli.get_token(scopes, options).await {
            Ok(token) => Ok(self.choose(&self.cli, token)),
            Err(of_cli) => Err(azure_core::Error::new(
                AzureKind::Credential,
                NoIdentity {
                    of_machine: of_machine.to_string(),
                    of_cli: of_cli.to_string(),
                },
            )),
        }
    }
}

impl FirstThatWorks {
    fn choose(&self, credential: &Credential, token: AccessToken) -> AccessToken {
        // Of two that answered at once the first stays; both work.
        let _other = self.chosen.set(Arc::clone(credential));
        token
    }
}

/// Neither source knows this process.
#[derive(Debug, thiserror::Error)]
#[error(
    "no Azure credentials were found: no connection string, account key, SAS, workload identity or \
     client secret is set; no managed identity ({of_machine}); no login of the Azure CLI ({of_cli})"
)]
struct NoIdentity {
    of_machine: String,
    of_cli: String,
}

/// Gives each request a token that is valid, and renews what the store refuses.
///
/// The SDK renews tokens before they expire. A token that is refused all the same, as after a
/// change of keys, is still in its cache, so the credential is made anew.
pub(super) struct EntraPolicy {
    identity: Identity,
    options: ClientOptions,
    current: Mutex<Current>,
}

struct Current {
    policy: Arc<BearerTokenAuthorizationPolicy>,
    rebuilt: Option<Instant>,
}

impl EntraPolicy {
    /// Tokens of `identity`, fetched as `options` say.
    ///
    /// # Errors
    /// The SDK's, when what the identity needs is not there.
    pub(super) fn new(identity: Identity, mut options: ClientOptions) -> azure_core::Result<Self> {
        options.per_call_policies.push(Arc::new(ServerAway));
        let policy = bearer(&identity, &options)?;
        let rebuilt = None;
        Ok(Self {
            identity,
            options,
            current: Mutex::new(Current { policy, rebuilt }),
        })
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another attempt will go with other tokens than those of `refused`.
    fn renew(&self, refused: &Arc<BearerTokenAuthorizationPolicy>) -> azure_core::Result<bool> {
        let mut current = self.current();
        if !Arc::ptr_eq(&current.policy, refused) {
            return Ok(true);
        }
        if current
            .rebuilt
            .is_some_and(|rebuilt| rebuilt.elapsed() < REBUILD_INTERVAL)
        {
            return Ok(false);
        }
        current.policy = bearer(&self.identity, &self.options)?;
        current.rebuilt = Some(Instant::now());
        Ok(true)
    }
}

fn bearer(
    identity: &Identity,
    options: &ClientOptions,
) -> azure_core::Result<Arc<BearerTokenAuthorizationPolicy>> {
    let credential = identity.credential(options)?;
    Ok(Arc::new(BearerTokenAuthorizationPolicy::new(
        credential,
        [SCOPE],
    )))
}

#[async_trait]
impl Policy for EntraPolicy {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let policy = Arc::clone(&self.current().policy);
        let answer = policy.send(ctx, request, next).await?;
        if answer.status() == StatusCode::Unauthorized && self.renew(&policy)? {
            return Err(azure_core::Error::new(AzureKind::Credential, StaleToken));
        }
        Ok(answer)
    }
}

impl fmt::Debug for EntraPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EntraPolicy").field(&self.identity).finish()
    }
}

/// The store refused a token; another attempt will have a new one.
#[derive(Debug, thiserror::Error)]
#[error("the store no longer takes the token, and a new one is fetched")]
pub(super) struct StaleToken;

/// Tells a token server that is away from one that refuses: the SDK takes both for a refusal,
/// and reads a proxy's error page as a token that it does not understand.
#[derive(Debug)]
struct ServerAway;

#[async_trait]
impl Policy for ServerAway {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let answer = super::forward(ctx, request, next).await?;
        let status = answer.status();
        if !matches!(u16::from(status), 408 | 429 | 500..) {
            return Ok(answer);
        }
        let kind = AzureKind::HttpResponse {
            status,
            error_code: None,
            raw_response: None,
        };
        let words = format!("the token server answered {}", u16::from(status));
        Err(azure_core::Error::with_message(kind, words))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use azure_core::time::OffsetDateTime;

    use super::*;
    use crate::ErrorKind;
    use crate::azure::failure::Failure;

    #[derive(Debug)]
    struct Source {
        token: Option<&'static str>,
        asked: AtomicU32,
    }

    impl Source {
        fn new(token: Option<&'static str>) -> Arc<Self> {
            let asked = AtomicU32::new(0);
            Arc::new(Self { token, asked })
        }
    }

    #[async_trait]
    impl TokenCredential for Source {
        async fn get_token(
            &self,
            _: &[&str],
            _: Option<TokenRequestOptions<'_>>,
        ) -> azure_core::Result<AccessToken> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match self.token {
                Some(token) => Ok(AccessToken::new(token, OffsetDateTime::now_utc())),
                None => Err(azure_core::Error::with_message(
                    AzureKind::Connection,
                    "away",
                )),
            }
        }
    }

    fn first_that_works(managed: &Arc<Source>, cli: &Arc<Source>) -> FirstThatWorks {
        FirstThatWorks {
            managed: Arc::<Source>::clone(managed),
            cli: Arc::<Source>::clone(cli),
            chosen: OnceLock::new(),
        }
    }

    #[tokio::test]
    async fn the_source_that_gave_a_token_is_asked_ever_after() {
        let (managed, cli) = (Source::new(None), Source::new(Some("of a person")));
        let sources = first_that_works(&managed, &cli);
        for _ in 0..3 {
            let token = sources.get_token(&[SCOPE], None).await.unwrap();
            assert_eq!(token.token.secret(), "of a person");
        }
        assert_eq!(managed.asked.load(Ordering::Relaxed), 1);
        assert_eq!(cli.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn without_any_source_no_waiting_helps() {
        let (managed, cli) = (Source::new(None), Source::new(None));
        let sources = first_that_works(&managed, &cli);
        let error = sources.get_token(&[SCOPE], None).await.unwrap_err();
        let error = Failure::from(error).on(crate::Operation::Get, "az://container/x".to_owned());
        assert_eq!(error.kind, ErrorKind::NoCredentials);
        let source = std::error::Error::source(&error).unwrap();
        assert!(
            source
                .to_string()
                .contains("no Azure credentials were found")
        );
    }
}
