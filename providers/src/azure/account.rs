//! Which account, at which address, with which credentials: from the variables that Azure's own tools read.

use std::path::PathBuf;

use azure_core::credentials::Secret;
use azure_core::http::Url;

use super::entra::Identity;
use crate::endpoint::endpoint;
use crate::{Error, ErrorKind, Operation, Result};

const DEFAULT_SUFFIX: &str = "core.windows.net";

const ENDPOINT_VARIABLE: &str = "AZURE_STORAGE_SERVICE_ENDPOINT";
const CONNECTION_STRING_VARIABLE: &str = "AZURE_STORAGE_CONNECTION_STRING";

/// Azurite's, which Microsoft publishes; `UseDevelopmentStorage=true` stands for them.
const DEVELOPMENT_ACCOUNT: &str = "devstoreaccount1";
const DEVELOPMENT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const DEVELOPMENT_ENDPOINT: &str = "http://127.0.0.1:10000/devstoreaccount1";

/// A storage account as this process may use it.
#[derive(Debug)]
pub(super) struct Account {
    /// Of the blob service, without query, password or trailing slash.
    pub(super) endpoint: Url,
    pub(super) credential: Credential,
}

/// What requests are authorized by.
#[derive(Debug)]
pub(super) enum Credential {
    /// The account's key, in base64.
    Key { account: String, key: Secret },
    /// A shared access signature: the parameters of a URL.
    Sas(Secret),
    /// Tokens.
    Entra(Identity),
}

impl Account {
    /// The account that the variables name; `variable` reads one.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] on the store `url`, without a word of any secret.
    pub(super) fn from_variables(
        url: &str,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let refused =
            |fault: Fault| Error::new(Operation::Open, url, ErrorKind::Invalid).with_source(fault);
        let parts = match variable(CONNECTION_STRING_VARIABLE) {
            Some(text) => Parts::of_connection_string(&text).map_err(refused)?,
            None => Parts::of_variables(variable),
        };
        let address = parts.endpoint().map_err(refused)?;
        // What is not shown cannot leak: an address with a query may hold a SAS.
        if address.contains(['?', '@', '#']) {
            return Err(refused(Fault::EndpointParts));
        }
        let address = endpoint(parts.endpoint_variable(), &address)?;
        let address = Url::parse(address).map_err(|source| refused(Fault::Endpoint(source)))?;
        let credential = parts.credential(variable).map_err(refused)?;
        if matches!(credential, Credential::Entra(_)) && address.scheme() != "https" {
            return Err(refused(Fault::TokenInClear));
        }
        Ok(Self {
            endpoint: address,
            credential,
        })
    }
}

/// What a connection string or single variables give.
#[derive(Default)]
struct Parts {
    account: Option<String>,
    key: Option<String>,
    sas: Option<String>,
    endpoint: Option<String>,
    protocol: Option<String>,
    suffix: Option<String>,
    /// Whether they come from a connection string, beside which no other credentials count.
    is_connection_string: bool,
}

impl Parts {
    fn of_variables(variable: impl Fn(&'static str) -> Option<String>) -> Self {
        Self {
            account: variable("AZURE_STORAGE_ACCOUNT"),
            key: variable("AZURE_STORAGE_KEY"),
            sas: variable("AZURE_STORAGE_SAS_TOKEN"),
            endpoint: variable(ENDPOINT_VARIABLE),
            ..Self::default()
        }
    }

    fn of_connection_string(text: &str) -> std::result::Result<Self, Fault> {
        let mut parts = Self {
            is_connection_string: true,
            ..Self::default()
        };
        for pair in text
            .split(';')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            // Keys end in `=`, so only the first one divides.
            let (name, value) = pair.split_once('=').ok_or(Fault::ConnectionString)?;
            let value = Some(value.to_owned()).filter(|value| !value.is_empty());
            match name.to_ascii_lowercase().as_str() {
                "accountname" => parts.account = value,
                "accountkey" => parts.key = value,
                "sharedaccesssignature" => parts.sas = value,
                "blobendpoint" => parts.endpoint = value,
                "defaultendpointsprotocol" => parts.protocol = value,
                "endpointsuffix" => parts.suffix = value,
                "usedevelopmentstorage" => parts.use_development_storage(value.as_deref()),
                // Addresses of queues, tables and files.
                _ => {}
            }
        }
        Ok(parts)
    }

