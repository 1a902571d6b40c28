//! The admin port: hostile use of it does not affect the service.

use std::fs;

use hotshelf::config::{Cli, Command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{HANG, Program, Stack, Suite, get};

/// Concurrent incomplete requests.
const HALVES: usize = 300;
/// Bound on the admin port's connections.
const MOST_OPEN: usize = 64;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("admin_port::half_requests_take_nothing_from_the_service", half_requests);
    suite.single("admin_port::a_head_that_is_too_large_is_refused", large_head);
    suite.plain("admin_port::it_is_for_this_machine_unless_it_is_set", loopback);
}

fn files(program: &Program) -> usize {
    fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().count()
}

async fn half_requests(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &[]).await;
    program.client().await.get_product(get(id)).await.unwrap();
    assert_eq!(program.admin("/livez").await, (200, "alive\n".to_owned()));
    let before = files(&program);
    let mut halves = Vec::new();
    for _ in 0..HALVES {
        let mut socket = TcpStream::connect(("127.0.0.1", program.admin_port())).await.unwrap();
        // The server may have closed it already.
        let _ = socket.write_all(b"GET /livez HTTP/1.1\r\nHost: ").await;
        halves.push(socket);
    }
    // Sent after all of them.
    assert_eq!(program.admin("/livez").await, (200, "alive\n".to_owned()));
    let open = files(&program);
    // Connections to Redis and PostgreSQL are opened and closed, too.
    assert!(open <= before + MOST_OPEN + 10, "{before} file descriptors, then {open}");
    // The oldest connections are closed first.
    for socket in halves.iter_mut().take(HALVES - MOST_OPEN) {
        closed(socket).await;
    }
    assert_eq!(program.admin("/metrics").await.0, 200);
    program.client().await.get_product(get(id)).await.unwrap();
    for socket in &mut halves {
        closed(socket).await;
    }
}

async fn closed(socket: &mut TcpStream) {
    let mut buffer = [0; 1_024];
    let end = socket.read(&mut buffer);
    let end = tokio::time::timeout(HANG, end).await.expect("it is closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

async fn large_head(stack: Stack) {
    let program = Program::serve(&stack, &[]).await;
    let mut socket = TcpStream::connect(("127.0.0.1", program.admin_port())).await.unwrap();
    let mut head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec();
    head.resize(64 << 10, b'x');
    // The server closes the connection before the end.
    let _ = socket.write_all(&head).await;
    let mut answer = [0; 12];
    let read = socket.read_exact(&mut answer);
    match tokio::time::timeout(HANG, read).await.expect("at once") {
        Ok(_) => assert_eq!(&answer, b"HTTP/1.1 431"),
        // The kernel resets a connection that is closed with unread bytes.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(program.admin("/livez").await, (200, "alive\n".to_owned()));
}

fn loopback() {
    use clap::Parser;
    let Some(Command::Serve(args)) = Cli::try_parse_from(["hotshelf", "serve"]).unwrap().command
    else {
        panic!("serve is a command");
    };
    assert!(args.serving.admin_addr.ip().is_loopback());
}
