//! The header of a file: the delimiter of its fields, and the field of a product that each of its columns is.

use std::io::{BufRead, Cursor, Read};

use super::ImportOptions;
use super::Problem;
use super::input::Input;
use super::records::{Record, Records};
use crate::postgres::{ImportColumns, ImportField, ImportTable};
use crate::product::Invalid;

const DELIMITERS: [u8; 4] = *b",;\t|";
/// A header is looked for in this many bytes.
const MAX_HEADER_BYTES: u64 = 1 << 16;
/// Characters of a header that a message shows.
const CLIP: usize = 40;

/// The index of each column.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fields: usize,
    pub(super) id: Option<usize>,
    pub(super) name: usize,
    pub(super) price: usize,
    pub(super) currency: Option<usize>,
    pub(super) description: Option<usize>,
    /// Of the attribute with this index in the table.
    pub(super) attributes: Vec<(usize, usize)>,
    /// The names of columns that are not imported.
    pub(super) left_out: Vec<String>,
}

pub(super) type FileRecords = Records<Box<dyn BufRead + Send>>;

/// Reads the header. Returns what follows it, too.
pub(super) fn read(
    input: &mut Input,
    table: &ImportTable,
    options: &ImportOptions,
) -> Result<(Header, FileRecords), Problem> {
    let text = std::mem::replace(&mut input.text, Box::new(std::io::empty()));
    let (mut start, rest) = begin(text)?;
    let mut line = 1;
    let mut delimiter = options.delimiter;
    // Written by Excel, and read by it before anything else.
    if let Some((declared, length)) = declared_delimiter(&start) {
        delimiter = delimiter.or(Some(declared));
        start.drain(..length);
        line += 1;
    }
    let delimiter = delimiter.unwrap_or_else(|| sniff(&start, table, options));
    let text: Box<dyn BufRead + Send> = Box::new(Cursor::new(start).chain(rest));
    let mut records = Records::new(text, delimiter, line);
    let first = records.next()?;
    let first = first.ok_or_else(|| Problem::at(1, "the names of the columns are missing"))?;
    let header = Header::find(&first, table, options)?;
    Ok((header, records))
}

/// The first lines of the text, up to a line that is not empty and at which no quote is open.
fn begin(mut text: Box<dyn BufRead + Send>) -> Result<(Vec<u8>, Box<dyn BufRead + Send>), Problem> {
    let mut start = Vec::new();
    loop {
        let room = MAX_HEADER_BYTES - start.len() as u64;
        let read = text.by_ref().take(room).read_until(b'\n', &mut start)?;
        let quotes = start.iter().filter(|&&byte| byte == b'"').count();
        let is_whole = quotes.is_multiple_of(2) && !start.trim_ascii().is_empty();
        if read == 0
            || is_whole && declared_delimiter(&start).is_none_or(|(_, end)| end < start.len())
        {
            return Ok((start, text));
        }
    }
}

/// The delimiter of a line such as `sep=;`, and the length of the line.
fn declared_delimiter(start: &[u8]) -> Option<(u8, usize)> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").map_or((start, 0), |rest| (rest, 3));
    match start {
        ([b's', b'e', b'p', b'=', delimiter, b'\n', ..], mark) => Some((*delimiter, mark + 6)),
        ([b's', b'e', b'p', b'=', delimiter, b'\r', b'\n', ..], mark) => {
            Some((*delimiter, mark + 7))
        }
        _ => None,
    }
}

/// The delimiter with which the header has the most known columns, or else the most columns.
fn sniff(start: &[u8], table: &ImportTable, options: &ImportOptions) -> u8 {
    let columns = |delimiter: u8| {
        let mut records = Records::new(start, delimiter, 1);
        let Ok(Some(record)) = records.next() else { return (0, 0) };
        let names = record.iter().map(name);
        let known = names.filter(|name| meaning(name, table, options).is_ok_and(|it| it.is_some()));
        (known.count(), record.fields)
    };
    // The first of several that are equal.
    DELIMITERS.into_iter().rev().max_by_key(|&delimiter| columns(delimiter)).unwrap_or(b',')
}

fn name(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim().to_owned()
}

/// The field that a column of the file is; `None` when it is to be left out.
fn meaning(
    name: &str,
    table: &ImportTable,
    options: &ImportOptions,
) -> Result<Option<ImportField>, String> {
    let mapped =
        options.map.iter().find(|(header, _)| header.to_lowercase() == name.to_lowercase());
    let name = mapped.map_or(name, |(_, field)| field);
    match table.field(name.strip_prefix("attributes.").unwrap_or(name)) {
        Some(field) => Ok(Some(field)),
        None if mapped.is_some() && name.is_empty() => Ok(None),
        None => Err(name.to_owned()),
    }
}

