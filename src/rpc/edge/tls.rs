//! TLS: a certificate from files, HTTP/2 agreed on by ALPN.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where a server's identity is.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// A PEM file: its certificate, then those that lead to one that clients know.
    pub certificate: String,
    /// A PEM file: its private key.
    pub key: String,
}

impl TlsOptions {
    /// Reads the files. They are read once: an instance that starts takes what is there then.
    pub(in crate::rpc) fn load(&self) -> Result<TlsAcceptor, String> {
        let (certificate, key) = (Path::new(&self.certificate), Path::new(&self.key));
        let unreadable = |name: &str, path: &Path, why: &dyn std::fmt::Display| {
            format!("{name} {} cannot be used: {why}; give it a PEM file", path.display())
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unreadable("GRPC_TLS_CERT", certificate, &error))?;
        if chain.is_empty() {
            return Err(unreadable("GRPC_TLS_CERT", certificate, &"it holds no certificate"));
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unreadable("GRPC_TLS_KEY", key, &error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| {
                format!("GRPC_TLS_CERT and GRPC_TLS_KEY do not go together: {error}; give the key of the first certificate")
            })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
