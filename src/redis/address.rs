//! `REDIS_URL`: where Redis is, and how to connect.

use fred::types::config::{ClusterDiscoveryPolicy, Config, Server, ServerConfig, TlsConnector};
use url::Url;

use super::RedisOptions;
use super::slots::bare;
use super::tls::connector;
use crate::urls::Parts;

const FORM: &str = "use redis://HOST:PORT, rediss:// for TLS, redis-cluster://HOST:PORT?node=HOST:PORT, \
    redis-sentinel://HOST:PORT?sentinelServiceName=NAME, or unix:///PATH";
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Single,
    Cluster,
    Sentinel,
    Unix,
}

impl Kind {
    /// The kind of a scheme, and whether it is one of TLS.
    fn of(scheme: &str) -> Option<(Self, bool)> {
        if ["unix", "redis+unix", "valkey+unix"].contains(&scheme) {
            return Some((Self::Unix, false));
        }
        let (protocol, kind) = scheme.split_once('-').unwrap_or((scheme, ""));
        let kind = match kind {
            "" => Self::Single,
            "cluster" => Self::Cluster,
            "sentinel" => Self::Sentinel,
            _ => return None,
        };
        match protocol {
            "redis" | "valkey" => Some((kind, false)),
            "rediss" | "valkeys" => Some((kind, true)),
            _ => None,
        }
    }

    fn has(self) -> String {
        let what = match self {
            Self::Single => "a single server",
            Self::Cluster => "a cluster",
            Self::Sentinel => "a sentinel",
            Self::Unix => "a socket",
        };
        let parameters = self.parameters().join(", ");
        format!("{what} has {}", if parameters.is_empty() { "none" } else { &parameters })
    }

    fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Single => &[],
            Self::Cluster => &["node"],
            Self::Sentinel => {
                &["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"]
            }
            Self::Unix => &["db", "username", "password"],
        }
    }
}

/// The configuration of fred for these options. What fred itself would ignore is an error.
pub(super) fn config(options: &RedisOptions) -> Result<Config, String> {
    let parts = Parts::of("REDIS_URL", &options.url, FORM)?;
    let scheme = parts.scheme;
    let (kind, tls) = Kind::of(&scheme.to_lowercase())
        .ok_or_else(|| format!("REDIS_URL has the scheme {scheme:?}; {FORM}"))?;
    let kind = match kind {
        Kind::Single if options.cluster => Kind::Cluster,
        Kind::Sentinel | Kind::Unix if options.cluster => {
            return Err(format!("REDIS_CLUSTER does not go with {scheme}:// in REDIS_URL"));
        }
        kind => kind,
    };
    if parts.has_several_hosts {
        return Err(format!(
            "REDIS_URL names several hosts; name one, and the others of a cluster or of sentinels by node=HOST:PORT; {FORM}"
        ));
    }
    if let Some(name) = parts.unknown(kind.parameters()) {
        return Err(format!(
            "REDIS_URL has the parameter {name}, which has no effect here; remove it: {}",
            kind.has()
        ));
    }
    let url = Url::parse(&options.url)
        .map_err(|error| format!("REDIS_URL cannot be read: {error}; {FORM}"))?;
    let wrong = |why: String| format!("REDIS_URL {why}");
    let parameter = |wanted: &str| {
        let found = url.query_pairs().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
    };
    let mut config = Config {
        server: server(kind, &url, &parameter).map_err(wrong)?,
        username: decoded(url.username()).map_err(wrong)?.or_else(|| parameter("username")),
        password: decoded(url.password().unwrap_or_default())
            .map_err(wrong)?
            .or_else(|| parameter("password")),
        database: database(kind, &url, parameter("db")).map_err(wrong)?,
        // A start with Redis down must succeed: fred retries instead of failing the client.
        fail_fast: false,
        ..Config::default()
    };
    if tls {
        config.tls = Some(TlsConnector::from(connector(&options.tls)?).into());
    } else if options.tls.is_set() {
        return Err(
            "REDIS_TLS_CA, REDIS_TLS_CERT and REDIS_TLS_KEY need TLS: use rediss:// in REDIS_URL"
                .to_owned(),
        );
    }
    Ok(config)
}

