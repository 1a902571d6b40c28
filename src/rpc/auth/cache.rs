//! The tokens that a connection has sent: each is verified once, and a connection that keeps sending tokens that fail has few of
//! them verified, because a signature takes as long to verify as many hot reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ring::digest::{SHA256, digest};

use super::Principal;
use super::keys::{TokenKeys, Verified};
use crate::metrics::AuthRefusal;

/// Accepted tokens that a connection remembers, and as many refused ones. Too high: memory for connections that forward many
/// tokens. Too low: signatures of such connections are verified again and again.
const MAX_TOKENS: usize = 32;
/// A connection may have this many tokens fail at once, and then one in each [`FAILURE_INTERVAL`]. Too high: processor time for
/// forged tokens. Too low: a client of a gateway that sends bad tokens has the new tokens of others refused.
const MAX_FAILURES: u32 = 64;
const FAILURE_INTERVAL: Duration = Duration::from_millis(10);

/// The oldest tokens are evicted.
#[derive(Default)]
pub(super) struct TokenCache {
    accepted: VecDeque<Cached<(Principal, SystemTime)>>,
    refused: VecDeque<Cached<AuthRefusal>>,
    /// Later than now by an interval for each recent failure (GCRA, the generic cell rate algorithm).
    failures_until: Option<Instant>,
}

struct Cached<T> {
    /// A digest, because the token itself would be a secret in memory for as long as the connection is open.
    digest: [u8; 32],
    /// The keys that it was verified with. A token is verified again after a reload, which may have added or revoked its key.
    keys: Arc<TokenKeys>,
    outcome: T,
}

impl TokenCache {
    /// The caller of a token; `principal` makes it of the verified claims.
    pub(super) fn check(
        &mut self,
        keys: &Arc<TokenKeys>,
        token: &[u8],
        principal: impl FnOnce(&Verified) -> Principal,
    ) -> Result<Principal, AuthRefusal> {
        let digest: [u8; 32] =
            digest(&SHA256, token).as_ref().try_into().expect("a SHA-256 digest has 32 bytes");
        if let Some((principal, expires)) = find(&mut self.accepted, keys, &digest) {
            return match *expires < SystemTime::now() {
                true => Err(AuthRefusal::TokenExpired),
                false => Ok(principal.clone()),
            };
        }
        if let Some(refusal) = find(&mut self.refused, keys, &digest) {
            return Err(*refusal);
        }
        let now = Instant::now();
        if !self.may_fail(now) {
            return Err(AuthRefusal::TooManyInvalid);
        }
        let keys = Arc::clone(keys);
        match keys.verify(token) {
            Ok(verified) => {
                let principal = principal(&verified);
                let outcome = (principal.clone(), verified.expires);
                push(&mut self.accepted, Cached { digest, keys, outcome });
                Ok(principal)
            }
            Err(refusal) => {
                self.failed(refusal, now);
                // The only refusal that time changes.
                if refusal != AuthRefusal::NotYetValid {
                    push(&mut self.refused, Cached { digest, keys, outcome: refusal });
                }
                Err(refusal)
            }
        }
    }

    fn may_fail(&self, now: Instant) -> bool {
        let until = self.failures_until.unwrap_or(now);
        until.saturating_duration_since(now) < FAILURE_INTERVAL * MAX_FAILURES
    }

    fn failed(&mut self, refusal: AuthRefusal, now: Instant) {
        use AuthRefusal::{Algorithm, TokenMalformed, UnknownKey};
        // These are found without a look at the signature.
        if !matches!(refusal, TokenMalformed | UnknownKey | Algorithm) {
            let until = self.failures_until.map_or(now, |until| until.max(now));
            self.failures_until = Some(until + FAILURE_INTERVAL);
        }
    }
}

fn find<'a, T>(
    tokens: &'a mut VecDeque<Cached<T>>,
    keys: &Arc<TokenKeys>,
    digest: &[u8; 32],
) -> Option<&'a T> {
    tokens.retain(|token| Arc::ptr_eq(&token.keys, keys));
    tokens.iter().find(|token| token.digest == *digest).map(|token| &token.outcome)
}

fn push<T>(tokens: &mut VecDeque<Cached<T>>, token: Cached<T>) {
    if tokens.len() == MAX_TOKENS {
        tokens.pop_front();
    }
    tokens.push_back(token);
}
