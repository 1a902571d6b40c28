//! Slots in the replies of cluster nodes: CLUSTER SLOTS, MOVED and ASK. A host that is not announced (null, empty or `?`) stands
//! for the host that was asked, and a port of 0 for the port that was asked.

use fred::error::{Error, ErrorKind};
use fred::types::Value;
use fred::types::config::Server;

/// A range of slots and the master that serves it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) server: Server,
}

/// Where the command must be sent instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    /// MOVED: the slot has moved. Otherwise ASK: only this command goes there.
    pub(super) moved: bool,
    pub(super) server: Server,
}

impl Redirect {
    /// Parses `MOVED 3999 127.0.0.1:6381` or `ASK ...`, a reply of `asked`.
    pub(super) fn of(error: &Error, asked: &Server) -> Option<Self> {
        let mut words = error.details().split(' ');
        let moved = match words.next()? {
            "MOVED" => true,
            "ASK" => false,
            _ => return None,
        };
        let (host, port) = words.nth(1)?.rsplit_once(':')?;
        Some(Self { moved, server: server(host, port.parse().ok()?, asked) })
    }
}

/// Parses the reply of `asked` to CLUSTER SLOTS. Ranges that cannot be parsed are left out.
///
/// # Errors
/// When the reply is not an array.
pub(super) fn ranges(reply: Value, asked: &Server) -> Result<Vec<Range>, Error> {
    let Value::Array(ranges) = reply else {
        return Err(Error::new(ErrorKind::Protocol, "no reply to CLUSTER SLOTS"));
    };
    Ok(ranges.into_iter().filter_map(|range| self::range(range, asked)).collect())
}

// First slot, last slot, master, replicas. A node is host, port, id, and since Redis 7 its other names by kind.
fn range(range: Value, asked: &Server) -> Option<Range> {
    let Value::Array(range) = range else { return None };
    let [first, last, Value::Array(master), ..] = &range[..] else { return None };
    let slot = |value: &Value| Some(u16::try_from(value.as_i64()?).ok()?.min(16_383));
    let (first, last) = (slot(first)?, slot(last)?);
    let host = master.first()?.as_string().unwrap_or_default();
    let port = u16::try_from(master.get(1)?.as_i64()?).ok()?;
    let named = |kind: &str| named(master.get(3), kind);
    // "?" means that the cluster prefers hostnames and this node has none. Its address is used then: it may be on another
    // machine than the node that was asked.
    let host = if host == "?" { named("ip").unwrap_or_default() } else { host };
    let mut server = server(&host, port, asked);
    let is_address = server.host.parse::<std::net::IpAddr>().is_ok();
    // Certificates are mostly issued for names.
    server.tls_server_name = named("hostname").filter(|_| is_address).map(Into::into);
    (first <= last).then_some(Range { first, last, server })
}

/// One of a node's other names, which come as a flat list (RESP2) or as a map (RESP3).
fn named(names: Option<&Value>, kind: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = match names?.clone() {
        Value::Map(map) => map
            .inner()
            .into_iter()
            .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value.into_string()?)))
            .collect(),
        Value::Array(flat) => flat
            .chunks_exact(2)
            .filter_map(|pair| Some((pair[0].as_string()?, pair[1].as_string()?)))
            .collect(),
        _ => return None,
    };
    let found = pairs.into_iter().find(|(name, _)| name == kind);
    found.map(|(_, value)| value).filter(|value| !value.is_empty())
}

fn server(host: &str, port: u16, asked: &Server) -> Server {
    let host = bare(host);
    let same_host = host.is_empty() || host == "?";
    Server {
        host: if same_host { asked.host.clone() } else { host.into() },
        port: if port == 0 { asked.port } else { port },
        tls_server_name: if same_host { asked.tls_server_name.clone() } else { None },
    }
}

