//! pgbouncer between the program and PostgreSQL.

use std::process::Stdio;

use tokio::process::{Child, Command};

use super::{doctor, findings};
use crate::harness::{Program, Stack, Suite, cache_status, eventually, free_port, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.single_if("doctor::through_a_pooler_in_session_mode_it_serves", pgbouncer, session);
    suite.single_if("doctor::a_pooler_in_transaction_mode_is_refused", pgbouncer, others);
}

fn pgbouncer() -> Result<&'static str, String> {
    let paths = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
    let found = paths.into_iter().find(|path| std::path::Path::new(path).exists());
    found.ok_or_else(|| "pgbouncer is not installed".to_owned())
}

/// Starts pgbouncer with its defaults, but for its mode. Returns the URL through it.
async fn start(stack: &Stack, program: &str, mode: &str) -> (Child, String, tempfile::TempDir) {
    let (server, database) = stack.database_url.rsplit_once('/').unwrap();
    let (_, server) = server.rsplit_once(':').unwrap();
    let (port, folder) = (free_port(), tempfile::tempdir_in("/tmp").unwrap());
    let file = folder.path().join("pgbouncer.ini");
    let settings = format!(
        "[databases]\n{database} = host=127.0.0.1 port={server} user=hotshelf\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
         unix_socket_dir =\npool_mode = {mode}\n"
    );
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        // pgbouncer does not run as root.
        use std::os::unix::fs::PermissionsExt;
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        command.uid(65_534);
    }
    command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let running = command.spawn().unwrap();
    eventually("it listens", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    (running, format!("postgres://hotshelf@127.0.0.1:{port}/{database}"), folder)
}

async fn session(stack: Stack, program: &'static str) {
    let (_running, url, _folder) = start(&stack, program, "session").await;
    let ended = doctor(&stack, &["--database-url", &url]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let served = Program::serve(&stack, &["--database-url", &url]).await;
    let id = stack.insert("lamp").await;
    let mut client = served.client().await;
    assert_eq!(client.get_product(get(id)).await.unwrap().into_inner().name, "lamp");
    sqlx::query("UPDATE products SET name = 'new'").execute(&stack.sql).await.unwrap();
    eventually("the change is served", async || {
        let read = client.clone().get_product(get(id)).await.unwrap();
        let is_cached = cache_status(&read).contains("hit");
        read.into_inner().name == "new" && is_cached
    })
    .await;
    assert!(!served.log().contains(" WARN "), "{}", served.log());
}

async fn others(stack: Stack, program: &'static str) {
    for mode in ["transaction", "statement"] {
        let (_running, url, _folder) = start(&stack, program, mode).await;
        let sentence = "a pooler in transaction mode is in front of the server";
        let ended = doctor(&stack, &["--database-url", &url, "--format", "json"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let found = findings(&ended);
        assert!(found.iter().any(|[.., said]| said.contains(sentence)), "{found:?}");
        let ended = Program::finish(Program::serving(&stack, &["--database-url", &url])).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        for part in [sentence, "pool_mode = session", "DATABASE_URL"] {
            assert!(ended.stderr.contains(part), "{ended:?}");
        }
    }
}
