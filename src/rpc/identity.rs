//! What proves who is who: this server's certificate, the authority of its clients' certificates, and the keys of their
//! tokens. All of it is in files, which are read again when they change and on SIGHUP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderName;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::auth::{Authenticator, ConnectionAuth, Scopes, TokenOptions};
use super::edge::{Peer, ServerTls, TlsOptions};
use super::reloaded::Reloaded;
use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};

/// Between two looks at the files. Too high: a revoked key is trusted for longer. Too low: needless reads.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A certificate that expires sooner is a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3_600);
/// Between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3_600);

/// How the server and its callers prove who they are.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// Without it gRPC is served in plain text.
    pub tls: Option<TlsOptions>,
    /// Without it tokens are not looked at.
    pub tokens: Option<TokenOptions>,
    /// What a caller may do that shows a certificate and no token.
    pub certificate_scopes: Scopes,
    /// The metadata by which a proxy says who calls.
    pub caller_metadata: Option<String>,
}

/// What is in force.
pub struct Identity {
    tls: Option<Reloaded<ServerTls>>,
    auth: Option<Arc<Authenticator>>,
    caller_metadata: Option<HeaderName>,
    asked: Notify,
    /// When an operator was last warned of the certificate's expiry.
    warned: Mutex<Option<Instant>>,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// One sentence for the operator: which file cannot be used, and why.
    pub async fn load(
        options: &IdentityOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, String> {
        let tls = match options.tls.clone() {
            None => None,
            Some(tls) => {
                let files = tls.files();
                Some(Reloaded::load(files, move |contents| tls.make(contents)).await?)
            }
        };
        let client_certificates =
            options.tls.as_ref().is_some_and(|options| options.client_ca.is_some());
        let auth = match client_certificates || options.tokens.is_some() {
            false => None,
            true => Some(Arc::new(Authenticator::load(options, Arc::clone(metrics)).await?)),
        };
        let name = options.caller_metadata.as_ref().map(|name| name.parse()).transpose();
        let caller_metadata =
            name.map_err(|_| "CALLER_METADATA is no name of metadata; give another".to_owned())?;
        let (asked, warned) = (Notify::new(), Mutex::default());
        let identity = Arc::new(Self { tls, auth, caller_metadata, asked, warned });
        if identity.tls.is_some() {
            let help = "When the certificate of the gRPC port expires, in seconds since 1970.";
            let name = "hotshelf.tls.certificate.expiry.timestamp";
            metrics.seconds(name, help, &identity, Self::certificate_expiry);
        }
        identity.warn_of_expiry();
        Ok(identity)
    }

    /// The files are read again now.
    pub fn reload(&self) {
        match self.tls.is_some() || self.auth.is_some() {
            true => self.asked.notify_one(),
            false => {
                tracing::info!("SIGHUP: there are no files of certificates or keys to read again")
            }
        }
    }

    /// Tells the operator what every client on the network may do.
    pub fn warn_if_open(&self, address: SocketAddr) {
        if address.ip().is_loopback() {
            return;
        }
        match (&self.auth, &self.tls) {
            (None, _) => tracing::warn!(
                %address,
                "GRPC_ADDR is not a loopback address and callers are not authenticated: every client that reaches it can read and change products; set AUTH_JWKS_FILE or GRPC_TLS_CLIENT_CA, or restrict the network"
            ),
            (Some(_), None) => tracing::warn!(
                %address,
                "tokens are accepted without TLS: they can be read on the network and used; set GRPC_TLS_CERT and GRPC_TLS_KEY, or terminate TLS in front"
            ),
            _ => {}
        }
    }

    /// Reads the files again when they change, until the drain has finished.
    pub(super) fn keep_reloading(self: &Arc<Self>, drain: &Drain) {
        if self.tls.is_none() && self.auth.is_none() {
            return;
        }
        let identity = Arc::clone(self);
        drain.spawn_loop(BackgroundTask::IdentityFiles, move || {
            let identity = Arc::clone(&identity);
            async move { identity.watch().await }
        });
    }

    async fn watch(&self) -> Result<Infallible, Infallible> {
        loop {
            let at_once = tokio::select! {
                () = self.asked.notified() => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            if let Some(tls) = &self.tls
                && tls.look(at_once, "the certificate of the gRPC port").await
            {
                *self.warned.lock() = None;
            }
            if let Some(auth) = &self.auth {
                auth.look(at_once).await;
            }
            self.warn_of_expiry();
        }
    }

    /// For the next connection; those that stand keep what they agreed on.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let tls = self.tls.as_ref()?.current();
        Some(TlsAcceptor::from(Arc::clone(&tls.config)))
    }

    /// Judges the calls of a connection; `None` when callers are not authenticated.
    pub(super) fn of_connection(&self, peer: &Peer) -> Option<ConnectionAuth> {
        let auth = self.auth.as_ref()?;
        Some(ConnectionAuth::new(Arc::clone(auth), peer))
    }

    /// The metadata by which a proxy says who calls.
    pub(super) fn caller_metadata(&self) -> Option<HeaderName> {
        self.caller_metadata.clone()
    }

    /// Since 1970.
    fn certificate_expiry(&self) -> Duration {
        let expires = self.tls.as_ref().map(|tls| tls.current().expires);
        expires.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default()
    }

    fn warn_of_expiry(&self) {
        let Some(tls) = &self.tls else { return };
        let expires = tls.current().expires;
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let mut warned = self.warned.lock();
        let lately = warned.is_some_and(|at| at.elapsed() < WARNING_INTERVAL);
        if left > EXPIRES_SOON || lately {
            return;
        }
        *warned = Some(Instant::now());
        let at = humantime::format_rfc3339_seconds(expires);
        match left.is_zero() {
            true => {
                tracing::warn!(%at, "the certificate of the gRPC port has expired: clients refuse it; replace GRPC_TLS_CERT and GRPC_TLS_KEY")
            }
            false => {
                tracing::warn!(%at, days = left.as_secs() / 86_400, "the certificate of the gRPC port expires soon; replace GRPC_TLS_CERT and GRPC_TLS_KEY")
            }
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}
