//! A collector that decodes OTLP over HTTP.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::eventually;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Answers,
    /// Accepts connections, and does not answer.
    Hangs,
    /// Answers with HTTP 503.
    Fails,
}

pub struct Collector {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    behaviour: Behaviour,
    /// Of the last request, in lower case.
    head: String,
    resource: Vec<(String, String)>,
    spans: Vec<Span>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (head, resource, spans) = Default::default();
        let state = State { behaviour: Behaviour::Answers, head, resource, spans };
        let state = Arc::new(Mutex::new(state));
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&served)));
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
    }

    pub fn spans(&self) -> Vec<Span> {
        self.state.lock().unwrap().spans.clone()
    }

    pub fn head(&self) -> String {
        self.state.lock().unwrap().head.clone()
    }

    pub fn resource(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().resource.clone()
    }

    /// The spans of a trace, once there are `count`; fails when there are more.
    pub async fn trace(&self, trace: u128, count: usize) -> Vec<Span> {
        let of_trace = || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace_id == trace.to_be_bytes());
            spans
        };
        let what = format!("{count} spans of the trace");
        eventually(&what, async || of_trace().len() >= count).await;
        of_trace()
    }
}

async fn serve(socket: TcpStream, state: Arc<Mutex<State>>) {
    let mut socket = BufReader::new(socket);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if socket.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(given) = line.strip_prefix("content-length: ") {
            length = given.parse().unwrap();
        }
        head += &format!("{line}\n");
    }
    let mut body = vec![0; length];
    if socket.read_exact(&mut body).await.is_err() {
        return;
    }
    let behaviour = state.lock().unwrap().behaviour;
    let answer = match behaviour {
        Behaviour::Hangs => return std::future::pending().await,
        Behaviour::Fails => "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into(),
        Behaviour::Answers => {
            record(&mut state.lock().unwrap(), head, &body);
            let answer = ExportTraceServiceResponse::default().encode_to_vec();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len())
        }
    };
    let _ = socket.write_all(answer.as_bytes()).await;
}

fn record(state: &mut State, head: String, body: &[u8]) {
    state.head = head;
    for of_resource in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
        let attributes = of_resource.resource.unwrap().attributes.into_iter();
        let text = |value| match value {
            Value::StringValue(text) => text,
            other => panic!("{other:?}"),
        };
        let pairs = attributes.map(|one| (one.key, text(one.value.unwrap().value.unwrap())));
        state.resource = pairs.collect();
        state.spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
    }
}
