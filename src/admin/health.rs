//! `hotshelf health`: asks the admin port of a running instance, for health checks of containers without a shell.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// The longest body that is read, in bytes: `/readyz` answers in lines.
const MAX_ANSWER: u64 = 64 * 1024;

/// Asks for `path`. `Ok` is the body of a 200.
///
/// # Errors
/// One sentence: no answer within `timeout`, or the body of another status.
pub fn ask(address: SocketAddr, path: &str, timeout: Duration) -> Result<String, String> {
    let address = callable(address);
    let unreachable = |error: std::io::Error| format!("{address}{path} does not answer: {error}");
    let mut stream = TcpStream::connect_timeout(&address, timeout).map_err(unreachable)?;
    stream.set_read_timeout(Some(timeout)).map_err(unreachable)?;
    stream.set_write_timeout(Some(timeout)).map_err(unreachable)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(unreachable)?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).map_err(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let body = body.trim().to_owned();
    match head.split(' ').nth(1) {
        Some("200") => Ok(body),
        Some(status) => Err(format!("{address}{path} answers {status}: {body}")),
        None => Err(format!("{address}{path} does not answer in HTTP")),
    }
}

/// A wildcard address can be bound and not called.
fn callable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
