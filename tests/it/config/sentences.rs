//! Wrong settings, each with the one line that it gets. What is out of bounds or does not go together is in `refused`.

use std::path::Path;
use std::time::Duration;

use crate::harness::{Authority, Program, Stack};

const FORM: &str = "use postgres://USER:PASSWORD@HOST:PORT/DATABASE";
const REDIS_FORM: &str = "use redis://HOST:PORT, rediss:// for TLS, redis-cluster://HOST:PORT?node=HOST:PORT, redis-sentinel://HOST:PORT?sentinelServiceName=NAME, or unix:///PATH";
const MODES: &str = "use disable, allow, prefer, require, verify-ca, verify-full";
const PARAMETERS: &str = "which has no effect here; remove it, or use one of sslrootcert, sslcert, sslkey, sslmode, host, hostaddr, port, dbname, user, password, application_name, options, target_session_attrs";
const CUT: &str = "has one of / ? # where it ends the user or the password; write / as %2F, ? as %3F and # as %23 there";

/// Arguments separated by spaces, and the line, in which FORM and the like stand for the texts above. `{dir}` is a folder with files.
const WRONG: &[(&str, &str)] = &[
    ("--database-url=", "DATABASE_URL is no URL; FORM"),
    ("--database-url=nonsense", "DATABASE_URL is no URL; FORM"),
    ("--database-url=mysql://h/d", "DATABASE_URL has the scheme \"mysql\"; FORM"),
    (
        "--database-url=postgres://h:port/d",
        "DATABASE_URL cannot be read: invalid port number; FORM",
    ),
    (
        "--database-url=postgres://h:99999/d",
        "DATABASE_URL cannot be read: invalid port number; FORM",
    ),
    (
        "--database-url=postgres://h1:1,,h2:2/d",
        "DATABASE_URL names several hosts, one of which is empty; use postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE",
    ),
    (
        "--database-url=postgres:///d?host=h1,h2",
        "DATABASE_URL names several hosts in host=; use postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE",
    ),
    ("--database-url=postgres://u:se/cret@h/d", "DATABASE_URL CUT"),
    ("--database-url=postgres://u:se?cret@h/d", "DATABASE_URL CUT"),
    ("--database-url=postgres://u:se#cret@h/d", "DATABASE_URL CUT"),
    ("--database-url=postgres://h/d?sslmode=on", "DATABASE_URL has sslmode=on; MODES"),
    ("--database-url=postgres://h/d?sslmode=", "DATABASE_URL has sslmode=; MODES"),
    (
        "--database-url=postgres://h/d?sslmod=require",
        "DATABASE_URL has the parameter sslmod, PARAMETERS",
    ),
    (
        "--database-url=postgres://h/d?connect_timeout=5",
        "DATABASE_URL has the parameter connect_timeout, PARAMETERS",
    ),
    (
        "--database-url=postgres://h1,h2/d?target_session_attrs=any",
        "DATABASE_URL has target_session_attrs=any; use read-write, which is the primary",
    ),
    ("--database-url=postgres://h/d?port=x", "DATABASE_URL has port=x; use a port, such as 5432"),
    (
        "--database-url=postgres://h/d?hostaddr=h2",
        "DATABASE_URL has hostaddr=h2; use an IP address",
    ),
    (
        "--database-url=postgres://h/d?sslrootcert={dir}/absent",
        "DATABASE_URL has sslrootcert={dir}/absent; the file cannot be read (No such file or directory (os error 2)): give a PEM file",
    ),
    (
        "--database-url=postgres://h/d?sslrootcert={dir}",
        "DATABASE_URL has sslrootcert={dir}; the file cannot be read (Is a directory (os error 21)): give a PEM file",
    ),
    (
        "--database-url=postgres://h/d?sslrootcert={dir}/two",
        "DATABASE_URL has sslrootcert={dir}/two; the file is no PEM file: give one",
    ),
    (
        "--database-url=postgres://h/d?sslcert={dir}/a.pem",
        "sslcert and sslkey in DATABASE_URL belong together; give both, or neither",
    ),
    (
        "--database-url-file={dir}/absent",
        "DATABASE_URL_FILE {dir}/absent cannot be used: No such file or directory (os error 2); give it a file with one line, the URL",
    ),
    (
        "--database-url-file={dir}",
        "DATABASE_URL_FILE {dir} cannot be used: Is a directory (os error 21); give it a file with one line, the URL",
    ),
    (
        "--database-url-file={dir}/two",
        "DATABASE_URL_FILE {dir}/two cannot be used: it does not hold one line; give it a file with one line, the URL",
    ),
    (
        "--redis-url-file={dir}/empty",
        "REDIS_URL_FILE {dir}/empty cannot be used: it does not hold one line; give it a file with one line, the URL",
    ),
    ("--redis-url=localhost:6379", "REDIS_URL is no URL; REDIS"),
    ("--redis-url=http://h", "REDIS_URL has the scheme \"http\"; REDIS"),
    ("--redis-url=redis-cache://h", "REDIS_URL has the scheme \"redis-cache\"; REDIS"),
    (
        "--redis-url=redis-sentinel://h",
        "REDIS_URL does not name what the sentinels watch; add ?sentinelServiceName=NAME, the name after sentinel monitor",
    ),
    ("--redis-url=redis://h:port", "REDIS_URL cannot be read: invalid port number; REDIS"),
    ("--redis-url=redis://", "REDIS_URL has no host"),
    (
        "--redis-url=unix://run/redis.sock",
        "REDIS_URL has no absolute path; use unix:///run/redis/redis.sock",
    ),
    (
        "--redis-url=unix:///run/redis.sock?database=1",
        "REDIS_URL has the parameter database, which has no effect here; remove it: a socket has db, username, password",
    ),
    (
        "--redis-url=redis://h/x",
        "REDIS_URL has the database x, which is no number up to 255; use one such as /0, or remove it",
    ),
    (
        "--redis-url=redis://h/256",
        "REDIS_URL has the database 256, which is no number up to 255; use one such as /0, or remove it",
    ),
    (
        "--redis-url=redis-cluster://h/3",
        "REDIS_URL has the database 3, and a cluster has only one; remove it",
    ),
    (
        "--redis-url=redis://h/3 --redis-cluster",
        "REDIS_URL has the database 3, and a cluster has only one; remove it",
    ),
    ("--redis-url=redis://:pass/word@h", "REDIS_URL CUT"),
    (
        "--redis-url=redis://h?ssl=true",
        "REDIS_URL has the parameter ssl, which has no effect here; remove it: a single server has none",
    ),
    (
        "--redis-url=redis://h?node=h2",
        "REDIS_URL has the parameter node, which has no effect here; remove it: a single server has none",
    ),
    (
        "--redis-url=redis-cluster://h?nodes=h2",
        "REDIS_URL has the parameter nodes, which has no effect here; remove it: a cluster has node",
    ),
    (
        "--redis-url=redis://h1,h2",
        "REDIS_URL names several hosts; name one, and the others of a cluster or of sentinels by node=HOST:PORT; REDIS",
    ),
    (
        "--redis-namespace=",
        "invalid value '' for '--redis-namespace <NAME>': use up to 100 letters, digits, '-', '_', '.' and ':'; see hotshelf --help",
    ),
    (
        "--redis-cluster=perhaps",
        "invalid value 'perhaps' for '--redis-cluster [<BOOL>]': must be true or false; see hotshelf --help",
    ),
    (
        "--grpc-tls-cert={dir}/absent --grpc-tls-key={dir}/a.key",
        "GRPC_TLS_CERT {dir}/absent cannot be used: No such file or directory (os error 2); give it a file that can be read",
    ),
    (
        "--grpc-tls-cert={dir} --grpc-tls-key={dir}/a.key",
        "GRPC_TLS_CERT {dir} cannot be used: Is a directory (os error 21); give it a file that can be read",
    ),
    (
        "--grpc-tls-cert={dir}/a.key --grpc-tls-key={dir}/a.pem",
        "GRPC_TLS_CERT {dir}/a.key cannot be used: it holds no certificate; give it a PEM file",
    ),
    (
        "--grpc-tls-cert={dir}/a.pem --grpc-tls-key={dir}/b.key",
        "GRPC_TLS_CERT and GRPC_TLS_KEY do not go together: keys may not be consistent: KeyMismatch; give the key of the first certificate",
    ),
    (
        "--grpc-tls-key={dir}/a.key",
        "GRPC_TLS_CERT and GRPC_TLS_KEY belong together; give both, or neither",
    ),
    (
        "--grpc-tls-cert={dir}/a.pem --grpc-tls-key={dir}/a.key --grpc-tls-client-ca={dir}/two",
        "GRPC_TLS_CLIENT_CA {dir}/two cannot be used: it holds no certificate; give it a PEM file",
    ),
    (
        "--auth-jwks-file={dir}/two --auth-issuer=i --auth-audience=a",
        "AUTH_JWKS_FILE {dir}/two cannot be used: expected value at line 1 column 1; give it a JSON Web Key Set with public keys for ES256, EdDSA or RS256",
    ),
    (
        "--grpc-addr=localhost:50051",
        "invalid value 'localhost:50051' for '--grpc-addr <ADDRESS>': must be IP:PORT, such as 0.0.0.0:50051 or [::1]:9464; see hotshelf --help",
    ),
    (
        "--grpc-addr=0.0.0.0",
        "invalid value '0.0.0.0' for '--grpc-addr <ADDRESS>': must be IP:PORT, such as 0.0.0.0:50051 or [::1]:9464; see hotshelf --help",
    ),
    (
        "--admin-addr=127.0.0.1:99999",
        "invalid value '127.0.0.1:99999' for '--admin-addr <ADDRESS>': must be IP:PORT, such as 0.0.0.0:50051 or [::1]:9464; see hotshelf --help",
    ),
    (
        "--read-only=maybe",
        "invalid value 'maybe' for '--read-only [<BOOL>]': must be true or false; see hotshelf --help",
    ),
    (
        "--http-api=maybe",
        "invalid value 'maybe' for '--http-api [<BOOL>]': must be true or false; see hotshelf --help",
    ),
    (
        "--cors-origins=*",
        "invalid value '*' for '--cors-origins <ORIGINS>': * would let any page write products; name the origins; see hotshelf --help",
    ),
    (
        "--cors-origins=https://shop.example/",
        "invalid value 'https://shop.example/' for '--cors-origins <ORIGINS>': https://shop.example/ is no origin such as https://shop.example or http://localhost:3000; see hotshelf --help",
    ),
    (
        "--cors-origins=https://a.example,shop.example",
        "invalid value 'https://a.example,shop.example' for '--cors-origins <ORIGINS>': shop.example is no origin such as https://shop.example or http://localhost:3000; see hotshelf --help",
    ),
    (
        "--cors-origins=https://shop.example:443",
        "invalid value 'https://shop.example:443' for '--cors-origins <ORIGINS>': https://shop.example:443 is no origin such as https://shop.example or http://localhost:3000; see hotshelf --help",
    ),
    (
        "--migrate=sometimes",
        "invalid value 'sometimes' for '--migrate <WHEN>' [possible values: auto, never]; see hotshelf --help",
    ),
    (
        "--soft-ttl=5",
        "invalid value '5' for '--soft-ttl <DURATION>': time unit needed, for example 5sec or 5ms; write it like 250ms, 5s or 1m 30s, 1ms to 20days; see hotshelf --help",
    ),
    (
        "--soft-ttl=1s --soft-ttl=2s",
        "the argument '--soft-ttl <DURATION>' cannot be used multiple times; see hotshelf --help",
    ),
    (
        "--hot-capacity=1e6",
        "invalid value '1e6' for '--hot-capacity <N>': must be a number from 1 to 100000000; see hotshelf --help",
    ),
    ("extra", "unexpected argument 'extra' found; see hotshelf --help"),
];

