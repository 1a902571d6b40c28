//! The part of the PostgreSQL protocol that one query needs, so that no client has to be installed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PROTOCOL_3: i32 = 196_608;

pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub(crate) fn open(port: u16, database: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut connection = Self { stream };
        let parameters = format!("user\0hotshelf\0database\0{database}\0\0");
        let mut startup = PROTOCOL_3.to_be_bytes().to_vec();
        startup.extend(parameters.as_bytes());
        connection.send(&[], &startup)?;
        connection.read_answer()?;
        Ok(connection)
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Sends a query and returns the first column, one line per row.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<String> {
        self.send(b"Q", format!("{sql}\0").as_bytes())?;
        self.read_answer()
    }

    /// Reads until the server is ready for the next query.
    pub(crate) fn read_answer(&mut self) -> io::Result<String> {
        let mut rows = Vec::new();
        loop {
            let (kind, body) = self.read_message()?;
            match kind {
                b'D' => rows.push(first_column(&body)),
                b'E' => {
                    return Err(io::Error::other(
                        String::from_utf8_lossy(&body).replace('\0', " "),
                    ));
                }
                b'Z' => return Ok(rows.join("\n")),
                _ => {}
            }
        }
    }

    fn send(&mut self, kind: &[u8], body: &[u8]) -> io::Result<()> {
        let length = i32::try_from(body.len() + 4).map_err(io::Error::other)?;
        self.stream.write_all(&[kind, &length.to_be_bytes(), body].concat())
    }

    fn read_message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

/// The tests select one column. Before its bytes are the number of columns (2 bytes) and the length
/// of this one (4 bytes).
fn first_column(row: &[u8]) -> String {
    String::from_utf8_lossy(&row[6..]).into_owned()
}

/// Runs one query on a connection of its own.
pub(crate) fn query(port: u16, sql: &str) -> io::Result<String> {
    Connection::open(port, "hotshelf")?.query(sql)
}
