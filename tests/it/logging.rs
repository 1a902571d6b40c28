//! The log: neither callers nor a stalled reader of the log can harm the service.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{HANG, Program, Stack, Suite, admin, channel, eventually, free_port, get};

/// Unsolicited frames; a line for each would be 15 MB.
const FRAMES: usize = 100_000;
/// Bound on their bytes in the log.
const MOST_LOGGED: usize = 16 << 10;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("logging::unsolicited_frames_leave_a_few_lines", unasked);
    suite.single("logging::a_log_that_is_not_read_stops_nothing", unread);
    suite.single("logging::refusals_name_the_callers_address", refusals);
    suite.single("logging::the_log_in_json_is_one_object_in_each_line", json);
}

const PING: u8 = 6;
const ACK: u8 = 1;

fn ping(flags: u8, number: u64) -> Vec<u8> {
    [&[0, 0, 8, PING, flags, 0, 0, 0, 0][..], &number.to_be_bytes()].concat()
}

/// Sends acknowledgements without a ping, all different, and waits until all are processed.
async fn acknowledge_nothing(port: u16) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut reader, mut writer) = socket.split();
    let send = async {
        writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        writer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let frames = (0..FRAMES as u64).flat_map(|number| ping(ACK, number));
        writer.write_all(&frames.chain(ping(0, u64::MAX)).collect::<Vec<_>>()).await.unwrap();
    };
    let answered = async {
        loop {
            let mut head = [0; 9];
            reader.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            reader.read_exact(&mut payload).await.unwrap();
            if (head[3], head[4]) == (PING, ACK) && payload == u64::MAX.to_be_bytes() {
                break;
            }
        }
    };
    let done = async { tokio::join!(send, answered) };
    tokio::time::timeout(HANG, done).await.expect("processed");
}

async fn unasked(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &[]).await;
    let (before, mut neighbour) = (program.log().len(), program.client().await);
    let reads = async {
        for _ in 0..200 {
            neighbour.get_product(get(id)).await.unwrap();
        }
    };
    tokio::join!(acknowledge_nothing(program.port()), reads);
    let log = program.log();
    assert!(!log[before..].contains("PING"), "{} bytes", log.len());
    assert!(log.len() < MOST_LOGGED, "{} bytes", log.len());
    // With h2's warnings on, their number is limited, and the rest is counted.
    let mut command = Program::serving(&stack, &[]);
    command.env("RUST_LOG", "info,h2=warn");
    let asked = Program::start(command).await;
    acknowledge_nothing(asked.port()).await;
    let left_out = async || asked.log().contains("repeated lines were left out of the log");
    eventually("it is reported", left_out).await;
    let log = asked.log();
    let lines = log.lines().filter(|line| line.contains("PING ack that we never sent:"));
    // A stall of the machine may extend this into a second window.
    assert!((20..=60).contains(&lines.clone().count()), "{} bytes", log.len());
    assert!(log.len() < MOST_LOGGED, "{} bytes", log.len());
}

/// Standard error is a pipe that holds 64 KiB.
async fn unread(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (grpc, admin_port) = (free_port(), free_port());
    let addresses = [format!("127.0.0.1:{grpc}"), format!("127.0.0.1:{admin_port}")];
    let options = ["--grpc-addr", &addresses[0], "--admin-addr", &addresses[1]];
    let mut command = Program::serving(&stack, &options);
    command.env("RUST_LOG", "trace,h2=trace,hyper=trace");
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let _unread = child.stderr.take().unwrap();
    let listens = async || TcpStream::connect(("127.0.0.1", admin_port)).await.is_ok();
    eventually("it listens", listens).await;
    let ready = async || admin(admin_port, "/readyz").await.0 == 200;
    eventually("it is ready", ready).await;
    let client = hotshelf::proto::ProductServiceClient::new(channel(grpc).await);
    eventually("the log is full, and lines are dropped and counted", async || {
        for _ in 0..50 {
            let mut client = client.clone();
            let read = tokio::time::timeout(HANG, client.get_product(get(id))).await;
            read.expect("served").unwrap();
        }
        let (_, text) = admin(admin_port, "/metrics").await;
        let dropped =
            |line: &str| line.strip_prefix("hotshelf_log_lines_dropped_total ")?.parse().ok();
        text.lines().find_map(dropped).is_some_and(|dropped: f64| dropped > 0.0)
    })
    .await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = tokio::time::timeout(HANG, child.wait()).await.expect("it ends, too");
    assert_eq!(ended.unwrap().code(), Some(0));
}

async fn refusals(stack: Stack) {
    const REFUSED: usize = 50;
    let program = Program::serve(&stack, &["--max-connections", "1"]).await;
    assert_eq!(program.admin("/callers").await, (200, String::new()));
    let held = channel(program.port()).await;
    let mut client = hotshelf::proto::ProductServiceClient::new(held);
    let id = stack.insert("walnut desk lamp").await;
    client.get_product(get(id)).await.unwrap();
    for _ in 0..REFUSED {
        let mut socket = TcpStream::connect(("127.0.0.1", program.port())).await.unwrap();
        // The server closes it at once.
        let end = tokio::time::timeout(HANG, socket.read(&mut [0; 64])).await.expect("closed");
        assert!(matches!(end, Ok(0) | Err(_)));
    }
    let callers = (200, format!("{REFUSED} 127.0.0.1\n"));
    eventually("all are counted", async || program.admin("/callers").await == callers).await;
    let said = async || program.log().contains("refused to stay within limits");
    eventually("it is logged", said).await;
    // At most one line in ten seconds.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let log = program.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("refused to stay")).collect();
    assert!(lines.len() < REFUSED / 5, "{log}");
    assert!(lines[0].contains("peer=127.0.0.1:"), "{log}");
    assert!(lines[0].contains("reason=\"connections\""), "{log}");
}

async fn json(stack: Stack) {
    let program = Program::serve(&stack, &["--log-format", "json"]).await;
    program.signal(Signal::SIGTERM);
    eventually("it has stopped", async || program.log().contains("\"stopped\"")).await;
    let log = program.log();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        for key in ["timestamp", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key} is not in {line}");
        }
        assert_eq!(line.get("trace_id"), None);
    }
    let stopped = log.lines().find(|line| line.contains("\"stopped\"")).unwrap();
    let stopped: serde_json::Value = serde_json::from_str(stopped).unwrap();
    assert_eq!((&stopped["level"], &stopped["target"]), (&"INFO".into(), &"hotshelf".into()));
    assert_eq!(stopped["fields"]["in_time"], true);

    let port = program.port();
    drop(program);
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = Program::serving(&stack, &["--log-format", "json", "--grpc-addr", &address]);
    let output = command.output().await.unwrap();
    let last = String::from_utf8(output.stderr).unwrap();
    let last: serde_json::Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("is in use by another process"), "{message}");
}
