//! A client that writes HTTP/2 frames itself, the same as a usual client sends. Each round writes its calls at once, and
//! waits for all responses.

use std::io::{Error, Result};
use std::net::SocketAddr;

use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{PRODUCT_BYTES, PRODUCTS, id};

pub(crate) struct Calls {
    path: &'static str,
    messages: Vec<Vec<u8>>,
    /// The least size of a response that is no error.
    answer_bytes: usize,
    /// Calls of a round.
    pub(crate) at_once: usize,
}

impl Calls {
    pub(crate) fn get_product(at_once: usize) -> Self {
        let request = |n| GetProductRequest { id: id(n).get(), freshness: None }.encode_to_vec();
        Self {
            path: "/hotshelf.v1.ProductService/GetProduct",
            messages: (0..PRODUCTS).map(request).collect(),
            answer_bytes: PRODUCT_BYTES,
            at_once,
        }
    }

    pub(crate) fn batch_get_products(products: usize, at_once: usize) -> Self {
        let request = |batch: usize| {
            let ids = (0..products).map(|n| id((batch * products + n) % PRODUCTS).get());
            BatchGetProductsRequest { ids: ids.collect(), ..Default::default() }.encode_to_vec()
        };
        Self {
            path: "/hotshelf.v1.ProductService/BatchGetProducts",
            messages: (0..PRODUCTS / products).map(request).collect(),
            answer_bytes: products * PRODUCT_BYTES,
            at_once,
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// So large that the client never has to send another WINDOW_UPDATE.
const WINDOW: u32 = 0x7FFF_FFFF;
const INITIAL_WINDOW: u32 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_HEAD: usize = 9;

/// `:method: POST` and `:scheme: http` in HPACK's static table.
const POST: u8 = 0x83;
const HTTP: u8 = 0x86;
/// All headers of a call; the first call has put the last five into the dynamic table.
const INDEXED_HEADERS: [u8; 7] = [POST, HTTP, 0xC2, 0xC1, 0xC0, 0xBF, 0xBE];

pub(crate) struct Client {
    socket: TcpStream,
    calls: Calls,
    called: usize,
    received: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, calls: Calls) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut hello = PREFACE.to_vec();
        let initial_window_size = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
        frame(&mut hello, SETTINGS, 0, 0, &initial_window_size);
        frame(&mut hello, WINDOW_UPDATE, 0, 0, &(WINDOW - INITIAL_WINDOW).to_be_bytes());
        socket.write_all(&hello).await?;
        let mut client = Self { socket, calls, called: 0, received: Vec::new() };
        while !client.received.starts_with(&[0]) || client.received[3] != SETTINGS {
            client.receive().await?;
        }
        let mut first = Vec::new();
        frame(&mut first, SETTINGS, ACK, 0, &[]);
        let headers = client.first_headers();
        client.call(&mut first, &headers);
        client.socket.write_all(&first).await?;
        client.answers(1).await?;
        Ok(client)
    }

    /// Each round sends `at_once` calls and waits for their responses.
    pub(crate) async fn rounds(&mut self, rounds: usize) -> Result<()> {
        for _ in 0..rounds {
            let mut requests = Vec::new();
            (0..self.calls.at_once).for_each(|_| self.call(&mut requests, &INDEXED_HEADERS));
            self.socket.write_all(&requests).await?;
            self.answers(self.calls.at_once).await?;
        }
        Ok(())
    }

    /// With literals, which the server puts into its dynamic table.
    fn first_headers(&self) -> Vec<u8> {
        let mut block = vec![POST, HTTP];
        let mut literal = |name: &[u8], value: &str| {
            block.extend_from_slice(name);
            block.push(u8::try_from(value.len()).expect("short"));
            block.extend_from_slice(value.as_bytes());
        };
        // `:path`, `:authority`, `content-type` and `user-agent` have names in the static table.
        literal(&[0x44], self.calls.path);
        literal(&[0x41], "localhost:50051");
        literal(&[0x5F], "application/grpc");
        literal(b"\x40\x02te", "trailers");
        literal(&[0x7A], "instructions");
        block
    }

    fn call(&mut self, bytes: &mut Vec<u8>, headers: &[u8]) {
        let stream = u32::try_from(2 * self.called + 1).expect("few calls");
        let message = &self.calls.messages[self.called % self.calls.messages.len()];
        let length = u32::try_from(message.len()).expect("a short message");
        let data = [&[0][..], &length.to_be_bytes(), message].concat();
        frame(bytes, HEADERS, END_HEADERS, stream, headers);
        frame(bytes, DATA, END_STREAM, stream, &data);
        self.called += 1;
    }

    /// Waits for this many successful responses.
    async fn answers(&mut self, calls: usize) -> Result<()> {
        let (mut ended, mut data) = (0, 0);
        while ended < calls {
            let mut at = 0;
            while let Some(&[l0, l1, l2, kind, flags, ..]) = self.received.get(at..at + FRAME_HEAD)
            {
                let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                if self.received.len() < at + FRAME_HEAD + length {
                    break;
                }
                at += FRAME_HEAD + length;
                match kind {
                    RST_STREAM | GOAWAY => {
                        return Err(Error::other("the server reset the stream or the connection"));
                    }
                    DATA => data += length,
                    _ => {}
                }
                ended += usize::from(matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0);
            }
            self.received.drain(..at);
            if ended < calls {
                self.receive().await?;
            }
        }
        if data < calls * self.calls.answer_bytes {
            return Err(Error::other("a response was an error"));
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<()> {
        self.received.reserve(64 * 1024);
        match self.socket.read_buf(&mut self.received).await? {
            0 => Err(Error::other("the server closed the connection")),
            _ => Ok(()),
        }
    }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}
