//! The keys of tokens, read from a JSON Web Key Set, and the verification of tokens with them.

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use super::Scopes;
use crate::metrics::AuthRefusal;

/// Most keys in a file. Bounds the work for a token without a key id, which is verified with each key.
const MAX_KEYS: usize = 32;

/// The tokens that are accepted.
#[derive(Clone, Debug)]
pub struct TokenOptions {
    /// A JSON Web Key Set (RFC 7517) with the public keys.
    pub jwks_file: String,
    /// Has to be in the token's `aud`.
    pub audience: String,
    /// Has to be the token's `iss`.
    pub issuer: String,
    /// The largest difference between the clocks of this server and the issuer. It is added to `exp` and to `nbf`.
    pub leeway: Duration,
}

/// The keys that tokens are verified with.
#[derive(Debug)]
pub(super) struct TokenKeys {
    keys: Vec<Key>,
    leeway: Duration,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
    validation: Validation,
}

/// The claims of a valid token.
pub(super) struct Verified {
    /// The subject.
    pub(super) identity: String,
    pub(super) scopes: Scopes,
    /// Includes the leeway.
    pub(super) expires: SystemTime,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    sub: Option<String>,
    scope: Option<String>,
    scp: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl TokenOptions {
    /// # Errors
    /// One sentence for the operator: why the file cannot be used.
    pub(super) fn make(&self, contents: &[Vec<u8>]) -> Result<TokenKeys, String> {
        let file = &self.jwks_file;
        let unusable = |why: String| {
            format!(
                "AUTH_JWKS_FILE {file} cannot be used: {why}; give it a JSON Web Key Set with public keys for ES256, EdDSA or RS256"
            )
        };
        let contents = contents.first().map(Vec::as_slice).unwrap_or_default();
        let set: JwkSet =
            serde_json::from_slice(contents).map_err(|error| unusable(error.to_string()))?;
        let keys: Vec<Key> = set.keys.iter().filter_map(|key| self.key(key)).collect();
        match keys.len() {
            0 => Err(unusable("it holds no key that can verify a token".to_owned())),
            1..=MAX_KEYS => Ok(TokenKeys { keys, leeway: self.leeway }),
            many => Err(unusable(format!("it holds {many} keys; at most {MAX_KEYS} are allowed"))),
        }
    }

    /// `None` for keys that are not for verifying signatures, which RFC 7517 requires to ignore. Also `None` for a shared
    /// secret, because every service that can verify a token with it could issue one, too.
    fn key(&self, key: &Jwk) -> Option<Key> {
        let common = &key.common;
        let for_other_use =
            common.public_key_use.as_ref().is_some_and(|r#use| *r#use != PublicKeyUse::Signature);
        let operations = common.key_operations.as_ref();
        if for_other_use
            || operations.is_some_and(|listed| !listed.contains(&KeyOperations::Verify))
        {
            return None;
        }
        let algorithm = match &key.algorithm {
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            _ => return None,
        };
        let other =
            |named: &jsonwebtoken::jwk::KeyAlgorithm| named.to_string() != format!("{algorithm:?}");
        if key.common.key_algorithm.as_ref().is_some_and(other) {
            return None;
        }
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.issuer]);
        let decoding = DecodingKey::from_jwk(key).ok()?;
        Some(Key { id: key.common.key_id.clone(), algorithm, decoding, validation })
    }
}

impl TokenKeys {
    /// # Errors
    /// Why the token is refused. Its claims are checked only when its signature is valid.
    pub(super) fn verify(&self, token: &[u8]) -> Result<Verified, AuthRefusal> {
        let header = decode_header(token).map_err(|_| AuthRefusal::TokenMalformed)?;
        // Critical extensions have to be understood, and none is supported (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(AuthRefusal::TokenMalformed);
        }
        let candidate = |key: &&Key| header.kid.is_none() || header.kid == key.id;
        let mut refusal = AuthRefusal::UnknownKey;
        for key in self.keys.iter().filter(candidate) {
            if key.algorithm != header.alg {
                refusal = AuthRefusal::Algorithm;
                continue;
            }
            match decode::<Claims>(token, &key.decoding, &key.validation) {
                Ok(token) => return Ok(self.verified(token.claims)),
                Err(error) => refusal = refusal_of(error.kind()),
            }
            if refusal != AuthRefusal::Signature {
                break;
            }
        }
        Err(refusal)
    }

    fn verified(&self, claims: Claims) -> Verified {
        let scp = match claims.scp {
            Some(OneOrMany::One(scope)) => vec![scope],
            Some(OneOrMany::Many(scopes)) => scopes,
            None => Vec::new(),
        };
        let scopes = Scopes::of_token(scp.iter().chain(&claims.scope).map(String::as_str));
        let identity = claims.sub.unwrap_or_default();
        let seconds = Duration::try_from_secs_f64(claims.exp).unwrap_or(Duration::MAX);
        let expires = SystemTime::UNIX_EPOCH.checked_add(seconds.saturating_add(self.leeway));
        // An `exp` that the clock cannot represent counts as one hour from now.
        let expires = expires.unwrap_or_else(|| SystemTime::now() + Duration::from_secs(3_600));
        Verified { identity, scopes, expires }
    }
}

fn refusal_of(error: &ErrorKind) -> AuthRefusal {
    match error {
        ErrorKind::InvalidSignature => AuthRefusal::Signature,
        ErrorKind::InvalidAlgorithm => AuthRefusal::Algorithm,
        ErrorKind::ExpiredSignature => AuthRefusal::TokenExpired,
        ErrorKind::ImmatureSignature => AuthRefusal::NotYetValid,
        ErrorKind::InvalidAudience => AuthRefusal::Audience,
        ErrorKind::InvalidIssuer => AuthRefusal::Issuer,
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "aud" => AuthRefusal::Audience,
            "iss" => AuthRefusal::Issuer,
            _ => AuthRefusal::TokenMalformed,
        },
        _ => AuthRefusal::TokenMalformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The public key of RFC 7517, appendix A.1.
    fn keys(more: &str) -> Result<TokenKeys, String> {
        let set = format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256",{more}
            "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}}]}}"#
        );
        let text = |text: &str| text.to_owned();
        let (jwks_file, audience, issuer) = (text("keys"), text("hotshelf"), text("issuer"));
        TokenOptions { jwks_file, audience, issuer, leeway: Duration::ZERO }.make(&[set.into()])
    }

    #[test]
    fn only_keys_for_verifying_are_used() {
        for usable in ["", r#""use":"sig","#, r#""key_ops":["verify"],"#, r#""alg":"ES256","#] {
            keys(usable).unwrap_or_else(|why| panic!("{usable}: {why}"));
        }
        for unusable in [r#""use":"enc","#, r#""key_ops":["encrypt"],"#, r#""alg":"ES384","#] {
            keys(unusable).expect_err(unusable);
        }
    }
}
