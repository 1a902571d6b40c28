//! The text of a file: decompressed, and converted to UTF-8.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use encoding_rs_io::DecodeReaderBytesBuilder;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Too low: more system calls. Too high: the blocking reads delay other tasks of the thread for longer.
const BUFFER_BYTES: usize = 64 * 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The largest window of the format that `zstd --long` uses unless it is told otherwise, in bytes: memory is bounded by it.
const MAX_WINDOW: u64 = 128 << 20;

type Bytes = Box<dyn BufRead + Send>;

/// An open file.
pub(super) struct Input {
    pub(super) text: Bytes,
    /// In bytes; `None` for anything but a regular file.
    pub(super) size: Option<u64>,
    /// The encoding that was converted from; `None`: the text is UTF-8, or should be, and was not touched.
    pub(super) converted_from: Option<&'static Encoding>,
    bytes_read: Arc<AtomicU64>,
}

impl Input {
    /// Opens the file, or the standard input for `-`. A byte order mark decides over `encoding`.
    pub(super) fn open(path: &Path, encoding: Option<&'static Encoding>) -> io::Result<Self> {
        let (input, size): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        };
        let bytes_read = Arc::new(AtomicU64::new(0));
        let counted = Counted { input, bytes: Arc::clone(&bytes_read) };
        let bytes = decompress(BufReader::with_capacity(BUFFER_BYTES, counted))?;
        let (start, bytes) = peek(bytes)?;
        let (text, converted_from) = decode(&start, bytes, encoding);
        Ok(Self { text, size, converted_from, bytes_read })
    }

    /// Bytes of the file that were read, compressed as they are there.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

struct Counted {
    input: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The first four bytes, or fewer at the end of the file, which are read again afterwards.
fn peek(mut bytes: impl BufRead + Send + 'static) -> io::Result<(Vec<u8>, Bytes)> {
    let mut start = Vec::new();
    bytes.by_ref().take(4).read_to_end(&mut start)?;
    Ok((start.clone(), Box::new(Cursor::new(start).chain(bytes))))
}

fn decompress(bytes: impl BufRead + Send + 'static) -> io::Result<Bytes> {
    let (start, bytes) = peek(bytes)?;
    Ok(if start.starts_with(&GZIP) {
        buffered(MultiGzDecoder::new(bytes))
    } else if start == ZSTD {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        buffered(Zstd { decoder, bytes, is_in_frame: false })
    } else {
        bytes
    })
}

fn buffered(bytes: impl Read + Send + 'static) -> Bytes {
    Box::new(BufReader::with_capacity(BUFFER_BYTES, bytes))
}

fn decode(
    start: &[u8],
    bytes: Bytes,
    encoding: Option<&'static Encoding>,
) -> (Bytes, Option<&'static Encoding>) {
    // Without a mark: the first character of a header is one of ASCII, of which one byte is 0.
    let by_zeros = match start {
        [first, 0, ..] if *first != 0 => Some(UTF_16LE),
        [0, second, ..] if *second != 0 => Some(UTF_16BE),
        _ => None,
    };
    let marked = Encoding::for_bom(start).map(|(encoding, _)| encoding);
    let encoding = marked.or(encoding).or(by_zeros).filter(|&encoding| encoding != UTF_8);
    if encoding.is_none() && marked.is_none() {
        return (bytes, None);
    }
    let decoder = DecodeReaderBytesBuilder::new()
        .encoding(encoding)
        .bom_sniffing(true)
        .strip_bom(true)
        .utf8_passthru(true)
        .build(bytes);
    (buffered(decoder), encoding)
}

/// The content of all frames of a zstd file.
struct Zstd {
    decoder: FrameDecoder,
    bytes: Bytes,
    is_in_frame: bool,
}

impl Zstd {
    /// Reads the header of the next frame. Returns whether there is one.
    fn begin_frame(&mut self) -> io::Result<bool> {
        while !self.bytes.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.bytes) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.bytes.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(format!("zstd: {error}"))),
            }
        }
        Ok(false)
    }
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_frame && !self.begin_frame()? {
                return Ok(0);
            }
            self.is_in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let step = BlockDecodingStrategy::UptoBlocks(1);
                let decoded = self.decoder.decode_blocks(&mut self.bytes, step);
                decoded.map_err(|error| io::Error::other(format!("zstd: {error}")))?;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let written = self.decoder.get_checksum_from_data();
            if written.is_some() && written != self.decoder.get_calculated_checksum() {
                return Err(io::Error::other("zstd: the checksum is wrong"));
            }
            self.is_in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8], encoding: Option<&'static Encoding>) -> io::Result<String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut input = Input::open(file.path(), encoding)?;
        assert_eq!(input.size, Some(bytes.len() as u64));
        let mut text = String::new();
        input.text.read_to_string(&mut text)?;
        assert_eq!(input.bytes_read(), bytes.len() as u64);
        Ok(text)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn utf_16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(to_bytes).collect()
    }

    #[test]
    fn text_is_read_in_the_encoding_of_its_mark_or_its_zeros() {
        for mark in ["", "\u{feff}"] {
            for text in ["name;price\nLämpchen;1,99\n", "a", "", "商品"] {
                // Without a mark a first character beyond ASCII says nothing.
                if mark.is_empty() && text == "商品" {
                    continue;
                }
                let marked = format!("{mark}{text}");
                assert_eq!(read(marked.as_bytes(), None).unwrap(), text);
                assert_eq!(read(&utf_16(&marked, u16::to_le_bytes), None).unwrap(), text);
                assert_eq!(read(&utf_16(&marked, u16::to_be_bytes), None).unwrap(), text);
            }
        }
        let latin = b"Caf\xe9 5\x80";
        assert_eq!(read(latin, Encoding::for_label(b"windows-1252")).unwrap(), "Café 5€");
        let marked = "\u{feff}Café";
        assert_eq!(read(marked.as_bytes(), Encoding::for_label(b"latin1")).unwrap(), "Café");
    }

    #[test]
    fn compressed_files_are_read_whole_however_many_parts_they_have() {
        let text = "id,name\n".to_owned() + &"1,walnut desk lamp\n".repeat(100_000);
        let (one, two) = text.as_bytes().split_at(1_000_000);
        for compress in [gzip, zstd] {
            assert_eq!(read(&compress(text.as_bytes()), None).unwrap(), text);
            assert_eq!(read(&[compress(one), compress(two)].concat(), None).unwrap(), text);
            assert_eq!(read(&compress(&utf_16("name", u16::to_le_bytes)), None).unwrap(), "name");
        }
        let skippable = [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..]].concat();
        let with_skippable = [zstd(one), skippable, zstd(two)].concat();
        assert_eq!(read(&with_skippable, None).unwrap(), text);
    }

    #[test]
    fn a_damaged_or_truncated_file_is_an_error() {
        let text = "id,name\n".to_owned() + &"1,walnut desk lamp\n".repeat(10_000);
        for compress in [gzip, zstd] {
            let compressed = compress(text.as_bytes());
            assert!(read(&compressed[..compressed.len() / 2], None).is_err());
            let mut damaged = compressed.clone();
            let last = damaged.len() - 3;
            damaged[last] ^= 1;
            assert!(read(&damaged, None).is_err());
        }
    }
}
