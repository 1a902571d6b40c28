//! Problems, and what `doctor` and `serve` say about each.

/// What `serve` does about a problem.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Serve {
    /// It serves, and logs the sentence.
    Warns,
    /// It ends with the sentence.
    Ends,
}
use Serve::{Ends, Warns};

/// How a problem is planted. In SQL and options `{db}` is the database, `{ns}` the namespace.
#[derive(Clone, Copy)]
pub(super) enum Plant {
    /// SQL that makes it, and SQL that undoes it.
    Sql(&'static str, &'static str),
    /// The same in Redis, as words.
    Redis(&'static str, &'static str),
    /// Only by the options.
    Options,
}
use Plant::{Options, Redis, Sql};

/// The users that the options name. The role `app` has the rights of docs/sql.md, and so has the user `app` of Redis.
pub(super) const APP: &[&str] = &["--database-url", "{pg:app}"];
pub(super) const USER: &[&str] = &["--redis-url", "{redis:app:secret}"];
const BARE: &[&str] = &["--database-url", "{pg:hotshelf}_bare", "--migrate", "never"];

pub(super) type Row =
    (&'static str, Plant, &'static [&'static str], Option<i32>, Serve, &'static [&'static str]);

/// Check, plant, options, exit code, what `serve` does, and what the sentence contains.
pub(super) const PROBLEMS: &[Row] = &[
    (
        "triggers",
        Sql(
            "ALTER TABLE products DISABLE TRIGGER hotshelf_updated",
            "SELECT hotshelf.install_triggers()",
        ),
        &[],
        Some(1),
        Ends,
        &[
            "triggers are missing, or not ENABLE ALWAYS (public.products: hotshelf_updated)",
            "run SELECT hotshelf.install_triggers()",
        ],
    ),
    (
        "triggers",
        Sql("DROP TRIGGER hotshelf_row_deleted ON products", "SELECT hotshelf.install_triggers()"),
        &[],
        Some(1),
        Ends,
        &[
            "(public.products: hotshelf_row_deleted)",
            "UPDATE \"public\".\"products\" SET hotshelf_version",
        ],
    ),
    (
        "triggers",
        Sql(
            "ALTER TABLE products ENABLE TRIGGER hotshelf_version",
            "SELECT hotshelf.install_triggers()",
        ),
        &[],
        Some(1),
        Ends,
        &["not ENABLE ALWAYS (public.products: hotshelf_version)"],
    ),
    (
        "table",
        Sql(
            "ALTER TABLE products DROP COLUMN description",
            "ALTER TABLE products ADD COLUMN description text NOT NULL DEFAULT ''",
        ),
        &[],
        Some(2),
        Warns,
        &[
            "the table public.products lacks mapped columns (description)",
            "they are served as unset",
            "run hotshelf attach --again public.products",
        ],
    ),
    (
        "table",
        Sql("ALTER TABLE products ADD COLUMN color text", "ALTER TABLE products DROP COLUMN color"),
        &[],
        Some(2),
        Warns,
        &["columns that were added since it was attached (color)", "they are not served"],
    ),
    (
        "table",
        Sql(
            "ALTER TABLE products ALTER update_time DROP DEFAULT, ALTER update_time TYPE text",
            "ALTER TABLE products ALTER update_time TYPE timestamptz USING update_time::timestamptz, ALTER update_time SET DEFAULT now()",
        ),
        &[],
        Some(2),
        Warns,
        &["types that their fields cannot have: update_time (text)"],
    ),
    (
        "table",
        Sql(
            "ALTER TABLE products RENAME COLUMN id TO product_id",
            "ALTER TABLE products RENAME COLUMN product_id TO id",
        ),
        &[],
        Some(1),
        Warns,
        &[
            "the id column id of public.products was renamed to product_id",
            "every write to the table fails",
        ],
    ),
    (
        "table",
        Sql(
            "ALTER TABLE hotshelf.catalogue RENAME TO away",
            "ALTER TABLE hotshelf.away RENAME TO catalogue",
        ),
        &[],
        Some(1),
        Ends,
        &["relation \"hotshelf.catalogue\" does not exist"],
    ),
    (
        "rights",
        Sql("REVOKE UPDATE ON products FROM app", "GRANT UPDATE ON products TO app"),
        APP,
        Some(1),
        Warns,
        &["the role app lacks UPDATE ON public.products", "GRANT UPDATE ON public.products TO app"],
    ),
    (
        "rights",
        Sql("REVOKE UPDATE ON hotshelf.feed FROM app", "GRANT UPDATE ON hotshelf.feed TO app"),
        APP,
        Some(1),
        Warns,
        &["GRANT UPDATE ON hotshelf.feed TO app"],
    ),
    (
        "rights",
        Sql(
            "REVOKE UPDATE ON SEQUENCE products_id_seq FROM app",
            "GRANT UPDATE ON SEQUENCE products_id_seq TO app",
        ),
        APP,
        Some(1),
        Warns,
        &["GRANT UPDATE ON SEQUENCE public.products_id_seq TO app"],
    ),
    (
        "schema",
        Sql("REVOKE USAGE ON SCHEMA hotshelf FROM app", "GRANT USAGE ON SCHEMA hotshelf TO app"),
        APP,
        Some(1),
        Ends,
        &[
            "permission denied for schema hotshelf",
            "docs/sql.md lists the rights that hotshelf needs",
        ],
    ),
    (
        "rights",
        Sql(
            "ALTER TABLE products ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE products DISABLE ROW LEVEL SECURITY",
        ),
        APP,
        Some(2),
        Warns,
        &[
            "public.products has row level security that applies to the role app",
            "ALTER ROLE app BYPASSRLS",
        ],
    ),
    (
        "settings",
        Sql(
            "ALTER ROLE app SET default_transaction_read_only = on",
            "ALTER ROLE app RESET default_transaction_read_only",
        ),
        APP,
        Some(1),
        Warns,
        &[
            "default_transaction_read_only is on, set by the user",
            "every write fails",
            "ALTER ROLE app RESET default_transaction_read_only",
        ],
    ),
    (
        "settings",
        Sql(
            "ALTER ROLE app IN DATABASE {db} SET default_transaction_read_only = on",
            "ALTER ROLE app IN DATABASE {db} RESET default_transaction_read_only",
        ),
        APP,
        Some(1),
        Warns,
        &["ALTER ROLE app IN DATABASE {db} RESET default_transaction_read_only"],
    ),
    (
        "connections",
        Sql("ALTER ROLE app CONNECTION LIMIT 14", "ALTER ROLE app CONNECTION LIMIT -1"),
        APP,
        Some(2),
        Warns,
        &[
            "the role app has CONNECTION LIMIT 14: ",
            " are free, and an instance opens 17",
            "ALTER ROLE app CONNECTION LIMIT -1, or lower DATABASE_CONNECTIONS",
        ],
    ),
    (
        "connections",
        Sql("ALTER DATABASE {db} CONNECTION LIMIT 16", "ALTER DATABASE {db} CONNECTION LIMIT -1"),
        APP,
        Some(2),
        Warns,
        &["the database {db} has CONNECTION LIMIT 16: ", "ALTER DATABASE {db} CONNECTION LIMIT -1"],
    ),
    (
        "outbox",
        Sql(
            "UPDATE hotshelf.feed SET held_until = '-infinity'; \
             INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted) \
                SELECT 1, ARRAY[n], ARRAY[2], false FROM generate_series(1, 100001) AS n",
            "DELETE FROM hotshelf.outbox",
        ),
        &[],
        Some(2),
        Warns,
        &["more than 100000 rows of changes wait in hotshelf.outbox, and no instance reads them"],
    ),
    (
        "schema",
        Sql(
            "INSERT INTO hotshelf._sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'new', true, '', 0)",
            "DELETE FROM hotshelf._sqlx_migrations WHERE version = 9999",
        ),
        &[],
        Some(1),
        Ends,
        &["the schema has migration 9999, which this hotshelf", "run a newer hotshelf"],
    ),
    (
        "schema",
        Options,
        BARE,
        Some(1),
        Ends,
        &["the schema lacks migration 1, and MIGRATE is never", "run hotshelf migrate"],
    ),
    (
        "table",
        Options,
        &["--database-url", "{pg:hotshelf}_bare"],
        Some(1),
        Ends,
        &["no table is attached to this database", "run hotshelf attach TABLE"],
    ),
    (
        "table",
        Options,
        &["--catalog", "absent"],
        Some(1),
        Ends,
        &["there is no catalogue absent", "CATALOG can be products"],
    ),
    (
        "server",
        Options,
        &["--database-url", "{pg:guarded:wrong}"],
        Some(1),
        Ends,
        &["password authentication failed for user \"guarded\""],
    ),
    (
        "server",
        Options,
        &["--database-url", "{pg:stranger}"],
        Some(1),
        Ends,
        &["role \"stranger\" does not exist"],
    ),
    (
        "server",
        Options,
        &["--database-url", "{pg:hotshelf}_absent"],
        Some(1),
        Ends,
        &["_absent\" does not exist"],
    ),
    (
        "server",
        Options,
        &["--database-url", "postgres://u:secret@127.0.0.1:1/d", "--startup-timeout", "0s"],
        Some(1),
        Ends,
        &[
            "PostgreSQL at 127.0.0.1:1 cannot be reached (Connection refused",
            "check DATABASE_URL, and that the server runs",
        ],
    ),
    (
        "callers",
        Options,
        &["--grpc-tls-cert", "/absent.pem", "--grpc-tls-key", "/absent.key"],
        Some(1),
        Ends,
        &["/absent."],
    ),
    (
        "access",
        Options,
        &["--redis-url", "redis://127.0.0.1:1"],
        Some(2),
        Warns,
        &[
            "Redis cannot be reached",
            "every miss in memory is loaded from PostgreSQL",
            "check REDIS_URL",
        ],
    ),
    (
        "access",
        Options,
        &["--redis-url", "{redis:app:wrong}"],
        Some(2),
        Warns,
        &["Redis rejects the user or password", "correct them in REDIS_URL or in Redis"],
    ),
    (
        "memory",
        Redis("CONFIG SET maxmemory 100mb", "CONFIG SET maxmemory 0"),
        &[],
        Some(2),
        Warns,
        &[
            "maxmemory is 104.9 MB (",
            "maxmemory-policy is noeviction",
            "CONFIG SET maxmemory-policy allkeys-lru",
        ],
    ),
    (
        "commands",
        Redis("ACL SETUSER app -evalsha -zunionstore -subscribe", "ACL SETUSER app +@all"),
        USER,
        Some(2),
        Warns,
        &[
            "Redis denies a command or a key",
            "operations that need it use PostgreSQL or are skipped",
        ],
    ),
    (
        "replication",
        Redis("ACL SETUSER app -info", "ACL SETUSER app +info"),
        USER,
        Some(2),
        Warns,
        &["Redis returns no replication id (INFO)", "allow INFO to the user"],
    ),
    (
        "role",
        Redis("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        &[],
        Some(2),
        Warns,
        &["Redis is a read-only replica", "give the address of the master in REDIS_URL"],
    ),
    (
        "namespace",
        Redis("HSET {ns}:catalogues other {now}_elsewhere/shop", "DEL {ns}:catalogues"),
        &[],
        Some(2),
        Warns,
        &[
            "instances on another database use the same Redis and namespace",
            "give each catalogue a REDIS_NAMESPACE of its own",
        ],
    ),
];
