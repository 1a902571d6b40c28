//! A client of which the server notices nothing unusual: real HTTP/2 frames, made by hand. Each round writes its calls at
//! once, and waits for all of their answers.

use std::io::{Error, Result};
use std::net::SocketAddr;

use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::shelf::{PRODUCT_BYTES, PRODUCTS, id};

/// What is called.
pub(crate) struct Calls {
    path: &'static str,
    messages: Vec<Vec<u8>>,
    /// The least that an answer has when it is no error.
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
/// So large that no window ever has to be opened again.
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

/// `:method: POST` and `:scheme: http`, of HPACK's static table.
const POST: u8 = 0x83;
const HTTP: u8 = 0x86;
/// The other headers of a call as the first one left them in the dynamic table.
const REMEMBERED: [u8; 7] = [POST, HTTP, 0xC2, 0xC1, 0xC0, 0xBF, 0xBE];

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

    /// Calls and is answered, so many rounds.
    pub(crate) async fn rounds(&mut self, rounds: usize) -> Result<()> {
        for _ in 0..rounds {
            let mut requests = Vec::new();
            (0..self.calls.at_once).for_each(|_| self.call(&mut requests, &REMEMBERED));
            self.socket.write_all(&requests).await?;
            self.answers(self.calls.at_once).await?;
        }
        Ok(())
    }

    /// With literals that the server puts into its dynamic table.
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

    /// Waits until so many calls have been answered, well.
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
                    RST_STREAM | GOAWAY => return Err(Error::other("the server broke it off")),
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
            return Err(Error::other("an answer was an error"));
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<()> {
        self.received.reserve(64 * 1024);
        match self.socket.read_buf(&mut self.received).await? {
            0 => Err(Error::other("the server closed it")),
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