    fn use_development_storage(&mut self, value: Option<&str>) {
        if value.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            self.account = Some(DEVELOPMENT_ACCOUNT.to_owned());
            self.key = Some(DEVELOPMENT_KEY.to_owned());
            self.endpoint = Some(DEVELOPMENT_ENDPOINT.to_owned());
        }
    }

    fn endpoint(&self) -> std::result::Result<String, Fault> {
        if let Some(endpoint) = &self.endpoint {
            return Ok(endpoint.clone());
        }
        let account = self.account.as_ref().ok_or(Fault::NoAccount)?;
        let protocol = self.protocol.as_deref().unwrap_or("https");
        let suffix = self.suffix.as_deref().unwrap_or(DEFAULT_SUFFIX);
        Ok(format!("{protocol}://{account}.blob.{suffix}"))
    }

    /// Where the address was read.
    fn endpoint_variable(&self) -> &'static str {
        if self.is_connection_string {
            CONNECTION_STRING_VARIABLE
        } else {
            ENDPOINT_VARIABLE
        }
    }

    fn credential(
        self,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> std::result::Result<Credential, Fault> {
        if let Some(key) = self.key {
            azure_core::base64::decode(&key).map_err(|_| Fault::Key)?;
            let account = self.account.ok_or(Fault::NoAccount)?;
            let key = Secret::new(key);
            return Ok(Credential::Key { account, key });
        }
        if let Some(sas) = self.sas {
            let sas = sas.trim_start_matches('?').to_owned();
            if !sas.split('&').any(|pair| pair.starts_with("sig=")) {
                return Err(Fault::Sas);
            }
            return Ok(Credential::Sas(Secret::new(sas)));
        }
        if self.is_connection_string {
            return Err(Fault::NoCredential);
        }
        identity(variable).map(Credential::Entra)
    }
}

