//! The attacks of hostile and broken clients. Each returns the number of its connections and requests.

use hotshelf::proto::{BatchGetProductsRequest, StreamHotKeysRequest};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    Socket, WINDOW_UPDATE, body, frame, headers, setting,
};
use crate::harness::{HANG, Raw};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const WATCH: &str = "/hotshelf.v1.ProductService/StreamHotKeys";
const METHODS: [&str; 7] = [
    GET,
    BATCH,
    WATCH,
    "/hotshelf.v1.ProductService/UpdateProduct",
    "/hotshelf.v1.AdminService/ExplainProduct",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.Health/Check",
];
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Requests of an attack that sends several on one connection.
const BURST: usize = 20;
/// Requests of an attack that floods one connection.
const FLOOD: usize = 100;

fn noise(random: &mut StdRng, longest: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..longest)];
    random.fill_bytes(&mut bytes);
    bytes
}

fn method(random: &mut StdRng) -> &'static str {
    METHODS[random.random_range(0..METHODS.len())]
}

/// No HTTP/2: noise, HTTP/1, a part of the preface.
pub async fn no_http2(port: u16, random: &mut StdRng) -> usize {
    let Some(mut socket) = Socket::connect(port).await else { return 1 };
    let bytes = match random.random_range(0..3) {
        0 => noise(random, 2_000),
        1 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        _ => PREFACE[..random.random_range(0..PREFACE.len())].to_vec(),
    };
    socket.send(&bytes).await;
    1
}

/// Frames with random type, flags, stream, length and content, after a valid preface and SETTINGS.
pub async fn fuzzed_frames(port: u16, random: &mut StdRng) -> usize {
    let Some(mut socket) = Socket::greeted(port, &frame(SETTINGS, 0, 0, &[])).await else {
        return 1;
    };
    for _ in 0..random.random_range(1..30) {
        let (kind, flags) = (random.random_range(0..12), random.random_range(0..64));
        let stream = random.random_range(0..12);
        let mut bytes = match random.random_bool(0.5) {
            true => frame(kind, flags, stream, &noise(random, 300)),
            false => {
                let block = headers("POST", method(random));
                frame(HEADERS, flags | END_HEADERS, stream, &block)
            }
        };
        // Sometimes the length is wrong.
        if random.random_ratio(1, 5) {
            bytes[2] = bytes[2].wrapping_add(random.random_range(1..40));
        }
        if !socket.send(&bytes).await {
            break;
        }
    }
    1
}

/// Well-formed HTTP/2 with bodies that are no gRPC, or no message.
pub async fn fuzzed_bodies(port: u16, random: &mut StdRng) -> usize {
    let Ok(raw) = Raw::try_connect(port).await else { return 1 };
    for sent in 0..BURST {
        let mut bytes = noise(random, 400);
        match random.random_range(0..4) {
            // A frame with the right length, and noise as its message.
            0 => bytes = crate::harness::framed(&bytes).to_vec(),
            // A wrong compressed flag, and a wrong length.
            1 => bytes.splice(0..0, [1, 0, 0, 1, 0]).for_each(drop),
            2 => bytes.splice(0..0, [0, 255, 255, 255, 255]).for_each(drop),
            _ => {}
        }
        let call = raw.call_with(method(random), http::HeaderMap::new(), bytes.into());
        // A call that does not end is cancelled, as by a client with a timeout.
        let answer = tokio::time::timeout(std::time::Duration::from_millis(200), call).await;
        if matches!(answer, Ok(Err(_))) {
            return sent + 1;
        }
    }
    BURST
}

/// Headers without END_HEADERS.
pub async fn endless_headers(port: u16, random: &mut StdRng) -> usize {
    let Some(mut socket) = Socket::greeted(port, &frame(SETTINGS, 0, 0, &[])).await else {
        return 1;
    };
    socket.send(&frame(HEADERS, 0, 1, &headers("POST", GET))).await;
    let chunk = noise(random, 16_000);
    for _ in 0..200 {
        if !socket.send(&frame(CONTINUATION, 0, 1, &chunk)).await {
            break;
        }
    }
    1
}

