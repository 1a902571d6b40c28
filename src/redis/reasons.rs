//! Why a server refuses: the reason that an error gives, what that costs, and what to do.

use fred::error::{Error, ErrorKind};

use crate::metrics::RedisRefusal;

/// The reason that an error gives, if it is one that lasts.
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
    // The last of TLS are the names that rustls gives its errors.
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
    let said = error.details();
    let redirected = ["MOVED", "ASK ", "CROSSSLOT"].iter().any(|word| said.starts_with(word));
    if redirected {
        return (!in_cluster).then_some(Reason::IsACluster);
    }
    let by_part = || PARTS.iter().find(|(part, _)| said.contains(part));
    let by_prefix = PREFIXES.iter().find(|(prefix, _)| said.starts_with(prefix));
    let by_kind = || (*error.kind() == ErrorKind::Tls).then_some(Reason::Tls);
    by_prefix.or_else(by_part).map(|(_, reason)| *reason).or_else(by_kind)
}

/// Whether a command is denied as such, not a key or what a script does.
pub(super) fn is_about_command(said: &str) -> bool {
    !said.contains("script") && !denied_in(said).is_empty()
}

/// The command in `... no permissions to run the 'get' command`; empty when it is about keys.
pub(super) fn denied_in(said: &str) -> &str {
    said.split(['\'', '`']).nth(1).unwrap_or_default()
}

/// What is wrong, what that costs, and what to do.
pub(super) fn words(reason: RedisRefusal) -> (&'static str, &'static str, &'static str) {
    const ALL: &str = "every read that memory cannot answer goes to PostgreSQL";
    const PART: &str = "what needs it goes to PostgreSQL or is left out";
    const TLS: &str = "check the certificate, and whether REDIS_URL says rediss:// rightly";
    use RedisRefusal as Reason;
    match reason {
        Reason::WrongPassword => {
            ("Redis rejects the user or password", ALL, "correct them in REDIS_URL or in Redis")
        }
        Reason::NoAuth => ("Redis wants a password", ALL, "add it to REDIS_URL"),
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
            "Redis wants a client certificate",
            ALL,
            "set tls-auth-clients to no or optional in Redis",
        ),
        Reason::Tls => ("the TLS handshake with Redis fails", ALL, TLS),
        Reason::NotACluster => {
            ("Redis is not a cluster", ALL, "use redis:// in REDIS_URL, and no REDIS_CLUSTER")
        }
        Reason::IsACluster => (
            "Redis is a node of a cluster",
            "only its own slots come from Redis, and batches do not",
            "use redis-cluster:// in REDIS_URL",
        ),
        Reason::ReadOnlyReplica => (
            "Redis is a read-only replica",
            "what it holds is served, and what it lacks is loaded by each instance and not stored",
            "give the address of the master in REDIS_URL",
        ),
        Reason::ClusterDown => (
            "the Redis cluster is down",
            "its products come from PostgreSQL",
            "see CLUSTER INFO and CLUSTER NODES",
        ),
        Reason::NoSlots => (
            "some slots of the Redis cluster have no server",
            "their products come from PostgreSQL",
            "assign them (redis-cli --cluster fix)",
        ),
        Reason::TooManyClients => ("Redis has too many clients", ALL, "raise its maxclients"),
        Reason::ProtectedMode => {
            ("Redis is in protected mode", ALL, "set a password in Redis, or protected-mode no")
        }
        Reason::Unreachable => {
            ("Redis cannot be reached", ALL, "it is used again as soon as it answers")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(said: &'static str) -> Option<RedisRefusal> {
        reason_of(&Error::new(ErrorKind::Unknown, said), false)
    }

    #[test]
    fn what_servers_say_has_a_reason() {
        use RedisRefusal as Reason;
        for (said, expected) in [
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
            assert_eq!(reason(said), Some(expected), "{said}");
        }
        assert_eq!(reason("NOSCRIPT No matching script. Please use EVAL."), None);
        let moved = Error::new(ErrorKind::Cluster, "MOVED 1 h:1");
        assert_eq!(reason_of(&moved, true), None, "a cluster says so as a matter of course");
    }
}
