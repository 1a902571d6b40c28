use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use devstack::{ChaosProxy, Direction};

use crate::{SILENCE, eventually};

const DELAY: Duration = Duration::from_millis(250);

/// Its threads end with the test binary.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    addr
}

fn proxied() -> (ChaosProxy, TcpStream) {
    let proxy = ChaosProxy::start(echo_server()).unwrap();
    let client = connect(&proxy);
    (proxy, client)
}

fn connect(proxy: &ChaosProxy) -> TcpStream {
    let client = TcpStream::connect(proxy.addr()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client
}

/// Sends some bytes and returns the time until they came back.
fn echo(client: &mut TcpStream) -> std::io::Result<Duration> {
    let started = Instant::now();
    client.write_all(b"hello")?;
    let mut back = [0; 5];
    client.read_exact(&mut back)?;
    assert_eq!(&back, b"hello");
    Ok(started.elapsed())
}

fn is_silent(client: &mut TcpStream) -> bool {
    client.set_read_timeout(Some(SILENCE)).unwrap();
    let outcome = client.read(&mut [0; 5]);
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    outcome.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

fn is_reset(client: &mut TcpStream) -> bool {
    client.read(&mut [0; 5]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn passes_bytes_both_ways_and_the_end_of_each() {
    let (proxy, mut client) = proxied();
    echo(&mut client).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 5]).unwrap(), 0);
    let counts = proxy.counts();
    assert_eq!((counts.accepted, counts.cut), (1, 0));
    assert_eq!((counts.to_server.passed, counts.to_client.passed), (5, 5));
}

#[test]
fn cut_resets_old_and_new_connections_until_healed() {
    let (proxy, mut client) = proxied();
    echo(&mut client).unwrap();
    proxy.cut();
    assert!(is_reset(&mut client));
    let refused = echo(&mut connect(&proxy));
    assert!(refused.is_err());
    assert_eq!((proxy.counts().cut, proxy.counts().refused), (1, 1));
    proxy.heal();
    echo(&mut connect(&proxy)).unwrap();
}

#[test]
fn a_black_hole_swallows_without_a_reset() {
    let (proxy, mut client) = proxied();
    echo(&mut client).unwrap();
    proxy.black_hole(Direction::ToServer);
    client.write_all(b"hello").unwrap();
    assert!(is_silent(&mut client));
    let counts = proxy.counts();
    assert_eq!((counts.to_server.swallowed, counts.to_client.swallowed), (5, 0));
}

#[test]
fn a_black_hole_to_the_client_lets_requests_through() {
    let (proxy, mut client) = proxied();
    proxy.black_hole(Direction::ToClient);
    client.write_all(b"hello").unwrap();
    eventually("the reply is swallowed", || proxy.counts().to_client.swallowed == 5);
    assert_eq!(proxy.counts().to_server.passed, 5);
    assert!(is_silent(&mut client));
}

#[test]
fn a_new_connection_opens_into_the_black_hole() {
    let (proxy, _) = proxied();
    proxy.black_hole(Direction::Both);
    let mut client = connect(&proxy);
    client.write_all(b"hello").unwrap();
    assert!(is_silent(&mut client));
}

#[test]
fn healing_a_black_hole_resets_only_connections_that_lost_bytes() {
    let (proxy, mut loser) = proxied();
    let mut idle = connect(&proxy);
    echo(&mut loser).unwrap();
    echo(&mut idle).unwrap();
    proxy.black_hole(Direction::Both);
    loser.write_all(b"hello").unwrap();
    eventually("the bytes are swallowed", || proxy.counts().to_server.swallowed == 5);
    proxy.heal();
    assert!(is_reset(&mut loser));
    echo(&mut idle).unwrap();
    assert_eq!(proxy.counts().cut, 1);
}

#[test]
fn a_delay_holds_each_byte_for_its_time() {
    let (proxy, mut client) = proxied();
    proxy.delay(Direction::ToServer, DELAY);
    let one_way = echo(&mut client).unwrap();
    proxy.delay(Direction::ToClient, DELAY);
    let both_ways = echo(&mut client).unwrap();
    assert!(one_way >= DELAY && both_ways >= DELAY * 2, "{one_way:?} {both_ways:?}");
    assert_eq!((proxy.counts().to_server.delayed, proxy.counts().to_client.delayed), (10, 5));
}

#[test]
fn a_delay_is_latency_and_not_a_limit_of_throughput() {
    let (proxy, mut client) = proxied();
    proxy.delay(Direction::ToServer, DELAY);
    let started = Instant::now();
    for _ in 0..10 {
        client.write_all(b"hello").unwrap();
        // Apart, so that the proxy reads them one by one.
        thread::sleep(Duration::from_millis(5));
    }
    client.read_exact(&mut [0; 50]).unwrap();
    assert!(started.elapsed() < DELAY * 4, "{:?}", started.elapsed());
}

#[test]
fn healing_delivers_delayed_bytes_at_once() {
    let (proxy, mut client) = proxied();
    proxy.delay(Direction::ToServer, Duration::from_secs(3600));
    client.write_all(b"hello").unwrap();
    eventually("the bytes are under way", || proxy.counts().to_server.delayed == 5);
    proxy.heal();
    let mut back = [0; 5];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn a_delay_holds_back_the_sender_instead_of_filling_memory() {
    let (proxy, mut client) = proxied();
    proxy.delay(Direction::ToServer, Duration::from_secs(3600));
    client.set_write_timeout(Some(SILENCE)).unwrap();
    let flood = client.write_all(&vec![0; 64 * 1024 * 1024]);
    assert!(flood.is_err(), "the proxy took 64 MiB");
    assert!(proxy.counts().to_server.delayed <= 512 * 1024);
}

#[test]
fn a_dead_server_shows_as_a_reset() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = ChaosProxy::start(unused).unwrap();
    assert!(echo(&mut connect(&proxy)).is_err());
}

#[tokio::test]
async fn can_be_started_and_dropped_in_asynchronous_code() {
    let (proxy, _client) = proxied();
    drop(proxy);
}
