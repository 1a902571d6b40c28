//! TLS: the server's certificate from files, HTTP/2 by ALPN, and client certificates if an authority for them is configured.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The PEM files of TLS.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// The server's certificate chain: its own certificate first, then the intermediate ones.
    pub certificate: String,
    /// The private key of the first certificate.
    pub key: String,
    /// The authorities that sign client certificates. `None`: client certificates are not requested.
    pub client_ca: Option<String>,
    /// Whether clients without a certificate may connect; their calls need tokens.
    pub client_optional: bool,
    /// Whether clients may choose HTTP/1.1.
    pub http1: bool,
}

/// The configuration of handshakes, made of the files.
pub(in crate::rpc) struct ServerTls {
    pub(in crate::rpc) config: Arc<ServerConfig>,
    /// When the server's own certificate expires.
    pub(in crate::rpc) expires: SystemTime,
}

impl TlsOptions {
    /// The settings and their files, in the order of the contents that [`Self::make`] takes.
    pub(in crate::rpc) fn files(&self) -> Vec<(&'static str, String)> {
        let client_ca = self.client_ca.iter().map(|file| ("GRPC_TLS_CLIENT_CA", file.clone()));
        let own = [("GRPC_TLS_CERT", self.certificate.clone()), ("GRPC_TLS_KEY", self.key.clone())];
        own.into_iter().chain(client_ca).collect()
    }

    /// # Errors
    /// One sentence for the operator: which file cannot be used, and why.
    pub(in crate::rpc) fn make(&self, contents: &[Vec<u8>]) -> Result<ServerTls, String> {
        let [certificate, key, client_ca @ ..] = contents else {
            return Err("GRPC_TLS_CERT and GRPC_TLS_KEY are both needed".to_owned());
        };
        let chain = certificates("GRPC_TLS_CERT", &self.certificate, certificate)?;
        let expires =
            expiry(&chain[0]).map_err(|why| unusable("GRPC_TLS_CERT", &self.certificate, &why))?;
        let private = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| unusable("GRPC_TLS_KEY", &self.key, &error))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match (&self.client_ca, client_ca.first()) {
            (Some(file), Some(ca)) => {
                builder.with_client_cert_verifier(self.client_verifier(file, ca)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, private).map_err(|error| {
            format!("GRPC_TLS_CERT and GRPC_TLS_KEY do not go together: {error}; give the key of the first certificate")
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        if self.http1 {
            config.alpn_protocols.push(b"http/1.1".to_vec());
        }
        Ok(ServerTls { config: Arc::new(config), expires })
    }

    fn client_verifier(
        &self,
        file: &str,
        ca: &[u8],
    ) -> Result<Arc<dyn ClientCertVerifier>, String> {
        const NAME: &str = "GRPC_TLS_CLIENT_CA";
        let mut roots = RootCertStore::empty();
        for authority in certificates(NAME, file, ca)? {
            roots.add(authority).map_err(|error| unusable(NAME, file, &error))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier =
            if self.client_optional { verifier.allow_unauthenticated() } else { verifier };
        verifier.build().map_err(|error| unusable(NAME, file, &error))
    }
}

fn unusable(name: &str, file: &str, why: &dyn std::fmt::Display) -> String {
    format!("{name} {file} cannot be used: {why}; give it a PEM file")
}

/// The certificates in a file, at least one.
fn certificates(
    name: &str,
    file: &str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| unusable(name, file, &error))?;
    if certificates.is_empty() {
        return Err(unusable(name, file, &"it holds no certificate"));
    }
    Ok(certificates)
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    Ok(certificate)
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let seconds = parsed(certificate)?.validity().not_after.timestamp();
    // A time before 1970 becomes 1970, which is in the past, too.
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0)))
}

/// The name of a client: the first URI among the subject alternative names of its certificate (a SPIFFE id, for example), else
/// the first DNS name among them, else the common name of the subject.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let certificate = parsed(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(dns) => Some(*dns),
        _ => None,
    });
    let common = || certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    uri.or(dns).or_else(common).map(Arc::from)
}
