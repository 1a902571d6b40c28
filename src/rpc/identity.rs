//! The certificates and keys in force: the server's certificate, the authorities of client certificates, and the keys of
//! tokens. They are loaded from files, and reloaded when the files change and on SIGHUP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderName;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::auth::{Authenticator, ConnectionAuth, Scopes, TokenOptions};
use super::callers::Callers;
use super::edge::{Peer, ServerTls, TlsOptions};
use super::reloaded::Reloaded;
use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};

/// How often the files are read. Too high: a revoked key is trusted for longer. Too low: needless reads.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A warning is logged when the certificate expires within this time.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3_600);
/// Between two warnings of the certificate's expiry.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3_600);

/// How the server and its callers are authenticated.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// `None`: gRPC is served in plain text.
    pub tls: Option<TlsOptions>,
    /// `None`: tokens are ignored.
    pub tokens: Option<TokenOptions>,
    /// The scopes of a caller that presents a certificate and no token.
    pub certificate_scopes: Scopes,
    /// The metadata in which a trusted proxy names the caller. It decides limits only, not scopes.
    pub caller_metadata: Option<String>,
}

/// The certificates and keys in force.
pub struct Identity {
    tls: Option<Reloaded<ServerTls>>,
    auth: Option<Arc<Authenticator>>,
    caller_metadata: Option<HeaderName>,
    reload_requested: Notify,
    /// When the last warning of the certificate's expiry was logged.
    warned: Mutex<Option<Instant>>,
}

impl Identity {
    /// Loads the files.
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
        let caller_metadata = name
            .map_err(|_| "CALLER_METADATA is not a valid metadata name; use another".to_owned())?;
        let (reload_requested, warned) = (Notify::new(), Mutex::default());
        let identity = Arc::new(Self { tls, auth, caller_metadata, reload_requested, warned });
        if identity.tls.is_some() {
            let help = "When the certificate of the gRPC port expires, in seconds since 1970.";
            let name = "hotshelf.tls.certificate.expiry.timestamp";
            metrics.seconds(name, help, &identity, Self::certificate_expiry);
        }
        identity.warn_of_expiry();
        Ok(identity)
    }

    /// Reloads the files now, for SIGHUP.
    pub fn reload(&self) {
        match self.tls.is_some() || self.auth.is_some() {
            true => self.reload_requested.notify_one(),
            false => {
                tracing::info!("SIGHUP: there are no files of certificates or keys to reload")
            }
        }
    }

    /// Whether callers of the gRPC port need credentials.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.auth.is_some()
    }

    /// Warns when clients on the network can call without authentication, or can be overheard.
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

    /// Starts the task that reloads the files when they change.
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
            let force = tokio::select! {
                () = self.reload_requested.notified() => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            if let Some(tls) = &self.tls
                && tls.poll(force, "the certificate of the gRPC port").await
            {
                *self.warned.lock() = None;
            }
            if let Some(auth) = &self.auth {
                auth.poll_keys(force).await;
            }
            self.warn_of_expiry();
        }
    }

    /// The acceptor for the next connection. Open connections keep the certificate of their handshake.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let tls = self.tls.as_ref()?.current();
        Some(TlsAcceptor::from(Arc::clone(&tls.config)))
    }

    /// `None` when callers are not authenticated.
    pub(super) fn of_connection(
        &self,
        peer: &Peer,
        callers: &Arc<Callers>,
    ) -> Option<ConnectionAuth> {
        let auth = self.auth.as_ref()?;
        Some(ConnectionAuth::new(Arc::clone(auth), peer, Arc::clone(callers)))
    }

    /// The metadata in which a trusted proxy names the caller.
    pub(super) fn caller_metadata(&self) -> Option<HeaderName> {
        self.caller_metadata.clone()
    }

    /// Time since 1970; zero without TLS.
    fn certificate_expiry(&self) -> Duration {
        let expires = self.tls.as_ref().map(|tls| tls.current().expires);
        expires.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default()
    }

    fn warn_of_expiry(&self) {
        let Some(tls) = &self.tls else { return };
        let expires = tls.current().expires;
        let remaining = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let mut warned = self.warned.lock();
        let warned_recently = warned.is_some_and(|at| at.elapsed() < WARNING_INTERVAL);
        if remaining > EXPIRES_SOON || warned_recently {
            return;
        }
        *warned = Some(Instant::now());
        let at = humantime::format_rfc3339_seconds(expires);
        match remaining.is_zero() {
            true => tracing::warn!(
                %at,
                "the certificate of the gRPC port has expired: clients refuse it; replace GRPC_TLS_CERT and GRPC_TLS_KEY"
            ),
            false => tracing::warn!(
                %at,
                days = remaining.as_secs() / 86_400,
                "the certificate of the gRPC port expires soon; replace GRPC_TLS_CERT and GRPC_TLS_KEY"
            ),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}
