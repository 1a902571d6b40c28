use std::os::unix::fs::MetadataExt;

use devstack::{Postgres, PostgresOptions};

use crate::pg::{self, Connection};
use crate::{SILENCE, refuses};

fn start() -> Postgres {
    Postgres::start(PostgresOptions::default()).unwrap()
}

#[test]
fn answers_on_loopback_only() {
    let postgres = start();
    assert_eq!(pg::query(postgres.port(), "SELECT current_user").unwrap(), "hotshelf");
    assert_eq!(pg::query(postgres.port(), "SHOW listen_addresses").unwrap(), "127.0.0.1");
    assert_eq!(
        postgres.url(),
        format!("postgres://hotshelf@127.0.0.1:{}/hotshelf", postgres.port())
    );
}

#[test]
fn counts_statements_where_the_library_is_installed() {
    let postgres = start();
    let available =
        "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'";
    if pg::query(postgres.port(), available).unwrap() == "1" {
        pg::query(postgres.port(), "CREATE EXTENSION pg_stat_statements").unwrap();
        let seen = "SELECT count(*) > 0 FROM pg_stat_statements";
        assert_eq!(pg::query(postgres.port(), seen).unwrap(), "t");
    }
}

#[test]
fn never_runs_as_root() {
    let postgres = start();
    assert_ne!(std::fs::metadata(postgres.dir().join("data")).unwrap().uid(), 0);
}

#[test]
fn durability_is_a_choice() {
    assert_eq!(pg::query(start().port(), "SHOW fsync").unwrap(), "off");
    let durable = Postgres::start(PostgresOptions { durable: true, ..PostgresOptions::default() });
    assert_eq!(pg::query(durable.unwrap().port(), "SHOW fsync").unwrap(), "on");
}

#[test]
fn a_named_directory_keeps_its_data() {
    let scratch = tempfile::Builder::new().permissions(crate::readable()).tempdir().unwrap();
    let options =
        PostgresOptions { dir: Some(scratch.path().join("new")), ..PostgresOptions::default() };
    let first = Postgres::start(options.clone()).unwrap();
    pg::query(first.port(), "CREATE TABLE kept AS SELECT 42 AS n").unwrap();
    drop(first);
    let second = Postgres::start(options).unwrap();
    assert_eq!(pg::query(second.port(), "SELECT n FROM kept").unwrap(), "42");
}

#[test]
fn a_directory_in_use_is_refused_on_one_line() {
    let scratch = tempfile::Builder::new().permissions(crate::readable()).tempdir().unwrap();
    let options =
        PostgresOptions { dir: Some(scratch.path().to_owned()), ..PostgresOptions::default() };
    let _first = Postgres::start(options.clone()).unwrap();
    let refusal = Postgres::start(options).err().unwrap().to_string();
    assert!(refusal.contains("postmaster.pid\" already exists"), "{refusal}");
    assert!(!refusal.contains('\n'), "{refusal}");
}

#[test]
fn a_temporary_directory_goes_with_the_server() {
    let postgres = start();
    let dir = postgres.dir().to_owned();
    assert!(dir.exists());
    drop(postgres);
    assert!(!dir.exists());
}

#[test]
fn comes_back_on_the_same_port_after_stop_and_after_kill() {
    let postgres = start();
    let port = postgres.port();
    pg::query(port, "CREATE TABLE kept AS SELECT 42 AS n").unwrap();
    for end in [Postgres::stop, Postgres::kill] {
        end(&postgres);
        assert!(refuses(port));
        assert_eq!(postgres.pid(), None);
        postgres.start_again().unwrap();
        assert_eq!(pg::query(port, "SELECT n FROM kept").unwrap(), "42");
    }
}

#[test]
fn pause_freezes_backends_and_resume_lets_them_answer() {
    let postgres = start();
    let mut connection = Connection::open(postgres.port(), "hotshelf").unwrap();
    connection.set_timeout(SILENCE).unwrap();
    postgres.pause();
    assert!(connection.query("SELECT 1").is_err(), "a frozen backend answered");
    postgres.resume();
    connection.set_timeout(SILENCE * 30).unwrap();
    assert_eq!(connection.read_answer().unwrap(), "1");
}

#[test]
fn a_paused_server_can_be_killed_and_dropped() {
    let postgres = start();
    let _connection = Connection::open(postgres.port(), "hotshelf").unwrap();
    postgres.pause();
    postgres.kill();
    postgres.start_again().unwrap();
    postgres.pause();
    let port = postgres.port();
    drop(postgres);
    assert!(refuses(port));
}