fn write_files(dir: &Path) {
    std::fs::write(dir.join("two"), "a\nb\n").unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    let authority = Authority::new("a");
    for name in ["a", "b"] {
        let identity = authority.server(Duration::from_secs(365 * 24 * 3_600));
        identity
            .write(&dir.join(name).with_extension("pem"), &dir.join(name).with_extension("key"));
    }
}

/// `serve` and `doctor` refuse them with the same line.
pub(super) async fn each(_: Stack) {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path());
    let path = dir.path().display().to_string();
    let mut wrong = Vec::new();
    for (arguments, sentence) in WRONG {
        let texts = [("REDIS", REDIS_FORM), ("FORM", FORM), ("MODES", MODES)];
        let texts = texts.into_iter().chain([("PARAMETERS", PARAMETERS), ("CUT", CUT)]);
        let ending = |text: String, (name, words): (&str, &str)| match text.strip_suffix(name) {
            Some(begin) => format!("{begin}{words}"),
            None => text,
        };
        let expected = texts.fold((*sentence).to_owned(), ending).replace("{dir}", &path);
        let given = arguments.replace("{dir}", &path);
        let given: Vec<&str> = given.split(' ').collect();
        for command in ["serve", "doctor"] {
            let mut all = vec![command];
            for (name, address) in [("--grpc-addr", "127.0.0.1:0"), ("--admin-addr", "127.0.0.1:0")]
            {
                if !arguments.starts_with(name) {
                    all.extend([name, address]);
                }
            }
            let ended = Program::run(&[&all[..], &given].concat()).await;
            // `doctor` reports files that `serve` reads later than its settings.
            let is_finding = command == "doctor" && ended.code == Some(1);
            if is_finding && ["GRPC_TLS", "AUTH_JWKS"].iter().any(|name| expected.starts_with(name))
            {
                continue;
            }
            if (ended.code, &*ended.stderr) != (Some(64), &format!("hotshelf: {expected}\n")) {
                wrong.push(format!("{command} {arguments}: {:?} {}", ended.code, ended.stderr));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(WRONG.len() >= 25);
}
