//! Who may call: the settings, and what they are to the gRPC port.

use std::time::Duration;

use clap::Args;

use super::ServeArgs;
use super::limits::{MINUTE, duration};
use crate::rpc::{IdentityOptions, Scopes, TlsOptions, TokenOptions};

/// Who may call.
#[derive(Args, Clone, Debug)]
pub struct IdentityArgs {
    /// A PEM file with the authorities that issue the certificates of clients; needs GRPC_TLS_CERT.
    ///
    /// With it every client has to show a certificate; where AUTH_JWKS_FILE is given, too, a token will do instead.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_client_ca: String,
    /// What a caller may do that shows a certificate and no token: any of products.read, products.write, hotshelf.admin.
    ///
    /// More: every client with a certificate may do it. Less: they need tokens for it.
    #[arg(long, env, default_value = "products.read products.write", value_name = "SCOPES", value_parser = scopes)]
    pub grpc_tls_client_scopes: String,
    /// A JSON Web Key Set with the public keys of bearer tokens (ES256, EdDSA, RS256); with it calls need tokens.
    ///
    /// It is read again when it changes. Needs AUTH_AUDIENCE and AUTH_ISSUER.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub auth_jwks_file: String,
    /// The audience that a token must be for (`aud`).
    #[arg(long, env, default_value = "", value_name = "TEXT")]
    pub auth_audience: String,
    /// The issuer that a token must be from (`iss`).
    #[arg(long, env, default_value = "", value_name = "TEXT")]
    pub auth_issuer: String,
    /// How far the clocks of this server and of the issuer may differ; 0s: not at all.
    ///
    /// Too high: tokens are accepted for longer than they say. Too low: new ones are refused.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(Duration::ZERO, 10 * MINUTE))]
    pub auth_leeway: Duration,
    /// The metadata by which a proxy in front says who calls: x-forwarded-for, say. Of a list the last entry counts.
    ///
    /// Set: shares of PostgreSQL and Redis are by that name, and any client that reaches this port can claim one, so allow only the
    /// proxy. Unset: all that a proxy sends on one connection is one caller. It is no authentication; a token or certificate
    /// goes before it.
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
    /// How the server and its callers prove who they are.
    ///
    /// # Errors
    /// One sentence for the operator, when settings are missing that belong together.
    pub fn identity(&self) -> Result<IdentityOptions, String> {
        let (identity, tls) = (&self.identity, self.tls()?);
        let tokens = self.tokens()?;
        let certificate_scopes = Scopes::parse(&identity.grpc_tls_client_scopes)?;
        if tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
            && tokens.is_none()
            && certificate_scopes.is_empty()
        {
            return Err("GRPC_TLS_CLIENT_SCOPES is empty, and no caller could do anything; give scopes, or AUTH_JWKS_FILE for tokens"
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
                Ok(Some(TlsOptions { certificate, key, client_ca, client_optional }))
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
            (None, _, _) => Err("AUTH_AUDIENCE and AUTH_ISSUER say which tokens are accepted; give AUTH_JWKS_FILE, too".to_owned()),
            (Some(_), _, _) => Err("AUTH_JWKS_FILE alone would accept tokens that are meant for other services; give AUTH_AUDIENCE and AUTH_ISSUER, too".to_owned()),
        }
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
