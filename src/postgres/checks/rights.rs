//! The rights of the role, each missing one with the statement that grants it.

use sqlx::postgres::PgConnection;

use crate::findings::Finding;
use crate::postgres::mapping::Mapping;

/// What the service needs in its own schema, which may be less than docs/sql.md grants.
const OWN: &str = "SELECT format('%s ON %s%I.%I', string_agg(needed.name, ', ' ORDER BY needed.place), \
        CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END, n.nspname, c.relname) \
    FROM (SELECT relation, name, place FROM (VALUES ('_sqlx_migrations', 'SELECT'), ('catalogue', 'SELECT UPDATE'), \
            ('mapped_column', 'SELECT'), ('outbox', 'SELECT DELETE'), ('deleted', 'SELECT UPDATE DELETE'), \
            ('truncations', 'SELECT DELETE'), ('feed', 'SELECT UPDATE'), ('marks', 'SELECT INSERT DELETE'), \
            ('product_version', 'SELECT')) AS of_relation (relation, names), \
            unnest(string_to_array(names, ' ')) WITH ORDINALITY AS named (name, place)) AS needed \
        JOIN pg_namespace AS n ON n.nspname = 'hotshelf' \
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = needed.relation \
    WHERE NOT CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, needed.name) \
        ELSE has_table_privilege(c.oid, needed.name) END \
    GROUP BY n.nspname, c.relname, c.relkind ORDER BY c.relname";
const SCHEMAS: &str = "SELECT format('USAGE ON SCHEMA %I', nspname) FROM pg_namespace \
    WHERE nspname IN ('hotshelf', $1) AND NOT has_schema_privilege(oid, 'USAGE') ORDER BY nspname";
/// A right on the table, or on each column that is used.
const TABLE: &str = "SELECT string_agg(needed.name, ', ') FROM unnest($2::text[]) AS needed (name), pg_class AS c \
    WHERE c.oid = to_regclass($1) AND NOT has_table_privilege(c.oid, needed.name) AND ( \
        needed.name = 'DELETE' OR NOT (SELECT bool_and(has_column_privilege(c.oid, used.name, needed.name)) \
            FROM unnest($3::text[]) AS used (name) \
            WHERE needed.name = 'SELECT' OR used.name NOT IN ('hotshelf_version', $4)))";
const SEQUENCE: &str = "SELECT string_agg(needed.name, ', ') FROM unnest(ARRAY['SELECT', 'UPDATE']) AS needed (name) \
    WHERE NOT has_sequence_privilege($1, needed.name)";
const HIDES: &str = "SELECT row_security_active(c.oid), format('%I.%I', n.nspname, c.relname) \
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)";

pub(super) async fn check(
    connection: &mut PgConnection,
    mapping: Option<&Mapping>,
    read_only: bool,
) -> Result<Vec<Finding>, sqlx::Error> {
    let role: String =
        sqlx::query_scalar("SELECT quote_ident(current_user)").fetch_one(&mut *connection).await?;
    let schema = mapping.map(|mapping| mapping.table.0.as_str());
    let mut missing: Vec<String> =
        sqlx::query_scalar(SCHEMAS).bind(schema).fetch_all(&mut *connection).await?;
    missing.extend(sqlx::query_scalar::<_, String>(OWN).fetch_all(&mut *connection).await?);
    let mut found = Vec::new();
    // Without USAGE on its schema the name of the table cannot be looked up.
    if let Some(mapping) = mapping.filter(|_| missing.iter().all(|one| !one.starts_with("USAGE"))) {
        let hides = sqlx::query_as(HIDES).bind(mapping.quoted_table());
        let (hides, table): (bool, String) = hides.fetch_one(&mut *connection).await?;
        missing.extend(of_table(connection, mapping, &table, read_only).await?);
        if hides {
            let what = format!("{table} has row level security that applies to the role {role}");
            let cost = "products that its policies hide do not exist for callers";
            let remedy = format!("ALTER ROLE {role} BYPASSRLS");
            found.push(Finding::warning("rights", &what, cost, &remedy));
        }
    }
    if !missing.is_empty() {
        let grants: Vec<String> =
            missing.iter().map(|right| format!("GRANT {right} TO {role}")).collect();
        let what = format!("the role {role} lacks {}", missing.join(", "));
        let cost = match mapping {
            Some(_) => "what needs them fails: loads, writes, or the relay",
            None => "serve does not start; the rights on the table are not checked yet",
        };
        found.push(Finding::error("rights", &what, cost, &grants.join("; ")));
    }
    if found.is_empty() {
        let what = format!("the role {role} has all rights that serving needs");
        found.push(Finding::fine("rights", what));
    }
    Ok(found)
}

async fn of_table(
    connection: &mut PgConnection,
    mapping: &Mapping,
    table: &str,
    read_only: bool,
) -> Result<Vec<String>, sqlx::Error> {
    let needed: &[&str] =
        if read_only { &["SELECT"] } else { &["SELECT", "INSERT", "UPDATE", "DELETE"] };
    let mut used: Vec<&str> =
        mapping.columns().filter(|column| !column.computed).map(|one| &*one.name).collect();
    used.extend([mapping.id.name.as_str(), "hotshelf_version"]);
    let lacks = sqlx::query_scalar(TABLE).bind(table).bind(needed).bind(used);
    let lacks = lacks.bind(&mapping.id.name).fetch_one(&mut *connection).await?;
    let lacks: Option<String> = lacks;
    let mut missing: Vec<String> =
        lacks.into_iter().map(|lacks| format!("{lacks} ON {table}")).collect();
    if let Some(sequence) = mapping.sequence.as_ref().filter(|_| !read_only) {
        let lacks = sqlx::query_scalar(SEQUENCE).bind(sequence).fetch_one(connection).await?;
        let lacks: Option<String> = lacks;
        missing.extend(lacks.map(|lacks| format!("{lacks} ON SEQUENCE {sequence}")));
    }
    Ok(missing)
}
