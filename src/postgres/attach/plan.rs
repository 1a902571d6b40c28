//! The statements that attach or detach a table, and what they do in words.

use std::fmt;

use serde_json::{Value, json};
use sqlx::postgres::PgConnection;

use super::guess::{AttributeChoice, Mapped, Wishes, map};
use super::table::{Table, VERSION_COLUMN};
use super::{AttachOptions, CHANGE_TIMEOUT, LOCK_TIMEOUT, LOCKS_TIMEOUT};
use crate::postgres::columns::Column;
use crate::postgres::error::read_error;
use crate::postgres::mapping::Mapping;
use crate::postgres::quote::literal;
use crate::postgres::{Error, schema};

const ATTACHED: &str = "SELECT name, relation::oid::bigint, all_attributes, (SELECT count(*) FROM hotshelf.catalogue) \
    FROM hotshelf.catalogue WHERE relation = $1::bigint::oid OR name = $2";
const HAS_SCHEMA: &str = "SELECT to_regclass('hotshelf.catalogue') IS NOT NULL";

/// What is to be done with a table. Its `Display` tells the operator.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) relation: i64,
    /// What is found and what will be done, in lines.
    words: String,
    /// Statements that need the schema, which do not exist while it is missing.
    prepare: Vec<String>,
    statements: Vec<String>,
    /// Why this role cannot execute it.
    pub(super) forbidden: Option<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Plan {
    /// The statements of the transaction, without BEGIN and COMMIT.
    pub(super) fn statements(&self) -> Vec<String> {
        self.statements.clone()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// A script for psql.
    #[must_use]
    pub fn script(&self) -> String {
        let mut script = String::new();
        for statement in &self.prepare {
            script.push_str(statement);
            script.push_str(";\n");
        }
        script.push_str("BEGIN;\n");
        for statement in &self.statements {
            script.push_str(statement);
            script.push_str(";\n");
        }
        script.push_str("COMMIT;\n");
        script
    }

    pub(super) async fn attach(
        connection: &mut PgConnection,
        table: &Table,
        options: &AttachOptions,
    ) -> Result<Self, Error> {
        let id = table.check().map_err(Error::Unexpected)?;
        let has_schema = sqlx::query_scalar(HAS_SCHEMA).fetch_one(&mut *connection).await;
        let has_schema: bool = has_schema.map_err(|error| read_error(&error))?;
        let default = &table.name;
        let wanted = options.catalogue.as_ref().unwrap_or(default);
        let known = match has_schema {
            true => Attached::find(connection, table.relation, wanted).await?,
            false => Vec::new(),
        };
        let this = known.iter().find(|one| one.relation == table.relation);
        match (this, options.again) {
            (Some(this), false) if options.if_needed => {
                let words = format!(
                    "{} is attached already, as the catalogue {}\n",
                    table.shown(),
                    this.name
                );
                let (prepare, statements) = (Vec::new(), Vec::new());
                let relation = table.relation;
                return Ok(Self { relation, words, prepare, statements, forbidden: None });
            }
            (Some(this), false) => {
                return Err(Error::Unexpected(format!(
                    "{} is attached already, as the catalogue {}; --again takes in its changes",
                    table.shown(),
                    this.name
                )));
            }
            (None, true) => {
                return Err(Error::Unexpected(format!(
                    "{} is not attached; leave out --again",
                    table.shown()
                )));
            }
            (None, false) if table.has_version_column() => {
                return Err(Error::Unexpected(format!(
                    "{} has a column {VERSION_COLUMN} already, from another database or an attach that was not undone; ALTER TABLE {} DROP COLUMN {VERSION_COLUMN}",
                    table.shown(),
                    table.quoted()
                )));
            }
            _ => {}
        }
        let name = match (this, known.is_empty(), &options.catalogue) {
            (Some(this), ..) => this.name.clone(),
            (None, false, Some(taken)) => {
                return Err(Error::Unexpected(format!(
                    "there is a catalogue {taken} already; give another --catalog"
                )));
            }
            // Another table of the same name, in another schema.
            (None, false, None) => table.shown(),
            (None, true, _) => wanted.clone(),
        };
        let before = match this {
            Some(this) => Some((Mapping::read(connection, &this.name).await?, this.all_attributes)),
            None => None,
        };
        let wishes = wishes(options, before);
        let mapped = map(&table.columns, id, &wishes).map_err(Error::Unexpected)?;
        let all = wishes.attributes == AttributeChoice::All;
        let mapping = literal(&to_json(id, &mapped, all).to_string());
        let relation = literal(&table.quoted());
        let statements = match this {
            Some(_) => vec![
                LOCK_TIMEOUT.to_owned(),
                CHANGE_TIMEOUT.to_owned(),
                format!("SELECT hotshelf.attach_again({relation}, {mapping})"),
            ],
            None => {
                let mut statements = locked(table);
                let table = table.quoted();
                let name = literal(&name);
                statements.push(format!("ALTER TABLE {table} ADD COLUMN {VERSION_COLUMN} bigint"));
                statements.push(format!("SELECT hotshelf.attach({relation}, {name}, {mapping})"));
                statements
            }
        };
        let prepare = if has_schema { Vec::new() } else { schema::script() };
        let words = describe(table, &name, id, &mapped, this.is_some());
        let (relation, forbidden) = (table.relation, table.not_owned());
        Ok(Self { relation, words, prepare, statements, forbidden })
    }

    pub(super) async fn detach(connection: &mut PgConnection, name: &str) -> Result<Self, Error> {
        let not_attached = || Error::Unexpected(format!("{name} is not attached"));
        let has_schema = sqlx::query_scalar(HAS_SCHEMA).fetch_one(&mut *connection).await;
        if !has_schema.map_err(|error| read_error(&error))? {
            return Err(not_attached());
        }
        let oid = Table::oid(connection, name).await?;
        let found = Attached::find(connection, oid.unwrap_or_default(), name).await?;
        // A table before a catalogue of the same name.
        let found = found.iter().max_by_key(|one| Some(one.relation) == oid);
        let attached = found.ok_or_else(not_attached)?;
        let is_last = attached.catalogues == 1;
        let mut words = format!("hotshelf detaches the catalogue {}:\n", attached.name);
        let shown = Table::by_oid(connection, attached.relation).await?;
        let (mut statements, relation) = match &shown {
            Some(table) => (locked(table), literal(&table.quoted())),
            None => (Vec::new(), format!("{}::oid", attached.relation)),
        };
        statements.push(format!("SELECT hotshelf.detach({relation}::regclass)"));
        if let Some(table) = &shown {
            let lines = "the triggers hotshelf_* are dropped, and the column hotshelf_version";
            words.push_str(&format!("  in {}, {lines}\n", table.shown()));
            if table.has_version_column() {
                let table = table.quoted();
                statements.push(format!("ALTER TABLE {table} DROP COLUMN {VERSION_COLUMN}"));
            }
        }
        if is_last {
            words.push_str("  the schema hotshelf is dropped, because nothing else is attached\n");
            statements.push("DROP SCHEMA hotshelf CASCADE".to_owned());
        }
        words.push_str("  instances that serve it serve what they have cached, and then fail\n");
        let forbidden = shown.as_ref().and_then(Table::not_owned);
        let (relation, prepare) = (attached.relation, Vec::new());
        Ok(Self { relation, words, prepare, statements, forbidden })
    }
}

/// An attached table.
struct Attached {
    name: String,
    relation: i64,
    all_attributes: bool,
    /// Of all tables.
    catalogues: i64,
}

impl Attached {
    /// The catalogues of this table or with this name.
    async fn find(
        connection: &mut PgConnection,
        relation: i64,
        name: &str,
    ) -> Result<Vec<Self>, Error> {
        let found = sqlx::query_as(ATTACHED).bind(relation).bind(name).fetch_all(connection).await;
        let found: Vec<(String, i64, bool, i64)> =
            found.map_err(|error| schema::without_rights(&error))?;
        let attached = found.into_iter().map(|(name, relation, all_attributes, catalogues)| Self {
            name,
            relation,
            all_attributes,
            catalogues,
        });
        Ok(attached.collect())
    }
}

/// The start of a transaction that changes a table. The lock comes first, so that no wait for another lock prolongs it.
fn locked(table: &Table) -> Vec<String> {
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table.quoted());
    [LOCK_TIMEOUT, LOCKS_TIMEOUT, &lock, CHANGE_TIMEOUT].map(str::to_owned).into()
}