fn server(
    kind: Kind,
    url: &Url,
    parameter: &dyn Fn(&str) -> Option<String>,
) -> Result<ServerConfig, String> {
    if kind == Kind::Unix {
        let path = decoded(url.path())?.unwrap_or_default();
        return match url.host_str().unwrap_or_default().is_empty() && path.len() > 1 {
            true => Ok(ServerConfig::Unix { path: path.into() }),
            false => Err("has no absolute path; use unix:///run/redis/redis.sock".to_owned()),
        };
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("has no host")?;
    let port = if kind == Kind::Sentinel { SENTINEL_PORT } else { REDIS_PORT };
    let mut hosts = vec![Server::new(bare(host), url.port().unwrap_or(port))];
    for (_, node) in url.query_pairs().filter(|(name, _)| name == "node") {
        let server = node.rsplit_once(':').and_then(|(host, port)| {
            Some(Server::new(Some(bare(host)).filter(|host| !host.is_empty())?, port.parse().ok()?))
        });
        hosts.push(server.ok_or_else(|| format!("has node={node}; use node=HOST:PORT"))?);
    }
    Ok(match kind {
        Kind::Cluster => ServerConfig::Clustered { hosts, policy: ClusterDiscoveryPolicy::default() },
        Kind::Sentinel => ServerConfig::Sentinel {
            hosts,
            service_name: parameter("sentinelServiceName").ok_or(
                "does not name what the sentinels watch; add ?sentinelServiceName=NAME, the name after sentinel monitor",
            )?,
            username: parameter("sentinelUsername"),
            password: parameter("sentinelPassword"),
        },
        _ => ServerConfig::Centralized { server: hosts.swap_remove(0) },
    })
}

fn database(kind: Kind, url: &Url, parameter: Option<String>) -> Result<Option<u8>, String> {
    let text = match kind {
        Kind::Unix => parameter.unwrap_or_default(),
        _ => url.path().trim_start_matches('/').to_owned(),
    };
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().map_err(|_| {
        format!("has the database {text}, which is no number up to 255; use one such as /0, or remove it")
    })?;
    match kind == Kind::Cluster && number != 0 {
        true => Err(format!("has the database {number}, and a cluster has only one; remove it")),
        false => Ok(Some(number)),
    }
}

fn decoded(text: &str) -> Result<Option<String>, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    let decoded =
        decoded.map_err(|_| "has a user, password or path that is not UTF-8".to_owned())?;
    Ok(Some(decoded.into_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::redis::tls::RedisTls;

    fn options(url: &str) -> RedisOptions {
        RedisOptions {
            url: url.to_owned(),
            tls: RedisTls::default(),
            cluster: false,
            namespace: String::new(),
            database: String::new(),
            connections: 1,
            command_timeout: Duration::ZERO,
            lease_ttl: Duration::ZERO,
            coverage: Duration::ZERO,
        }
    }

    fn read(url: &str) -> Result<Config, String> {
        config(&options(url))
    }

    fn centralized(host: &str, port: u16) -> ServerConfig {
        ServerConfig::Centralized { server: Server::new(host, port) }
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        let single = read("redis://app:p%40ss%23@cache.example:7000/3").unwrap();
        assert_eq!(single.server, centralized("cache.example", 7000));
        assert_eq!(
            (single.username.as_deref(), single.password.as_deref()),
            (Some("app"), Some("p@ss#"))
        );
        assert_eq!(
            (single.database, single.tls.is_some(), single.fail_fast),
            (Some(3), false, false)
        );
        assert_eq!(read("valkey://[::1]").unwrap().server, centralized("::1", 6379));
        assert_eq!(read("redis://:secret@h/").unwrap().password.as_deref(), Some("secret"));
        assert!(read("rediss://h").unwrap().tls.is_some());
        assert!(read("valkeys-cluster://h").unwrap().tls.is_some());
        let cluster = read("redis-cluster://a?node=b:7001&node=[::2]:7002").unwrap().server;
        let hosts = vec![Server::new("a", 6379), Server::new("b", 7001), Server::new("::2", 7002)];
        assert_eq!(cluster.hosts(), hosts);
        assert!(cluster.is_clustered());
        let sentinel =
            "redis-sentinel://u:p@a/2?sentinelServiceName=shop&node=b:1&sentinelPassword=s";
        let sentinel = read(sentinel).unwrap();
        assert_eq!(sentinel.database, Some(2));
        let ServerConfig::Sentinel { hosts, service_name, username, password } = sentinel.server
        else {
            panic!("no sentinel");
        };
        assert_eq!(hosts, [Server::new("a", 26379), Server::new("b", 1)]);
        assert_eq!((&*service_name, username, password.as_deref()), ("shop", None, Some("s")));
        for url in [
            "unix:///run/redis.sock?db=1&password=x",
            "redis+unix:///run/redis.sock?db=1&password=x",
        ] {
            let unix = read(url).unwrap();
            assert_eq!(unix.server, ServerConfig::Unix { path: "/run/redis.sock".into() });
            assert_eq!((unix.database, unix.password.as_deref()), (Some(1), Some("x")));
        }
        let options = RedisOptions { cluster: true, ..options("redis://h") };
        assert!(config(&options).unwrap().server.is_clustered());
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (url, why) in [
            ("http://h", "has the scheme \"http\"; use redis://"),
            ("h:6379", "is no URL; use redis://"),
            ("redis-cache://h", "has the scheme \"redis-cache\""),
            ("redis://h:x", "cannot be read: invalid port number"),
            ("redis://", "has no host"),
            ("redis:///1", "has no host"),
            ("redis://h/one", "has the database one, which is no number up to 255; use"),
            ("redis://h/1/2", "has the database 1/2, which"),
            ("redis://h/256", "has the database 256, which"),
            (
                "redis://h?timeout=3",
                "has the parameter timeout, which has no effect here; remove it: a single server has none",
            ),
            ("redis://h?node=b:1", "has the parameter node, which has no effect"),
            (
                "redis-cluster://h?nodes=b",
                "has the parameter nodes, which has no effect here; remove it: a cluster has node",
            ),
            ("redis-cluster://h?node=b", "has node=b; use node=HOST:PORT"),
            ("redis-cluster://h?node=:1", "has node=:1; use"),
            ("redis-cluster://h/1", "has the database 1, and a cluster has only one"),
            ("redis-sentinel://h", "does not name what the sentinels watch"),
            ("redis-sentinel://h?sentinelServiceName=", "does not name what the sentinels watch"),
            ("unix://run/redis.sock", "has no absolute path; use unix:///run"),
            ("unix:///", "has no absolute path"),
            ("redis://u:pa#ss@h", "has one of / ? #"),
            ("redis://:%ff@h", "has a user, password or path that is not UTF-8"),
        ] {
            let refused = read(url).unwrap_err();
            assert!(refused.starts_with(&format!("REDIS_URL {why}")), "{url}: {refused}");
        }
        for url in ["unix:///s", "redis-sentinel://h?sentinelServiceName=a"] {
            let options = RedisOptions { cluster: true, ..options(url) };
            assert!(config(&options).unwrap_err().starts_with("REDIS_CLUSTER does not go with"));
        }
        let tls = RedisTls { ca: Some("/ca.pem".into()), ..RedisTls::default() };
        let options = RedisOptions { tls, ..options("redis://h") };
        assert!(config(&options).unwrap_err().contains("use rediss://"));
    }
}
