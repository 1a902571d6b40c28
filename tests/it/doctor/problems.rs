//! Plants the problems of the table one after the other, and compares what `doctor` and `serve` say.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::table::{APP, PROBLEMS, Plant, Row, Serve, USER};
use super::{doctor, findings};
use crate::harness::{HANG, Private, Program, eventually};
use crate::schema::run;

pub(super) async fn each(world: Private) {
    prepare(&world).await;
    assert_eq!(doctor(&world, &options(&world, APP).each()).await.code, Some(0), "before");
    let mut wrong = Vec::new();
    for row in PROBLEMS {
        plant_it(&world, &row.1, true).await;
        wrong.extend(try_one(&world, row).await.err());
        plant_it(&world, &row.1, false).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(doctor(&world, &[]).await.code, Some(0), "everything was undone");
    denied(&world).await;
}

/// What differs from a row of the table.
async fn try_one(world: &Private, row: &Row) -> Result<(), String> {
    let (check, _, chosen, code, serve, sentence) = row;
    let more = options(world, chosen);
    let parts: Vec<String> = sentence.iter().map(|part| filled(world, part)).collect();
    let in_all = |text: &str| parts.iter().all(|part| text.contains(part));
    let ended = doctor(world, &[&more.each()[..], &["--format", "json"]].concat()).await;
    let found = findings(&ended);
    let found: Vec<_> = found.iter().filter(|[_, _, severity, _]| severity != "fine").collect();
    let said = found.iter().any(|[_, of, _, said]| of == check && in_all(said));
    // Whatever is wrong with one server, the other is checked.
    let both = ["PostgreSQL", "Redis"].iter().all(|name| ended.stdout.contains(name));
    if ended.code != *code || !said || !both || ended.stdout.contains("secret") {
        return Err(format!("doctor: {parts:?}: {:?}: {found:#?}", ended.code));
    }
    match serve {
        Serve::Ends => {
            let ended = Program::finish(Program::serving(world, &more.each())).await;
            let last = ended.stderr.lines().last().unwrap_or_default();
            let fails = ended.code.is_some_and(|code| code != 0) && in_all(last);
            if fails { Ok(()) } else { Err(format!("serve: {parts:?}: {ended:?}")) }
        }
        Serve::Warns => {
            let program = Program::serve(world, &more.each()).await;
            let began = Instant::now();
            while !program.log().lines().any(in_all) {
                if began.elapsed() > HANG / 4 {
                    return Err(format!("serve: {parts:?}: {}", program.log()));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            program.kill().await;
            Ok(())
        }
    }
}

/// The rules that mend a user of Redis are those that it lacks.
async fn denied(world: &Private) {
    let rules = "ACL SETUSER app resetkeys ~other:* resetchannels -hset -zincrby -cluster";
    plant_it(world, &Plant::Redis("", rules), false).await;
    let ended = doctor(world, &options(world, USER).each()).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let text = ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let ns = &world.namespace;
    let mend = format!("ACL SETUSER app +hset +zincrby ~{ns}:* &{ns}:*");
    assert!(text.contains(&mend), "no {mend} in {text}");
}

async fn prepare(world: &Private) {
    let admin = world.postgres.run_sql(
        &world.namespace,
        "CREATE ROLE app LOGIN; \
        CREATE ROLE guarded LOGIN PASSWORD 'right'; \
        GRANT USAGE ON SCHEMA public, hotshelf TO app; \
        GRANT SELECT, INSERT, UPDATE, DELETE ON products TO app; \
        GRANT SELECT, UPDATE ON SEQUENCE products_id_seq TO app; \
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA hotshelf TO app; \
        GRANT SELECT ON ALL SEQUENCES IN SCHEMA hotshelf TO app",
    );
    admin.unwrap();
    run(&world.sql, &format!("CREATE DATABASE {}_bare", world.namespace)).await;
    let file: String = sqlx::query_scalar("SHOW hba_file").fetch_one(&world.sql).await.unwrap();
    let rules = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("host all guarded all scram-sha-256\n{rules}")).unwrap();
    run(&world.sql, "SELECT pg_reload_conf()").await;
    let loaded = "SELECT count(*) FROM pg_hba_file_rules WHERE 'guarded' = ANY(user_name)";
    eventually("the file is read", async || {
        let found: i64 = sqlx::query_scalar(loaded).fetch_one(&world.sql).await.unwrap();
        found == 1
    })
    .await;
    let words = "ACL SETUSER app reset on >secret ~* &* +@all";
    plant_it(world, &Plant::Redis("", words), false).await;
}

async fn plant_it(world: &Private, plant: &Plant, plants: bool) {
    match plant {
        Plant::Sql(make, undo) => {
            let sql = filled(world, if plants { make } else { undo });
            run(&world.sql, &sql).await;
        }
        Plant::Redis(make, undo) => {
            let words = filled(world, if plants { make } else { undo });
            let words: Vec<String> = words.split(' ').map(|word| word.replace('_', " ")).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            world.redis.command(&words).unwrap();
        }
        Plant::Options => {}
    }
}

/// The text with the names of this test.
fn filled(world: &Private, text: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let text = text.replace("{db}", &world.namespace).replace("{ns}", &world.namespace);
    let text = text.replace("{now}", &format!("{now}000"));
    let user = |kind: &str| -> Option<(String, String)> {
        let (_, rest) = text.split_once(&format!("{{{kind}:"))?;
        let (user, _) = rest.split_once('}')?;
        Some((format!("{{{kind}:{user}}}"), user.to_owned()))
    };
    if let Some((placeholder, user)) = user("pg") {
        let url = world.database_url.replace("hotshelf@", &format!("{user}@"));
        return text.replace(&placeholder, &url);
    }
    if let Some((placeholder, user)) = user("redis") {
        let url = world.redis_url.replace("redis://", &format!("redis://{user}@"));
        return text.replace(&placeholder, &url);
    }
    text
}

/// Options as the program gets them.
struct Filled(Vec<String>);

fn options(world: &Private, chosen: &[&str]) -> Filled {
    Filled(chosen.iter().map(|option| filled(world, option)).collect())
}

impl Filled {
    fn each(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}