/// What the operator wants: the options, and what an earlier attach chose, as far as the table still has it.
fn wishes(options: &AttachOptions, before: Option<(Mapping, bool)>) -> Wishes {
    let mut wishes = Wishes {
        columns: options.columns.clone(),
        price_decimals: options.price_decimals,
        currency: options.currency.clone(),
        attributes: options.attributes.clone().unwrap_or(AttributeChoice::All),
    };
    let Some((before, all_attributes)) = before else { return wishes };
    let keep = |choice: &mut Option<String>, column: &Option<Column>| {
        if choice.is_none() {
            *choice = column.as_ref().map(|column| column.name.clone());
        }
    };
    let columns = &mut wishes.columns;
    let price_is_kept = columns.price.is_none();
    keep(&mut columns.name, &before.name);
    keep(&mut columns.price, &before.price);
    keep(&mut columns.description, &before.description);
    keep(&mut columns.create_time, &before.create_time);
    keep(&mut columns.update_time, &before.update_time);
    if wishes.currency.is_none() {
        keep(&mut columns.currency, &before.currency);
        wishes.currency = before.fixed_currency.map(|currency| currency.code().to_owned());
    }
    let is_integer = before.price.as_ref().is_some_and(Column::is_integer);
    if wishes.price_decimals.is_none() && price_is_kept && is_integer {
        wishes.price_decimals = before.price_decimals;
    }
    if options.attributes.is_none() && !all_attributes {
        let names = before.attributes.iter().map(|column| column.name.clone());
        wishes.attributes = AttributeChoice::Some(names.collect());
    }
    wishes
}