impl Header {
    fn find(
        record: &Record<'_>,
        table: &ImportTable,
        options: &ImportOptions,
    ) -> Result<Self, Problem> {
        let names: Vec<String> = record.iter().map(name).collect();
        let wrong = |reason: String| Problem::at(record.line, reason);
        let absent = |(header, _): &&(String, String)| {
            !names.iter().any(|name| name.to_lowercase() == header.to_lowercase())
        };
        if let Some((header, field)) = options.map.iter().find(absent) {
            return Err(wrong(format!(
                "--map {header}={field}: there is no column {header}; {}",
                has(&names)
            )));
        }
        let mut found: Vec<(ImportField, usize)> = Vec::new();
        let (mut unknown, mut left_out) = (Vec::new(), Vec::new());
        for (index, name) in names.iter().enumerate() {
            match meaning(name, table, options) {
                Ok(Some(field)) => {
                    if let Some((_, other)) = found.iter().find(|(one, _)| *one == field) {
                        let field = table.name(field);
                        return Err(wrong(match names[*other] == *name {
                            true => format!("there are two columns {name}"),
                            false => format!("both {} and {name} are {field}", names[*other]),
                        }));
                    }
                    found.push((field, index));
                }
                Ok(None) => left_out.push(name.clone()),
                Err(_) if options.ignore_extra => left_out.push(name.clone()),
                Err(_) => {
                    unknown.push(format!("{:?}", name.chars().take(CLIP).collect::<String>()))
                }
            }
        }
        let known = table.field_names();
        let find = |field| found.iter().find(|(one, _)| *one == field).map(|&(_, index)| index);
        let require = |field| {
            let missing = || {
                let (field, has) = (table.name(field), has(&names));
                wrong(format!("no column is the {field}; {has}; --map COLUMN={field} names it"))
            };
            find(field).ok_or_else(missing)
        };
        let (name, price) = (require(ImportField::Name)?, require(ImportField::Price)?);
        if !unknown.is_empty() {
            return Err(wrong(format!(
                "unknown columns: {}; known are {known}; --ignore-extra leaves the others out, --map COLUMN=FIELD imports one",
                unknown.join(", ")
            )));
        }
        let attributes = found.iter().filter_map(|&(field, index)| match field {
            ImportField::Attribute(attribute) => Some((attribute, index)),
            _ => None,
        });
        Ok(Self {
            fields: record.fields,
            id: find(ImportField::Id),
            name,
            price,
            currency: find(ImportField::Currency),
            description: find(ImportField::Description),
            attributes: attributes.collect(),
            left_out,
        })
    }

    pub(super) fn columns(&self) -> ImportColumns {
        ImportColumns {
            currency: self.currency.is_some(),
            description: self.description.is_some(),
            attributes: self.attributes.iter().map(|&(attribute, _)| attribute).collect(),
        }
    }
}

/// The columns of a file in a message.
fn has(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| name.chars().take(CLIP).collect()).collect();
    format!("the file has {}", names.join(", "))
}

/// Replaces the decimal comma of an amount, and takes out what groups its digits: `1.299,00`, `1 299,00`.
pub(super) fn with_decimal_point(amount: &str) -> Result<String, Invalid> {
    let (whole, decimals) = amount.split_once(',').unwrap_or((amount, ""));
    let sign = if whole.starts_with('-') { "-" } else { "" };
    let groups: Vec<&str> =
        whole[sign.len()..].split(['.', ' ', '\'', '\u{a0}', '\u{202f}', '’']).collect();
    let (first, others) = groups.split_first().unwrap_or((&"", &[]));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let grouped = others.is_empty()
        || (1..=3).contains(&first.len()) && others.iter().all(|group| group.len() == 3);
    if !grouped
        || !groups.iter().all(|group| digits(group))
        || !digits(decimals)
        || first.is_empty()
    {
        return Err(Invalid::new(format!(
            "{:?} is not an amount with a decimal comma such as 12,50 or 1.299,00",
            amount.chars().take(CLIP).collect::<String>()
        )));
    }
    let point = if decimals.is_empty() { "" } else { "." };
    Ok(format!("{sign}{}{point}{decimals}", groups.concat()))
}
