//! Reads of one hot product in each protocol of the port.

use anyhow::{Context, Result, ensure};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backends::{self, GET_PRODUCT};
use crate::h2load::{Form, H2load, Shape};
use crate::load::Load;
use crate::measure::{Contender, interleaved};
use crate::reads::{SHAPES, Servers};
use crate::report::{REQUESTS, Section};
use crate::setup::Setup;

/// HTTP/1.1 has one call at a time on a connection.
const SERIAL: Shape = Shape { connections: 64, streams: 1 };

pub(crate) async fn compare(setup: &Setup) -> Result<Vec<Section>> {
    let halves = &setup.halves;
    let (servers, _) = Servers::start(&setup.backends, &halves.servers).await?;
    let server = &servers.hotshelf;
    let product = setup.typical()?;
    let path = format!("/v1/products/{}", product.id);
    let (json, etag) = get(server.port, &path).await?;
    let message = setup.backends.file(&backends::get(product.id).encode_to_vec())?;
    let grpc = setup.typical_read(server, SHAPES[0])?;
    let as_json = Form::Get { path: path.clone(), headers: Vec::new() };
    let if_none_match = format!("if-none-match: {etag}");
    let unchanged = Form::NotModified { path, headers: vec![if_none_match] };
    let by_connect = Form::Post { path: GET_PRODUCT, content_type: "application/proto" };
    let read = |form, reply| H2load { form, reply, ..grpc.clone() };
    let loads = [
        ("gRPC", grpc.clone()),
        ("Connect", H2load { body: message, ..read(by_connect, product.encoded_len()) }),
        ("JSON", read(as_json.clone(), json)),
        ("JSON, 304", read(unchanged, 0)),
        ("JSON, HTTP/1.1", H2load { shape: SERIAL, http1: true, ..read(as_json, json) }),
    ];
    let contender = |(label, load): (&str, H2load)| Contender {
        label: label.to_owned(),
        pids: vec![server.pid],
        load: Load::H2load(H2load { cores: halves.load.clone(), ..load }),
    };
    let contenders: Vec<Contender> = loads.into_iter().map(contender).collect();
    let section = Section {
        key: "protocols".to_owned(),
        title: format!("GetProduct, hot, {}, in each protocol", SHAPES[0]),
        text: format!(
            "One product of {} bytes, {json} as JSON. HTTP/1.1 has {SERIAL}. {}",
            product.encoded_len(),
            halves.note()
        ),
        rows: interleaved(setup.effort, &contenders).await?,
        against: vec!["gRPC"],
        columns: REQUESTS,
    };
    Ok(vec![section])
}

/// The length and the entity tag of a response.
async fn get(port: u16, path: &str) -> Result<(usize, String)> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).context("no etag")?;
    Ok((body.len(), etag.to_owned()))
}
