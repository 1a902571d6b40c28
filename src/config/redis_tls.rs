//! TLS to Redis: the settings.

use clap::Args;

use super::identity::given;
use crate::redis::RedisTls;

#[derive(Args, Clone, Debug)]
pub struct RedisTlsArgs {
    /// A PEM file with the authorities of Redis' certificate, for rediss://; empty: those of the system.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub redis_tls_ca: String,
    /// A PEM file with the certificate to present to Redis; needs REDIS_TLS_KEY.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub redis_tls_cert: String,
    /// A PEM file with the key of that certificate.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub redis_tls_key: String,
}

impl RedisTlsArgs {
    pub(super) fn files(&self) -> RedisTls {
        RedisTls {
            ca: given(&self.redis_tls_ca).map(Into::into),
            certificate: given(&self.redis_tls_cert).map(Into::into),
            key: given(&self.redis_tls_key).map(Into::into),
        }
    }
}
