//! Authentication and authorization: the caller is identified by a bearer token or by the certificate of its connection, and
//! its scopes are checked against the policy of the method.
//!
//! A call is checked before its request is read. When authentication is off a connection has no [`ConnectionAuth`], which costs
//! a call one branch.

mod cache;
mod keys;
mod policy;
mod signatures;

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use tonic::Status;

use super::callers::{Callers, Named};
use super::edge::Peer;
use super::identity::IdentityOptions;
use super::reloaded::Reloaded;
use super::status;
use crate::metrics::{AuthRefusal, Method, Metrics};
use cache::TokenCache;
use keys::TokenKeys;
pub use keys::TokenOptions;
use policy::Needs;
pub use policy::Scopes;

/// The part of authentication that all connections share.
pub(super) struct Authenticator {
    keys: Option<Reloaded<TokenKeys>>,
    certificate_scopes: Scopes,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// # Errors
    /// One sentence for the operator: why the file of keys cannot be used.
    pub(super) async fn load(
        options: &IdentityOptions,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let keys = match options.tokens.clone() {
            None => None,
            Some(tokens) => {
                signatures::install();
                let files = vec![("AUTH_JWKS_FILE", tokens.jwks_file.clone())];
                Some(Reloaded::load(files, move |contents| tokens.make(contents)).await?)
            }
        };
        Ok(Self { keys, certificate_scopes: options.certificate_scopes, metrics })
    }

    /// Reloads the keys; see [`Reloaded::poll`].
    pub(super) async fn poll_keys(&self, force: bool) {
        if let Some(keys) = &self.keys {
            keys.poll(force, "the keys of tokens").await;
        }
    }
}

/// Authenticates and authorizes the calls of one connection.
pub(super) struct ConnectionAuth {
    shared: Arc<Authenticator>,
    callers: Arc<Callers>,
    peer: SocketAddr,
    /// The caller named by the certificate of the connection.
    certificate: Option<Principal>,
    /// Only calls of this connection contend for the lock.
    tokens: Mutex<TokenCache>,
}

/// An authenticated caller and its scopes.
#[derive(Clone, Debug)]
pub(super) struct Principal {
    /// Named by the subject of the token or by the certificate.
    pub(super) named: Arc<Named>,
    pub(super) scopes: Scopes,
}

impl ConnectionAuth {
    pub(super) fn new(shared: Arc<Authenticator>, peer: &Peer, callers: Arc<Callers>) -> Self {
        let scopes = shared.certificate_scopes;
        let named = peer.certificate.as_deref().map(|name| callers.named(name));
        let certificate = named.map(|named| Principal { named, scopes });
        Self { shared, callers, peer: peer.address, certificate, tokens: Mutex::default() }
    }

    /// The caller. For a method that needs no authentication it is that of the connection's certificate, if any.
    ///
    /// # Errors
    /// UNAUTHENTICATED, or PERMISSION_DENIED when the caller lacks the scope of the method.
    pub(super) fn check(
        &self,
        method: Method,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Named>>, Status> {
        let needs = Needs::of(method);
        if needs == Needs::Nothing {
            return Ok(self.certificate.as_ref().map(|principal| Arc::clone(&principal.named)));
        }
        let principal = self.principal(headers).map_err(|refusal| {
            self.refuse(refusal);
            status::unauthorized(refusal, None)
        })?;
        match needs {
            Needs::Scope(scope) if !principal.scopes.contains(scope) => {
                let (refusal, scope) = (AuthRefusal::ScopeMissing, scope.name());
                self.shared.metrics.auth_refused.inc(refusal);
                tracing::info!(
                    peer = %self.peer,
                    identity = &*principal.named.name,
                    scope,
                    "a caller lacks the scope of the method; the call is refused"
                );
                Err(status::unauthorized(refusal, Some(scope)))
            }
            _ => Ok(Some(principal.named)),
        }
    }

    /// The token identifies the caller; without a token the certificate does.
    fn principal(&self, headers: &HeaderMap) -> Result<Principal, AuthRefusal> {
        if let Some(keys) = &self.shared.keys
            && let Some(token) = bearer(headers)?
        {
            return self.tokens.lock().check(&keys.current(), token, |verified| Principal {
                named: self.callers.named(&verified.identity),
                scopes: verified.scopes,
            });
        }
        self.certificate.clone().ok_or(AuthRefusal::TokenMissing)
    }

    /// Counts and logs a refusal. The log line is rate-limited by `logging/repeats.rs`.
    fn refuse(&self, refusal: AuthRefusal) {
        self.shared.metrics.auth_refused.inc(refusal);
        tracing::info!(
            peer = %self.peer,
            reason = refusal.name(),
            "a call was refused: it is not authenticated, or lacks the scope"
        );
    }
}

/// The bearer token of a call, if any.
fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, AuthRefusal> {
    const SCHEME: &[u8] = b"bearer ";
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // With two values a proxy in front may have checked the other one.
    if values.next().is_some() {
        return Err(AuthRefusal::TokenMalformed);
    }
    match value.as_bytes().split_at_checked(SCHEME.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => Ok(Some(token)),
        _ => Err(AuthRefusal::TokenMalformed),
    }
}

impl std::fmt::Debug for ConnectionAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionAuth").finish_non_exhaustive()
    }
}
