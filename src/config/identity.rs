//! TLS, authentication and the names of callers: the settings, and the options that the gRPC port gets.

use std::time::Duration;

use clap::Args;

use super::ServeArgs;
use super::limits::{MINUTE, duration};
use crate::rpc::{IdentityOptions, Scopes, TlsOptions, TokenOptions};

#[derive(Args, Clone, Debug)]
pub struct IdentityArgs {
    /// A PEM file with the authorities of client certificates; needs GRPC_TLS_CERT.
    ///
    /// With it every client has to present a certificate or, when AUTH_JWKS_FILE is set, a token.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_client_ca: String,
    /// The scopes of a caller with a certificate and no token: any of products.read, products.write, hotshelf.admin.
    ///
    /// Too many: every client with a certificate may do that. Too few: such clients need tokens.
    #[arg(long, env, default_value = "products.read products.write", value_name = "SCOPES", value_parser = scopes)]
    pub grpc_tls_client_scopes: String,
    /// A file with the public keys of bearer tokens (JSON Web Key Set; ES256, EdDSA, RS256); with it calls need tokens.
    ///
    /// The file is read again when it changes, and on SIGHUP. Needs AUTH_AUDIENCE and AUTH_ISSUER.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub auth_jwks_file: String,
    /// The audience that a token has to name (`aud`).
    #[arg(long, env, default_value = "", value_name = "TEXT")]
    pub auth_audience: String,
    /// The issuer that a token has to name (`iss`).
    #[arg(long, env, default_value = "", value_name = "TEXT")]
    pub auth_issuer: String,
    /// How far the clocks of this server and of the issuer may differ; 0s: not at all.
    ///
    /// Too high: tokens are accepted for that long after they expired. Too low: new tokens are refused.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(Duration::ZERO, 10 * MINUTE))]
    pub auth_leeway: Duration,
    /// The metadata in which a proxy sends the name of the caller, such as x-forwarded-for. Of a list the last entry counts.
    ///
    /// With it the shares of PostgreSQL and Redis, and the limits of calls, streams and bytes, go by these names. Any client that
    /// reaches this port can send any name, so admit only the proxy. Without it all calls on one connection of a proxy are of one
    /// caller. It does not authenticate: a token or a certificate takes precedence.
    #[arg(long, env, default_value = "", value_name = "NAME", value_parser = metadata)]
    pub caller_metadata: String,
}

fn scopes(text: &str) -> Result<String, String> {
    Scopes::parse(text).map(|_| text.to_owned())
}

fn metadata(name: &str) -> Result<String, String> {
    let is_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    match name.bytes().all(is_name) && !name.ends_with("-bin") {
        true => Ok(name.to_owned()),
        false => {
            Err("must be a name of text metadata: a-z, 0-9, -, _ and ., and not -bin at the end"
                .to_owned())
        }
    }
}

impl ServeArgs {
    /// The options of TLS and authentication.
    ///
    /// # Errors
    /// One sentence for the operator when settings that belong together are not all given.
    pub fn identity(&self) -> Result<IdentityOptions, String> {
        let (identity, tls) = (&self.identity, self.tls()?);
        let tokens = self.tokens()?;
        let certificate_scopes = Scopes::parse(&identity.grpc_tls_client_scopes)?;
        if tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
            && tokens.is_none()
            && certificate_scopes.is_empty()
        {
            return Err("GRPC_TLS_CLIENT_SCOPES is empty, so every call would be refused; give scopes, or AUTH_JWKS_FILE for tokens"
                .to_owned());
        }
        let caller_metadata = given(&identity.caller_metadata);
        Ok(IdentityOptions { tls, tokens, certificate_scopes, caller_metadata })
    }

    fn tls(&self) -> Result<Option<TlsOptions>, String> {
        let (certificate, key) = (&self.serving.grpc_tls_cert, &self.serving.grpc_tls_key);
        let client_ca = given(&self.identity.grpc_tls_client_ca);
        match (given(certificate), given(key)) {
            (Some(certificate), Some(key)) => {
                let client_optional = !self.identity.auth_jwks_file.is_empty();
                let http1 = self.http.http_api;
                Ok(Some(TlsOptions { certificate, key, client_ca, client_optional, http1 }))
            }
            (None, None) if client_ca.is_none() => Ok(None),
            (None, None) => {
                Err("GRPC_TLS_CLIENT_CA needs TLS; give GRPC_TLS_CERT and GRPC_TLS_KEY, too"
                    .to_owned())
            }
            _ => {
                Err("GRPC_TLS_CERT and GRPC_TLS_KEY belong together; give both, or neither"
                    .to_owned())
            }
        }
    }

    fn tokens(&self) -> Result<Option<TokenOptions>, String> {
        let identity = &self.identity;
        let file = given(&identity.auth_jwks_file);
        match (file, given(&identity.auth_audience), given(&identity.auth_issuer)) {
            (None, None, None) => Ok(None),
            (Some(jwks_file), Some(audience), Some(issuer)) => {
                let leeway = identity.auth_leeway;
                Ok(Some(TokenOptions { jwks_file, audience, issuer, leeway }))
            }
            (None, _, _) => Err("AUTH_AUDIENCE and AUTH_ISSUER have no effect without keys; give AUTH_JWKS_FILE, too".to_owned()),
            (Some(_), _, _) => Err("AUTH_JWKS_FILE alone would accept tokens that are meant for other services; give AUTH_AUDIENCE and AUTH_ISSUER, too".to_owned()),
        }
    }
}

pub(super) fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