fn identity(
    variable: impl Fn(&'static str) -> Option<String>,
) -> std::result::Result<Identity, Fault> {
    let client_id = variable("AZURE_CLIENT_ID");
    let named = |what| {
        let client_id = client_id.clone().ok_or(Fault::NoClient { what })?;
        let tenant_id = variable("AZURE_TENANT_ID").ok_or(Fault::NoClient { what })?;
        Ok((client_id, tenant_id))
    };
    if let Some(token_file) = variable("AZURE_FEDERATED_TOKEN_FILE") {
        let (client_id, tenant_id) = named("AZURE_FEDERATED_TOKEN_FILE")?;
        return Ok(Identity::Workload {
            token_file: PathBuf::from(token_file),
            client_id,
            tenant_id,
        });
    }
    if let Some(secret) = variable("AZURE_CLIENT_SECRET") {
        let (client_id, tenant_id) = named("AZURE_CLIENT_SECRET")?;
        return Ok(Identity::Service {
            client_id,
            tenant_id,
            secret: Secret::new(secret),
        });
    }
    Ok(match variable("IDENTITY_ENDPOINT") {
        Some(_) => Identity::Managed { client_id },
        None => Identity::ManagedOrCli { client_id },
    })
}

/// Why the variables name no account that can be used.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(
        "no storage account is named; hint: set AZURE_STORAGE_ACCOUNT, or AZURE_STORAGE_CONNECTION_STRING"
    )]
    NoAccount,
    #[error(
        "AZURE_STORAGE_CONNECTION_STRING cannot be read; it is a row of Name=Value, divided by semicolons"
    )]
    ConnectionString,
    #[error(
        "AZURE_STORAGE_CONNECTION_STRING holds neither AccountKey nor SharedAccessSignature; \
         hint: for a managed or workload identity set AZURE_STORAGE_ACCOUNT instead"
    )]
    NoCredential,
    #[error("the account's key is not base64; hint: AZURE_STORAGE_KEY or AccountKey was cut off")]
    Key,
    #[error(
        "the shared access signature has no `sig=`; hint: AZURE_STORAGE_SAS_TOKEN is what follows the `?` of a SAS URL"
    )]
    Sas,
    #[error("{what} is set without AZURE_CLIENT_ID and AZURE_TENANT_ID")]
    NoClient { what: &'static str },
    #[error("the blob service's address cannot be read")]
    Endpoint(#[source] url::ParseError),
    #[error(
        "the blob service's address has a query, a fragment or a user; \
         hint: a SAS belongs into AZURE_STORAGE_SAS_TOKEN or SharedAccessSignature"
    )]
    EndpointParts,
    #[error("tokens are sent by https only, and the blob service's address begins with http:")]
    TokenInClear,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "c2VjcmV0";

    fn account(variables: &[(&str, &str)]) -> Result<Account> {
        Account::from_variables("az://container", |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn refusal(variables: &[(&str, &str)]) -> String {
        let error = account(variables).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let source = std::error::Error::source(&error).unwrap();
        let shown = format!("{error} {source} {error:?}");
        assert!(!shown.contains(SECRET), "{shown}");
        source.to_string()
    }

    fn connected(string: &str) -> Account {
        account(&[("AZURE_STORAGE_CONNECTION_STRING", string)]).unwrap()
    }

    #[test]
    fn connection_strings_are_read() {
        let by_key = connected(
            "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=c2VjcmV0;EndpointSuffix=core.chinacloudapi.cn",
        );
        assert_eq!(
            by_key.endpoint.as_str(),
            "https://acme.blob.core.chinacloudapi.cn/"
        );
        assert!(
            matches!(&by_key.credential, Credential::Key { account, key }
            if account == "acme" && key.secret() == SECRET)
        );
        let by_sas = connected(
            "BlobEndpoint=https://acme.example/;QueueEndpoint=x;SharedAccessSignature=?sv=1&sig=a%3D",
        );
        assert_eq!(by_sas.endpoint.as_str(), "https://acme.example/");
        assert!(
            matches!(&by_sas.credential, Credential::Sas(sas) if sas.secret() == "sv=1&sig=a%3D")
        );
        let development = connected("UseDevelopmentStorage=true");
        assert_eq!(development.endpoint.as_str(), DEVELOPMENT_ENDPOINT);
        for account in [by_key, by_sas, development] {
            assert!(!format!("{account:?}").contains(SECRET));
        }
    }

    #[test]
    fn single_variables_are_read_in_their_order() {
        let named = ("AZURE_STORAGE_ACCOUNT", "acme");
        let key = ("AZURE_STORAGE_KEY", SECRET);
        let sas = ("AZURE_STORAGE_SAS_TOKEN", "?sig=x");
        let client = ("AZURE_CLIENT_ID", "client");
        let tenant = ("AZURE_TENANT_ID", "tenant");
        let file = ("AZURE_FEDERATED_TOKEN_FILE", "/token");
        let secret = ("AZURE_CLIENT_SECRET", SECRET);
        let shown = |variables: &[(&str, &str)]| {
            let account = account(variables).unwrap();
            assert_eq!(
                account.endpoint.as_str(),
                "https://acme.blob.core.windows.net/"
            );
            format!("{:?}", account.credential)
        };
        assert!(shown(&[named, key, sas]).starts_with("Key"));
        assert!(shown(&[named, sas, file]).starts_with("Sas"));
        let all = [named, client, tenant, file, secret];
        assert_eq!(shown(&all), "Entra(Workload)");
        assert_eq!(shown(&[named, client, tenant, secret]), "Entra(Service)");
        assert_eq!(
            shown(&[named, ("IDENTITY_ENDPOINT", "http://127.0.0.1")]),
            "Entra(Managed)"
        );
        assert_eq!(shown(&[named, client]), "Entra(ManagedOrCli)");
        assert_eq!(
            shown(&[named, ("AZURE_STORAGE_KEY", "")]),
            "Entra(ManagedOrCli)"
        );
    }

    #[test]
    fn what_names_no_account_is_refused_without_its_secrets() {
        let string = "AZURE_STORAGE_CONNECTION_STRING";
        assert!(refusal(&[]).contains("AZURE_STORAGE_ACCOUNT"));
        assert!(refusal(&[("AZURE_STORAGE_KEY", SECRET)]).contains("AZURE_STORAGE_ACCOUNT"));
        for (connection_string, words) in [
            (SECRET, "cannot be read"),
            ("AccountKey=c2VjcmV0", "no storage account"),
            ("AccountName=a;AccountKey=c2VjcmV0!", "not base64"),
            ("AccountName=a;SharedAccessSignature=c2VjcmV0", "no `sig=`"),
            ("AccountName=a", "neither"),
            (
                "BlobEndpoint=https://a/?c2VjcmV0;AccountName=a",
                "has a query",
            ),
            (
                "BlobEndpoint=http://[;AccountName=a;AccountKey=c2VjcmV0",
                "address",
            ),
            (
                "BlobEndpoint=a.example;AccountName=a;AccountKey=c2VjcmV0",
                "AZURE_STORAGE_CONNECTION_STRING names no protocol",
            ),
        ] {
            let refusal = refusal(&[(string, connection_string)]);
            assert!(refusal.contains(words), "{connection_string}: {refusal}");
        }
        let named = ("AZURE_STORAGE_ACCOUNT", "acme");
        assert!(refusal(&[named, ("AZURE_CLIENT_SECRET", SECRET)]).contains("AZURE_TENANT_ID"));
        let clear = ("AZURE_STORAGE_SERVICE_ENDPOINT", "http://127.0.0.1:1/acme");
        assert!(refusal(&[named, clear]).contains("by https only"));
    }
}
