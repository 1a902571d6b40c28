use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::Problem;
use super::records::Records;
use super::rows::{Columns, ImportRow};

/// Too low: more system calls. Too high: the blocking reads delay other tasks of the thread for longer.
const BUFFER_BYTES: usize = 64 * 1024;

/// An open file, past its header.
pub(super) struct CsvFile {
    size: Option<u64>,
    columns: Columns,
    records: Records<BufReader<Box<dyn Read + Send>>>,
}

impl CsvFile {
    /// Opens the file, or the standard input for `-`, and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self, Problem> {
        let (input, size) = open_input(path)?;
        let mut records = Records::new(BufReader::with_capacity(BUFFER_BYTES, input));
        let header = records
            .next()?
            .ok_or_else(|| Problem::at(1, "the names of the columns are missing"))?;
        let columns = Columns::find(&header)?;
        Ok(Self { size, columns, records })
    }

    /// The size in bytes; `None` for anything but a regular file.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.records.bytes_read()
    }

    pub(super) fn has_descriptions(&self) -> bool {
        self.columns.has_descriptions()
    }

    /// The next row, or why it is bad; `None` at the end.
    ///
    /// # Errors
    /// When the rest of the file cannot be read.
    pub(super) fn next_row(&mut self) -> Result<Option<Result<ImportRow, Problem>>, Problem> {
        Ok(self.records.next()?.map(|record| self.columns.row(&record)))
    }
}

/// The input, and its size if it is a regular file.
fn open_input(path: &Path) -> io::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}
