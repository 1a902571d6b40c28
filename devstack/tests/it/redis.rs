use std::io::{Read, Write};
use std::net::TcpStream;

use devstack::{Error, Redis, RedisOptions, Role};

use crate::{SILENCE, refuses};

fn start() -> Redis {
    Redis::start(RedisOptions::default()).unwrap()
}

#[test]
fn keeps_what_it_is_given() {
    let redis = start();
    assert_eq!(redis.command(&["SET", "greeting", "two\r\nlines"]).unwrap(), "OK");
    assert_eq!(redis.command(&["GET", "greeting"]).unwrap(), "two\r\nlines");
    assert_eq!(redis.command(&["GET", "nothing"]).unwrap(), "(nil)");
    assert_eq!(redis.command(&["INCR", "count"]).unwrap(), "1");
    assert_eq!(redis.command(&["MGET", "count", "nothing"]).unwrap(), "1\n(nil)");
    assert_eq!(redis.role().unwrap(), Role::Master);
}

#[test]
fn an_error_reply_is_an_error() {
    let reply = start().command(&["NOSUCH"]);
    assert!(matches!(reply, Err(Error::Refused { .. })), "{reply:?}");
}

#[test]
fn takes_settings() {
    let settings = vec![("maxmemory".to_owned(), "64mb".to_owned())];
    let redis = Redis::start(RedisOptions { settings, ..RedisOptions::default() }).unwrap();
    assert_eq!(redis.command(&["CONFIG", "GET", "maxmemory"]).unwrap(), "maxmemory\n67108864");
}

#[test]
fn a_failed_start_reports_the_log_on_one_line() {
    let settings = vec![("no-such-setting".to_owned(), "1".to_owned())];
    let failure = Redis::start(RedisOptions { settings, ..RedisOptions::default() })
        .err()
        .unwrap()
        .to_string();
    assert!(failure.contains("no-such-setting"), "{failure}");
    assert!(!failure.contains('\n'), "{failure}");
}

#[test]
fn pause_freezes_and_resume_lets_it_answer() {
    let redis = start();
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    redis.pause();
    stream.write_all(b"PING\r\n").unwrap();
    let mut reply = [0; 7];
    assert!(stream.read(&mut reply).is_err(), "a frozen server answered");
    redis.resume();
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

#[test]
fn a_killed_server_comes_back_empty_on_the_same_port() {
    let redis = start();
    redis.command(&["SET", "key", "value"]).unwrap();
    redis.kill();
    assert!(refuses(redis.port()));
    redis.start_again().unwrap();
    assert_eq!(redis.command(&["GET", "key"]).unwrap(), "(nil)");
}

#[test]
fn a_persistent_server_comes_back_with_its_data() {
    let redis = Redis::start(RedisOptions { persist: true, ..RedisOptions::default() }).unwrap();
    redis.command(&["SET", "key", "value"]).unwrap();
    for end in [Redis::stop, Redis::kill] {
        end(&redis);
        redis.start_again().unwrap();
        assert_eq!(redis.command(&["GET", "key"]).unwrap(), "value");
    }
}

#[test]
fn a_server_that_ended_by_itself_can_start_again() {
    let redis = start();
    // The connection ends without a reply.
    assert!(redis.command(&["SHUTDOWN", "NOSAVE"]).is_err());
    crate::eventually("the server has no pid", || redis.pid().is_none());
    redis.start_again().unwrap();
    assert_eq!(redis.command(&["PING"]).unwrap(), "PONG");
}

#[test]
fn is_stopped_by_a_panic() {
    let (port, dir) = (std::sync::Mutex::new(0), std::sync::Mutex::new(None));
    let outcome = std::panic::catch_unwind(|| {
        let redis = start();
        *port.lock().unwrap() = redis.port();
        *dir.lock().unwrap() = Some(redis.dir().to_owned());
        panic!("on purpose");
    });
    assert!(outcome.is_err());
    assert!(refuses(port.into_inner().unwrap()));
    assert!(!dir.into_inner().unwrap().unwrap().exists());
}
