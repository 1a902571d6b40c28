//! TLS to Redis.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Files of PEM, which are read once, at the start.
#[derive(Clone, Debug, Default)]
pub struct RedisTls {
    /// The authorities that may have signed the server's certificate; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// The certificate with which this program presents itself, and its key.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl RedisTls {
    pub(super) fn is_set(&self) -> bool {
        self.ca.is_some() || self.certificate.is_some() || self.key.is_some()
    }
}

pub(super) fn connector(tls: &RedisTls) -> Result<ClientConfig, String> {
    let roots = match &tls.ca {
        Some(file) => roots_in(file)?,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let (certificate, key) = match (&tls.certificate, &tls.key) {
        (None, None) => return Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err("REDIS_TLS_CERT needs REDIS_TLS_KEY, its key".to_owned()),
        (None, Some(_)) => {
            return Err("REDIS_TLS_KEY needs REDIS_TLS_CERT, its certificate".to_owned());
        }
    };
    let certificates = certificates_in("REDIS_TLS_CERT", certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read("REDIS_TLS_KEY", key)?).map_err(|error| {
        format!("REDIS_TLS_KEY: {} has no private key in PEM: {error}", key.display())
    })?;
    builder.with_client_auth_cert(certificates, private).map_err(|error| {
        format!("REDIS_TLS_KEY: {} does not go with the certificate: {error}", key.display())
    })
}

fn roots_in(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in("REDIS_TLS_CA", file)? {
        roots.add(certificate).map_err(|error| {
            format!(
                "REDIS_TLS_CA: {} has a certificate that cannot be used: {error}",
                file.display()
            )
        })?;
    }
    Ok(roots)
}

/// Those of SSL_CERT_FILE and SSL_CERT_DIR, if these are set.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match (roots.is_empty(), found.errors.first()) {
        (false, _) => Ok(roots),
        (true, Some(error)) => {
            Err(format!("the certificate authorities of the system cannot be read: {error}; REDIS_TLS_CA names a file"))
        }
        (true, None) => Err("the system has no certificate authorities; install ca-certificates, or use REDIS_TLS_CA".to_owned()),
    }
}

fn certificates_in(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(setting, file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{setting}: {} has no certificate in PEM", file.display())),
        Err(error) => Err(format!("{setting}: {} cannot be read: {error}", file.display())),
    }
}

fn read(setting: &str, file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("{setting}: {}: {error}", file.display()))
}