fn to_json(id: &Column, mapped: &Mapped<'_>, all_attributes: bool) -> Value {
    let mut columns = json!({ "id": id.name });
    for (role, column) in roles(mapped) {
        if let Some(column) = column {
            columns[role] = column.name.as_str().into();
        }
    }
    let attributes: Vec<&str> = mapped.attributes.iter().map(|column| &*column.name).collect();
    json!({
        "columns": columns,
        "attributes": attributes,
        "all_attributes": all_attributes,
        "price_decimals": mapped.price_decimals,
        "currency": mapped.fixed_currency.map(|currency| currency.code().to_owned()),
    })
}

fn roles<'a>(mapped: &Mapped<'a>) -> [(&'static str, Option<&'a Column>); 6] {
    [
        ("name", mapped.name),
        ("price", mapped.price),
        ("currency", mapped.currency),
        ("description", mapped.description),
        ("create_time", mapped.create_time),
        ("update_time", mapped.update_time),
    ]
}

fn describe(table: &Table, name: &str, id: &Column, mapped: &Mapped<'_>, again: bool) -> String {
    let mut words = format!("hotshelf serves {} as the catalogue {name}:\n", table.shown());
    let mut line = |field: &str, text: String| words.push_str(&format!("  {field:<12} {text}\n"));
    line("id", format!("{} ({})", id.name, id.declared));
    for (role, column) in roles(mapped) {
        let text = match (role, column) {
            ("price", Some(column)) => match mapped.price_decimals {
                Some(0) => format!("{} ({}, whole units)", column.name, column.declared),
                Some(decimals) => {
                    format!("{} ({}, {decimals} decimals)", column.name, column.declared)
                }
                None => format!("{} ({})", column.name, column.declared),
            },
            (_, Some(column)) => format!("{} ({})", column.name, column.declared),
            ("currency", None) => match mapped.fixed_currency {
                Some(code) => format!("{} for all prices (--currency)", code.code()),
                None => "-".to_owned(),
            },
            (_, None) => "-".to_owned(),
        };
        line(role, text);
    }
    let attributes: Vec<&str> = mapped.attributes.iter().map(|column| &*column.name).collect();
    let attributes = if attributes.is_empty() { "-".to_owned() } else { attributes.join(", ") };
    line("attributes", attributes);
    words.push_str(match again {
        true => "The mapping is replaced; running instances follow, and their caches start empty.\n",
        false => {
            "The table gets one column, hotshelf_version, and triggers. It is not rewritten; it is locked for a moment.\n"
        }
    });
    words
}
