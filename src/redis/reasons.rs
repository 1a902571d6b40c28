//! The reasons of refusals: from which error each is recognised, what it costs, and what the operator can do.

use fred::error::{Error, ErrorKind};

use crate::metrics::RedisRefusal;

/// The reason of an error, if it is one that persists.
pub(super) fn reason_of(error: &Error, in_cluster: bool) -> Option<RedisRefusal> {
    use RedisRefusal as Reason;
    const PREFIXES: [(&str, Reason); 11] = [
        ("WRONGPASS", Reason::WrongPassword),
        ("ERR invalid password", Reason::WrongPassword),
        ("ERR AUTH", Reason::WrongPassword),
        ("NOAUTH", Reason::NoAuth),
        ("NOPERM", Reason::NoPermission),
        ("ERR unknown command", Reason::NoPermission),
        ("ERR SELECT is not allowed", Reason::IsACluster),
        ("CLUSTERDOWN", Reason::ClusterDown),
        ("READONLY", Reason::ReadOnlyReplica),
        ("ERR max number of clients", Reason::TooManyClients),
        ("DENIED", Reason::ProtectedMode),
    ];
    // The last five are names of rustls errors.
    const PARTS: [(&str, Reason); 9] = [
        ("cluster support disabled", Reason::NotACluster),
        ("ACL failure in script", Reason::NoPermission),
        ("can't run this command or subcommand", Reason::NoPermission),
        ("DB index", Reason::BadDatabase),
        ("UnknownIssuer", Reason::UnknownCa),
        ("CertificateRequired", Reason::CertificateRequired),
        ("InvalidCertificate", Reason::Tls),
        ("AlertReceived", Reason::Tls),
        ("InvalidMessage", Reason::Tls),
    ];
    let error_text = error.details();
    let redirected = ["MOVED", "ASK ", "CROSSSLOT"].iter().any(|word| error_text.starts_with(word));
    if redirected {
        return (!in_cluster).then_some(Reason::IsACluster);
    }
    let by_part = || PARTS.iter().find(|(part, _)| error_text.contains(part));
    let by_prefix = PREFIXES.iter().find(|(prefix, _)| error_text.starts_with(prefix));
    let by_kind = || (*error.kind() == ErrorKind::Tls).then_some(Reason::Tls);
    by_prefix.or_else(by_part).map(|(_, reason)| *reason).or_else(by_kind)
}

/// Whether the error denies a command, and not a key or a command inside a script.
pub(super) fn is_about_command(error_text: &str) -> bool {
    !error_text.contains("script") && !denied_in(error_text).is_empty()
}

/// The command in `... no permissions to run the 'get' command`; empty when the error is about keys.
pub(super) fn denied_in(error_text: &str) -> &str {
    error_text.split(['\'', '`']).nth(1).unwrap_or_default()
}

/// For the operator: what is wrong, what it costs, and what to do.
pub(super) fn description(reason: RedisRefusal) -> (&'static str, &'static str, &'static str) {
    const ALL: &str = "every miss in memory is loaded from PostgreSQL";
    const PART: &str = "operations that need it use PostgreSQL or are skipped";
    const TLS: &str =
        "check the certificate, and whether the scheme in REDIS_URL (redis or rediss) is right";
    use RedisRefusal as Reason;
    match reason {
        Reason::WrongPassword => {
            ("Redis rejects the user or password", ALL, "correct them in REDIS_URL or in Redis")
        }
        Reason::NoAuth => ("Redis requires a password", ALL, "add it to REDIS_URL"),
        Reason::NoPermission => (
            "Redis denies a command or a key",
            PART,
            "grant it to the user (ACL SETUSER), see docs/operating.md",
        ),
        Reason::BadDatabase => (
            "Redis has no database of this number",
            ALL,
            "correct the number at the end of REDIS_URL",
        ),
        Reason::UnknownCa => (
            "the certificate of Redis is not trusted",
            ALL,
            "add its authority to the system's, or to the file that SSL_CERT_FILE names",
        ),
        Reason::CertificateRequired => (
            "Redis requires a client certificate",
            ALL,
            "set tls-auth-clients to no or optional in Redis",
        ),
        Reason::Tls => ("the TLS handshake with Redis fails", ALL, TLS),
        Reason::NotACluster => {
            ("Redis is not a cluster", ALL, "use redis:// in REDIS_URL, and no REDIS_CLUSTER")
        }
        Reason::IsACluster => (
            "Redis is a node of a cluster",
            "only products of its own slots are read from Redis, and no batches",
            "use redis-cluster:// in REDIS_URL",
        ),
        Reason::ReadOnlyReplica => (
            "Redis is a read-only replica",
            "its entries are served; on a miss each instance loads from PostgreSQL and cannot fill Redis",
            "give the address of the master in REDIS_URL",
        ),
        Reason::ClusterDown => (
            "the Redis cluster is down",
            "its products are loaded from PostgreSQL",
            "see CLUSTER INFO and CLUSTER NODES",
        ),
        Reason::NoSlots => (
            "some slots of the Redis cluster have no server",
            "their products are loaded from PostgreSQL",
            "assign them (redis-cli --cluster fix)",
        ),
        Reason::TooManyClients => ("Redis has too many clients", ALL, "raise its maxclients"),
        Reason::ProtectedMode => {
            ("Redis is in protected mode", ALL, "set a password in Redis, or protected-mode no")
        }
        Reason::Unreachable => (
            "Redis cannot be reached",
            ALL,
            "check REDIS_URL, and that the server runs; it is used as soon as it answers",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(error_text: &'static str) -> Option<RedisRefusal> {
        reason_of(&Error::new(ErrorKind::Unknown, error_text), false)
    }

    #[test]
    fn server_errors_map_to_reasons() {
        use RedisRefusal as Reason;
        for (error_text, expected) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Reason::WrongPassword,
            ),
            ("ERR AUTH <password> called without any password configured", Reason::WrongPassword),
            ("NOAUTH Authentication required.", Reason::NoAuth),
            ("NOPERM this user has no permissions to run the 'get' command", Reason::NoPermission),
            ("ERR ACL failure in script: this user has no permissions", Reason::NoPermission),
            ("ERR DB index is out of range", Reason::BadDatabase),
            ("ERR This instance has cluster support disabled", Reason::NotACluster),
            ("MOVED 3999 127.0.0.1:6381", Reason::IsACluster),
            ("CROSSSLOT Keys in request don't hash to the same slot", Reason::IsACluster),
            ("READONLY You can't write against a read only replica.", Reason::ReadOnlyReplica),
            ("Custom { error: InvalidCertificate(UnknownIssuer) }", Reason::UnknownCa),
            ("Custom { error: InvalidCertificate(Expired) }", Reason::Tls),
            ("Custom { error: AlertReceived(CertificateRequired) }", Reason::CertificateRequired),
        ] {
            assert_eq!(reason(error_text), Some(expected), "{error_text}");
        }
        assert_eq!(reason("NOSCRIPT No matching script. Please use EVAL."), None);
        let moved = Error::new(ErrorKind::Cluster, "MOVED 1 h:1");
        assert_eq!(reason_of(&moved, true), None, "a cluster redirects in normal operation");
    }
}
