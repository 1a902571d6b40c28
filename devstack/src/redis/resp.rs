//! The part of the Redis protocol (RESP2) that one command and its reply need.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::Error;

/// For the connection and for each read: a paused server causes an error instead of a hang.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A reply, flattened to text.
enum Reply {
    Text(String),
    Error(String),
}

pub(super) fn command(port: u16, words: &[&str]) -> Result<String, Error> {
    let name = words.first().copied().unwrap_or_default();
    match ask(port, words).map_err(Error::io(format!("{name} to Redis on port {port}")))? {
        Reply::Text(text) => Ok(text),
        Reply::Error(reply) => Err(Error::Refused { port, command: name.to_owned(), reply }),
    }
}

fn ask(port: u16, words: &[&str]) -> io::Result<Reply> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&encode(words))?;
    read_reply(&mut BufReader::new(stream))
}

fn encode(words: &[&str]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    request.into_bytes()
}

fn read_reply(input: &mut impl BufRead) -> io::Result<Reply> {
    let line = read_line(input)?;
    let Some((kind, rest)) = line.split_at_checked(1) else { return Err(malformed(&line)) };
    match kind {
        "+" | ":" => Ok(Reply::Text(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        "$" => read_bulk(input, parse_length(rest)?).map(Reply::Text),
        "*" => read_array(input, parse_length(rest)?).map(Reply::Text),
        _ => Err(malformed(&line)),
    }
}

fn read_bulk(input: &mut impl BufRead, length: Option<usize>) -> io::Result<String> {
    let Some(length) = length else { return Ok(nil()) };
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    input.read_exact(&mut [0; 2])?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_array(input: &mut impl BufRead, length: Option<usize>) -> io::Result<String> {
    let Some(length) = length else { return Ok(nil()) };
    let mut lines = Vec::with_capacity(length);
    for _ in 0..length {
        // An error within an array, as from a transaction, is an element like another.
        let (Reply::Text(line) | Reply::Error(line)) = read_reply(input)?;
        lines.push(line);
    }
    Ok(lines.join("\n"))
}

/// `None` is the protocol's -1, which means nil.
fn parse_length(text: &str) -> io::Result<Option<usize>> {
    if text == "-1" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| malformed(text))
}

fn read_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn nil() -> String {
    "(nil)".to_owned()
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a Redis reply: {text:?}"))
}