/// Requests that are reset as soon as they are sent.
pub async fn rapid_reset(port: u16, random: &mut StdRng) -> usize {
    let Some(mut socket) = Socket::greeted(port, &frame(SETTINGS, 0, 0, &[])).await else {
        return 1;
    };
    let cancel = 8_u32.to_be_bytes();
    for sent in 0..FLOOD {
        let stream = u32::try_from(2 * sent + 1).unwrap();
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &headers("POST", method(random)));
        bytes.extend(frame(RST_STREAM, 0, stream, &cancel));
        if !socket.send(&bytes).await {
            return sent + 1;
        }
    }
    FLOOD
}

/// A request, or a part of it, and a reset of the connection.
pub async fn abrupt_disconnect(port: u16, random: &mut StdRng) -> usize {
    let Some(mut socket) = Socket::greeted(port, &frame(SETTINGS, 0, 0, &[])).await else {
        return 1;
    };
    let mut request = frame(HEADERS, END_HEADERS, 1, &headers("POST", method(random)));
    request.extend(body(1, &[8, 1]));
    request.truncate(random.random_range(0..=request.len()));
    socket.send(&request).await;
    1
}

/// CONNECT, which the server does not offer, and other methods.
pub async fn other_methods(port: u16, random: &mut StdRng) -> usize {
    let Some(mut socket) = Socket::greeted(port, &frame(SETTINGS, 0, 0, &[])).await else {
        return 1;
    };
    // CONNECT has only an authority.
    let connect = b"\x00\x07:method\x07CONNECT\x00\x0a:authority\x09localhost".to_vec();
    for sent in 0..BURST {
        let stream = u32::try_from(2 * sent + 1).unwrap();
        let block = match random.random_range(0..3) {
            0 => headers("GET", method(random)),
            _ => connect.clone(),
        };
        if !socket.send(&frame(HEADERS, END_HEADERS, stream, &block)).await {
            return sent + 1;
        }
    }
    BURST
}

/// Requests batches and streams with a window of zero for the responses, and pings without reading. Returns the
/// connection, because the attack lasts until it is dropped.
pub async fn never_reads(
    port: u16,
    random: &mut StdRng,
    products: &[i64],
) -> Option<(Socket, usize)> {
    let mut socket = Socket::greeted(port, &setting(INITIAL_WINDOW_SIZE, 0)).await?;
    let batch = BatchGetProductsRequest { ids: products.to_vec(), ..Default::default() };
    let (batch, watch) = (batch.encode_to_vec(), StreamHotKeysRequest::default().encode_to_vec());
    for sent in 0..FLOOD {
        let stream = u32::try_from(2 * sent + 1).unwrap();
        let (path, message) =
            if random.random_bool(0.9) { (BATCH, &batch) } else { (WATCH, &watch) };
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &headers("POST", path));
        bytes.extend(body(stream, message));
        bytes.extend(frame(PING, 0, 0, &[7; 8]));
        if !socket.send(&bytes).await {
            return Some((socket, sent + 1));
        }
    }
    Some((socket, FLOOD))
}

/// Requests the largest batch this many times, with a window of zero for the responses.
pub async fn unread(port: u16, products: &[i64], times: usize) -> Socket {
    let mut socket = Socket::greeted(port, &setting(INITIAL_WINDOW_SIZE, 0)).await.unwrap();
    let batch = BatchGetProductsRequest { ids: products.to_vec(), ..Default::default() };
    for sent in 0..times {
        let stream = u32::try_from(2 * sent + 1).unwrap();
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &headers("POST", BATCH));
        bytes.extend(body(stream, &batch.encode_to_vec()));
        assert!(socket.send_within(HANG, &bytes).await);
    }
    socket
}

/// Valid calls, all at once: each a message, and then the end of the stream.
pub async fn burst(port: u16, product: i64, calls: usize) -> Socket {
    let wide = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
    let begin = [frame(SETTINGS, 0, 0, &[]), wide].concat();
    let mut socket = Socket::greeted(port, &begin).await.unwrap();
    let message = crate::harness::framed(&crate::harness::get(product).encode_to_vec());
    for sent in 0..calls {
        let stream = u32::try_from(2 * sent + 1).unwrap();
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &headers("POST", GET));
        bytes.extend(frame(DATA, 0, stream, &message));
        bytes.extend(frame(DATA, END_STREAM, stream, &[]));
        assert!(socket.send_within(HANG, &bytes).await);
    }
    socket
}