/// An IPv6 address without the brackets of a URL.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Server {
        Server::new("asked", 7_000)
    }

    fn reply(host: Value, port: i64, names: &[&str]) -> Value {
        let names = names.iter().map(|name| Value::from(*name)).collect();
        let master = vec![host, port.into(), "id".into(), Value::Array(names)];
        let replica = vec!["elsewhere".into(), 1.into(), "id".into()];
        let range = vec![0.into(), 16_383.into(), Value::Array(master), Value::Array(replica)];
        Value::Array(vec![Value::Array(range)])
    }

    fn server_of(host: impl Into<Value>, port: i64, names: &[&str]) -> (String, u16) {
        let ranges = ranges(reply(host.into(), port, names), &asked()).expect("a reply");
        let [Range { first: 0, last: 16_383, server }] = &ranges[..] else { panic!("{ranges:?}") };
        (server.host.to_string(), server.port)
    }

    #[test]
    fn a_host_is_found_however_it_is_announced() {
        let is = |host: &str, port| (host.to_owned(), port);
        assert_eq!(server_of("10.0.0.1", 7_001, &[]), is("10.0.0.1", 7_001));
        assert_eq!(server_of("redis-1.example", 7_001, &[]), is("redis-1.example", 7_001));
        assert_eq!(
            server_of("", 7_001, &[]),
            is("asked", 7_001),
            "it does not have its own address yet"
        );
        assert_eq!(server_of(Value::Null, 7_001, &[]), is("asked", 7_001), "unknown-endpoint");
        let names = ["ip", "10.0.0.2"];
        assert_eq!(server_of(Value::Null, 7_001, &names), is("asked", 7_001), "unknown-endpoint");
        assert_eq!(server_of("?", 7_001, &names), is("10.0.0.2", 7_001), "no hostname");
        assert_eq!(server_of("?", 7_001, &[]), is("asked", 7_001));
        assert_eq!(server_of("fd00::7", 7_001, &[]), is("fd00::7", 7_001));
        assert_eq!(server_of("10.0.0.1", 0, &[]), is("10.0.0.1", 7_000), "only a TLS port");
    }

    #[test]
    fn tls_takes_the_name_of_a_host_that_is_announced_by_its_address() {
        let names = ["hostname", "redis-1.example"];
        let ranges = ranges(reply("10.0.0.1".into(), 7_001, &names), &asked()).expect("a reply");
        assert_eq!(ranges[0].server.host, "10.0.0.1");
        assert_eq!(ranges[0].server.tls_server_name.as_deref(), Some("redis-1.example"));
    }

    #[test]
    fn a_range_that_cannot_be_read_does_not_hide_the_others() {
        let Value::Array(mut ranges) = reply("a".into(), 7_001, &[]) else { unreachable!() };
        ranges.insert(0, Value::Array(vec![1.into(), 2.into()]));
        let read = super::ranges(Value::Array(ranges), &asked()).expect("a reply");
        assert_eq!(read.len(), 1);
    }

    #[test]
    fn redirects_name_a_server() {
        let to = |text: &'static str| {
            let error = Error::new(ErrorKind::Cluster, text);
            let Redirect { moved, server } = Redirect::of(&error, &asked())?;
            Some((moved, server.host.to_string(), server.port))
        };
        assert_eq!(to("MOVED 1 10.0.0.1:7001"), Some((true, "10.0.0.1".to_owned(), 7_001)));
        assert_eq!(to("ASK 1 :7001"), Some((false, "asked".to_owned(), 7_001)));
        assert_eq!(to("MOVED 1 ?:7001"), Some((true, "asked".to_owned(), 7_001)));
        assert_eq!(to("MOVED 1 fd00::7:7001"), Some((true, "fd00::7".to_owned(), 7_001)));
        assert_eq!(to("MOVED 1 [fd00::7]:0"), Some((true, "fd00::7".to_owned(), 7_000)));
        assert_eq!(to("ERR no"), None);
    }
}
