//! The records of a CSV file (RFC 4180), each with the line on which it starts.
//!
//! csv-core, the parser of the csv crate, parses the fields. The csv crate itself miscounts lines that end in `\r\n`, and where a
//! closing quote is missing it reads the rest of the file into memory as one field.

use std::io::{self, BufRead};

use csv_core::ReadRecordResult;

use super::Problem;

/// Bytes in the fields of one record. A valid row is much shorter.
const MAX_RECORD_BYTES: usize = 1 << 20;
const TOO_LONG: &str = "the row is longer than 1 MiB; is a closing quote missing?";
/// Fields of one record that are kept; further ones are only counted. A table of PostgreSQL has at most as many columns.
const MAX_FIELDS: usize = 1_600;

#[derive(Debug)]
pub(super) struct Records<R> {
    input: R,
    parser: csv_core::Reader,
    text: Box<[u8]>,
    ends: Box<[usize]>,
}

/// A record with any number of fields.
#[derive(Debug)]
pub(super) struct Record<'a> {
    /// The line on which it starts. The first line of a file is 1.
    pub(super) line: u64,
    /// The number of its fields, also of those that are not kept.
    pub(super) fields: usize,
    text: &'a [u8],
    ends: &'a [usize],
}

impl<R: BufRead> Records<R> {
    /// `line` is the number of the next line of the input.
    pub(super) fn new(input: R, delimiter: u8, line: u64) -> Self {
        let mut parser = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        parser.set_line(line);
        let (text, ends) = (vec![0; MAX_RECORD_BYTES].into(), vec![0; MAX_FIELDS].into());
        Self { input, parser, text, ends }
    }

    /// The next record, or `None` at the end of the file. Empty lines are skipped.
    ///
    /// # Errors
    /// When no further record can be read: an I/O error, a record that is too long, or a quote without an end.
    pub(super) fn next(&mut self) -> Result<Option<Record<'_>>, Problem> {
        if self.skip_line_ends()? {
            return Ok(None);
        }
        let line = self.parser.line();
        let (mut length, mut fields) = (0, 0);
        loop {
            let input = self.input.fill_buf()?;
            let at_end = input.is_empty();
            // The last line may lack its line end, which is added here. If that does not end the record, a quote is open.
            let input = if at_end { b"\n" } else { input };
            let text = &mut self.text[length..];
            let ends = &mut self.ends[fields.min(MAX_FIELDS - 1)..];
            let (result, read, written, ended) = self.parser.read_record(input, text, ends);
            length += written;
            fields += ended;
            if !at_end {
                self.input.consume(read);
            }
            match result {
                ReadRecordResult::Record => break,
                ReadRecordResult::OutputFull => return Err(Problem::at(line, TOO_LONG)),
                ReadRecordResult::InputEmpty if at_end => {
                    return Err(Problem::at(line, "a quote is opened here and never closed"));
                }
                _ => {}
            }
        }
        let ends = &self.ends[..fields.min(MAX_FIELDS)];
        Ok(Some(Record { line, fields, text: &self.text, ends }))
    }

    /// Skips line ends, so that the parser's line is the one on which the next record starts. Returns whether the file ends.
    fn skip_line_ends(&mut self) -> io::Result<bool> {
        loop {
            match self.input.fill_buf()?.first() {
                None => return Ok(true),
                Some(b'\n') => self.parser.set_line(self.parser.line() + 1),
                Some(b'\r') => {}
                Some(_) => return Ok(false),
            }
            self.input.consume(1);
        }
    }
}

impl<'a> Record<'a> {
    pub(super) fn field(&self, index: usize) -> Option<&'a [u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        (0..self.ends.len()).filter_map(|index| self.field(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line, the number of fields and the text of the fields of each record.
    fn read(csv: &str) -> Result<Vec<(u64, usize, Vec<String>)>, String> {
        // A buffer of 3 bytes, so that most records span several reads. A byte order mark just fits.
        let mut records = Records::new(io::BufReader::with_capacity(3, csv.as_bytes()), b',', 1);
        let mut all = Vec::new();
        while let Some(record) = records.next().map_err(|problem| problem.in_file("f".as_ref()))? {
            let text = record.iter().map(|field| String::from_utf8_lossy(field).into_owned());
            all.push((record.line, record.fields, text.collect()));
        }
        Ok(all)
    }

    fn lines(csv: &str) -> Vec<u64> {
        read(csv).unwrap().into_iter().map(|(line, ..)| line).collect()
    }

    #[test]
    fn fields_may_be_quoted() {
        let records = read("\u{feff}\"a\",b\n\"1,\"\"2\"\"\",\n").unwrap();
        assert_eq!(records[0].2, ["a", "b"]);
        assert_eq!(records[1].2, ["1,\"2\"", ""]);
    }

    #[test]
    fn a_record_has_the_line_on_which_it_starts() {
        assert_eq!(lines("a\nb\nc"), [1, 2, 3]);
        assert_eq!(lines("a\r\nb\r\nc\r\n"), [1, 2, 3]);
        assert_eq!(lines("a\n\n\r\n\nb\n\n"), [1, 5]);
        assert_eq!(lines("\"a\n\n\"\nb\n\"c\r\n\"\r\nd"), [1, 4, 5, 7]);
    }

    #[test]
    fn the_last_line_may_lack_its_end() {
        assert_eq!(read("a,\"b\"").unwrap(), read("a,\"b\"\n").unwrap());
        assert_eq!(read("a,").unwrap()[0].1, 2);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn a_quote_without_an_end_is_an_error_with_the_line_of_its_start() {
        let open = read("a,b\n1,\"x\n2,y\n3,z\n").unwrap_err();
        assert_eq!(open, "f, line 2: a quote is opened here and never closed");
    }

    #[test]
    fn a_record_is_not_read_into_memory_without_bound() {
        let endless = format!("a\n\"{}", "x\n".repeat(MAX_RECORD_BYTES));
        assert!(read(&endless).unwrap_err().starts_with("f, line 2: the row is longer than 1 MiB"));
    }

    #[test]
    fn fields_beyond_the_bound_are_counted() {
        for fields in [MAX_FIELDS - 1, MAX_FIELDS, MAX_FIELDS + 1, 3 * MAX_FIELDS] {
            let csv = format!("{}x\nlast\n", "x,".repeat(fields - 1));
            let records = read(&csv).unwrap();
            assert_eq!(records[0].1, fields);
            assert_eq!(records[0].2.len(), fields.min(MAX_FIELDS));
            assert_eq!(records[1].2, ["last"]);
        }
    }
}
