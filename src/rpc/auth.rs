//! Who calls, and what they may do: a bearer token, or the certificate of the connection, against the policy of the method.
//!
//! A call is judged before its request is read. When callers are not authenticated a connection has no [`ConnectionAuth`], and
//! its calls pay for one look at that.

mod keys;
mod policy;
mod signatures;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use tonic::Status;

use super::connection::Named;
use super::edge::Peer;
use super::identity::IdentityOptions;
use super::reloaded::Reloaded;
use super::status;
use crate::metrics::{AuthRefusal, Method, Metrics};
pub use keys::TokenOptions;
use keys::{TokenKeys, Verified};
use policy::Needs;
pub use policy::Scopes;

/// Verified tokens that a connection remembers. Too high: memory of connections that forward many. Too low: those verify
/// signatures again.
const REMEMBERED_TOKENS: usize = 32;

/// What all connections share.
pub(super) struct Authenticator {
    keys: Option<Reloaded<TokenKeys>>,
    certificate_scopes: Scopes,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// # Errors
    /// One sentence for the operator, when the file of keys cannot be used.
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

    /// Reads the keys again.
    pub(super) async fn look(&self, at_once: bool) {
        if let Some(keys) = &self.keys {
            keys.look(at_once, "the keys of tokens").await;
        }
    }
}

/// Judges the calls of one connection.
pub(super) struct ConnectionAuth {
    shared: Arc<Authenticator>,
    peer: SocketAddr,
    /// The caller that the connection's certificate names.
    certificate: Option<Principal>,
    /// Locked by the connection's own calls only.
    remembered: Mutex<VecDeque<Remembered>>,
}

/// A token whose signature was found to be valid.
struct Remembered {
    /// Not the token itself: it would be a secret in memory for as long as the connection stands.
    digest: [u8; 32],
    /// The keys that it was verified with. Others may have revoked it.
    keys: Arc<TokenKeys>,
    verified: Verified,
}

/// An authenticated caller, and what it may do.
#[derive(Clone, Debug)]
pub(super) struct Principal {
    /// By the subject of the token, or the name in the certificate.
    pub(super) named: Arc<Named>,
    pub(super) scopes: Scopes,
}

impl ConnectionAuth {
    pub(super) fn new(shared: Arc<Authenticator>, peer: &Peer) -> Self {
        let scopes = shared.certificate_scopes;
        let certificate =
            peer.certificate.as_deref().map(Named::new).map(|named| Principal { named, scopes });
        Self { shared, peer: peer.address, certificate, remembered: Mutex::default() }
    }

    /// The caller; `None` when the method is open to all.
    ///
    /// # Errors
    /// The status of a call that must not be made.
    pub(super) fn check(
        &self,
        method: Method,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Named>>, Status> {
        let needs = Needs::of(method);
        if needs == Needs::Nothing {
            return Ok(None);
        }
        let principal = self.principal(headers).map_err(|refusal| {
            self.refuse(refusal);
            status::unauthorized(refusal, None)
        })?;
        match needs {
            Needs::Scope(scope) if !principal.scopes.contains(scope) => {
                let (refusal, scope) = (AuthRefusal::ScopeMissing, scope.name());
                self.shared.metrics.auth_refused.inc(refusal);
                tracing::info!(peer = %self.peer, identity = &*principal.named.name, scope, "a caller lacks a scope");
                Err(status::unauthorized(refusal, Some(scope)))
            }
            _ => Ok(Some(principal.named)),
        }
    }

    /// A token speaks for the call; without one the certificate does.
    fn principal(&self, headers: &HeaderMap) -> Result<Principal, AuthRefusal> {
        if let Some(keys) = &self.shared.keys
            && let Some(token) = bearer(headers)?
        {
            return self.of_token(&keys.current(), token);
        }
        self.certificate.clone().ok_or(AuthRefusal::TokenMissing)
    }

    fn of_token(&self, keys: &Arc<TokenKeys>, token: &[u8]) -> Result<Principal, AuthRefusal> {
        let digest: [u8; 32] =
            digest(&SHA256, token).as_ref().try_into().expect("SHA-256 has 32 bytes");
        let mut remembered = self.remembered.lock();
        remembered.retain(|known| Arc::ptr_eq(&known.keys, keys));
        if let Some(known) = remembered.iter().find(|known| known.digest == digest) {
            return match known.verified.expires < SystemTime::now() {
                true => Err(AuthRefusal::TokenExpired),
                false => Ok(known.verified.principal.clone()),
            };
        }
        let verified = keys.verify(token)?;
        let principal = verified.principal.clone();
        if remembered.len() == REMEMBERED_TOKENS {
            remembered.pop_front();
        }
        remembered.push_back(Remembered { digest, keys: Arc::clone(keys), verified });
        Ok(principal)
    }

    /// The log says it only so often; see `logging/repeats.rs`.
    fn refuse(&self, refusal: AuthRefusal) {
        self.shared.metrics.auth_refused.inc(refusal);
        tracing::info!(peer = %self.peer, reason = refusal.name(), "a call was refused for its authorization");
    }
}

/// The token of a call.
fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, AuthRefusal> {
    const SCHEME: &[u8] = b"bearer ";
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // With two of them a proxy in front may have looked at the other one.
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
