//! Tokens, valid and forged.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

pub const AUDIENCE: &str = "https://products.example";
pub const ISSUER: &str = "https://login.example/";
/// ring cannot generate RSA keys. This key is public.
const RSA: &[u8] = include_bytes!("rsa.pem");

enum Key {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

pub struct Signer {
    id: &'static str,
    key: Key,
}

impl Signer {
    pub fn es256(id: &'static str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Self { id, key: Key::Ec(key) }
    }

    pub fn ed25519(id: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        Self { id, key: Key::Ed(key) }
    }

    pub fn rs256(id: &'static str) -> Self {
        let document = PrivatePkcs8KeyDer::from_pem_slice(RSA).unwrap();
        let key = RsaKeyPair::from_pkcs8(document.secret_pkcs8_der()).unwrap();
        Self { id, key: Key::Rsa(Box::new(key)) }
    }

    fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Ec(_) => "ES256",
            Key::Ed(_) => "EdDSA",
            Key::Rsa(_) => "RS256",
        }
    }

    pub fn public(&self) -> Vec<u8> {
        match &self.key {
            Key::Ec(key) => key.public_key().as_ref().to_vec(),
            Key::Ed(key) => key.public_key().as_ref().to_vec(),
            Key::Rsa(key) => key.public_key().as_ref().to_vec(),
        }
    }

    pub fn jwk(&self) -> Value {
        let public = self.public();
        let mut jwk = match &self.key {
            Key::Ec(_) => json!({"kty": "EC", "crv": "P-256",
                "x": BASE64.encode(&public[1..33]), "y": BASE64.encode(&public[33..])}),
            Key::Ed(_) => json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(&public)}),
            Key::Rsa(key) => {
                let number = |bytes: &[u8]| {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    BASE64.encode(&bytes[zeros..])
                };
                let public: ring::rsa::PublicKeyComponents<Vec<u8>> = key.public_key().into();
                json!({"kty": "RSA", "n": number(&public.n), "e": number(&public.e)})
            }
        };
        jwk["kid"] = self.id.into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm().into();
        jwk
    }

    pub fn token(&self, claims: &Value) -> String {
        self.token_of(self.id, claims)
    }

    /// A token that names another key than the one that signed it.
    pub fn token_of(&self, id: &str, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": self.algorithm(), "kid": id});
        self.signed(&header, claims)
    }

    pub fn signed(&self, header: &Value, claims: &Value) -> String {
        encoded(header, claims, |message| match &self.key {
            Key::Ec(key) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let random = SystemRandom::new();
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
        })
    }
}

pub fn encoded(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = BASE64.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// Writes a JWKS file with the keys of these signers.
pub fn trust(file: &Path, signers: &[&Signer]) {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    std::fs::write(file, json!({ "keys": keys }).to_string()).unwrap();
}

/// The Unix time this many seconds from now.
pub fn at(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + seconds
}

/// The claims of a token with these scopes, valid for an hour.
pub fn claims(scope: &str) -> Value {
    let hour = Duration::from_secs(3_600).as_secs().try_into().unwrap();
    json!({"aud": AUDIENCE, "iss": ISSUER, "sub": "checkout", "exp": at(hour), "scope": scope})
}
