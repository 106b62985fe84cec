//! Reads the file, on a thread of its own: it may be a pipe that is silent for long.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

use super::line::{self, Line};
use crate::failure::Failure;

/// The longest line that is read. A longer one is refused and passed over.
const LINE_BYTES_MAX: usize = 1_024 * 1_024;

/// How many lines travel together; they cost one wake-up.
const BATCH_LINES: usize = 64;

/// How every gzip file begins (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Some lines, in the order of the file.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The lines.
    pub(crate) lines: Vec<Line>,
    /// How much of the file, as it is stored, has been read by now.
    pub(crate) read_bytes: u64,
}

/// What is imported.
pub(crate) struct Source {
    bytes: Box<dyn Read + Send>,
    size_bytes: Option<u64>,
}

impl Source {
    /// Opens a file, or standard input for "-".
    pub(crate) fn open(name: &str) -> Result<Self, Failure> {
        if name == "-" {
            return Ok(Self {
                bytes: Box::new(io::stdin()),
                size_bytes: None,
            });
        }
        let unreadable = |source| Failure::Input {
            name: display_name(name),
            source,
        };
        let file = File::open(name).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        Ok(Self {
            bytes: Box::new(file),
            size_bytes: metadata.is_file().then_some(metadata.len()),
        })
    }

    /// How large it is, where that is known.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }
}

/// What a source is called in messages.
pub(crate) fn display_name(name: &str) -> String {
    match name {
        "-" => "standard input".to_owned(),
        file => file.to_owned(),
    }
}

/// Reads all lines, until the end or until nobody wants more.
pub(crate) fn read(source: Source, batches: &mpsc::Sender<Batch>) -> io::Result<()> {
    let read_bytes = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        bytes: source.bytes,
        read_bytes: Arc::clone(&read_bytes),
    };
    let mut lines = Lines::new(decompressed(counted)?);
    let mut pending = Vec::with_capacity(BATCH_LINES);
    loop {
        let next = lines.next();
        let is_end = !matches!(next, Ok(Some(_)));
        let failure = match next {
            Ok(line) => {
                pending.extend(line);
                Ok(())
            }
            Err(error) => Err(error),
        };
        if is_end || pending.len() == BATCH_LINES {
            let batch = Batch {
                lines: mem::replace(&mut pending, Vec::with_capacity(BATCH_LINES)),
                read_bytes: read_bytes.load(Ordering::Relaxed),
            };
            if batches.blocking_send(batch).is_err() || is_end {
                return failure;
            }
        }
    }
}

/// Whatever the file is called: its first bytes tell whether it is gzip.
fn decompressed(mut bytes: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let mut magic = Vec::with_capacity(GZIP_MAGIC.len());
    bytes
        .by_ref()
        .take(GZIP_MAGIC.len() as u64)
        .read_to_end(&mut magic)?;
    let is_gzip = magic == GZIP_MAGIC;
    let whole = BufReader::new(io::Cursor::new(magic).chain(bytes));
    Ok(if is_gzip {
        Box::new(BufReader::new(MultiGzDecoder::new(whole)))
    } else {
        Box::new(whole)
    })
}

/// Counts what is read.
struct Counted {
    bytes: Box<dyn Read + Send>,
    read_bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.bytes.read(buffer)?;
        self.read_bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// Takes a text apart.
struct Lines<R> {
    text: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(text: R) -> Self {
        Self {
            text,
            number: 0,
            buffer: Vec::new(),
        }
    }

    /// The next line that is not blank.
    fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            self.buffer.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let length = self
                .text
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut self.buffer)?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            if length > LINE_BYTES_MAX && !self.buffer.ends_with(b"\n") {
                self.text.skip_until(b'\n')?;
                return Ok(Some(self.too_long()));
            }
            let line = self.buffer.trim_ascii();
            if !line.is_empty() {
                return Ok(Some(line::parse(self.number, line)));
            }
        }
    }

    fn too_long(&self) -> Line {
        Line {
            number: self.number,
            request: Err(format!("the line is longer than {LINE_BYTES_MAX} bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn order(reference: &str) -> String {
        format!(
            r#"{{"order":"{reference}","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[]}}"#
        )
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder
            .write_all(text.as_bytes())
            .expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything")
    }

    /// The number and the reference of a line, or what is wrong with it.
    type Read = (u64, Result<String, String>);

    fn read_all(bytes: Vec<u8>) -> (Vec<Read>, io::Result<()>) {
        let (sender, mut receiver) = mpsc::channel(1_024);
        let source = Source {
            size_bytes: None,
            bytes: Box::new(io::Cursor::new(bytes)),
        };
        let ended = read(source, &sender);
        drop(sender);
        let mut lines = Vec::new();
        while let Some(batch) = receiver.blocking_recv() {
            let reference = |line: Line| (line.number, line.request.map(|request| request.reference));
            lines.extend(batch.lines.into_iter().map(reference));
        }
        (lines, ended)
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_are_passed_over() {
        let text = format!("{}\r\n\n  \n{}", order("a"), order("b"));
        let (lines, ended) = read_all(text.into_bytes());
        assert_eq!(lines, [(1, Ok("a".to_owned())), (4, Ok("b".to_owned()))]);
        assert!(ended.is_ok());
    }

    #[test]
    fn gzip_is_recognised_by_its_first_bytes_and_may_have_several_members() {
        let members = [gzip(&format!("{}\n", order("a"))), gzip(&order("b"))].concat();
        let (lines, ended) = read_all(members);
        assert_eq!(lines, [(1, Ok("a".to_owned())), (2, Ok("b".to_owned()))]);
        assert!(ended.is_ok());
    }

    #[test]
    fn a_malformed_line_is_one_line() {
        let text = format!("{}\nnot JSON\n{}\n", order("a"), order("b"));
        let (lines, _) = read_all(text.into_bytes());
        assert!(
            matches!(&lines[..], [(1, Ok(_)), (2, Err(_)), (3, Ok(_))]),
            "{lines:?}"
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_and_the_next_one_is_read() {
        let text = format!(
            "{}\n{}\n{}\n",
            order("a"),
            "x".repeat(3 * LINE_BYTES_MAX),
            order("b")
        );
        let (lines, _) = read_all(text.into_bytes());
        let [(1, Ok(_)), (2, Err(problem)), (3, Ok(_))] = &lines[..] else {
            panic!("three lines with the second one refused: {lines:?}");
        };
        assert!(problem.contains("longer than"), "{problem}");
    }

    #[test]
    fn a_file_that_is_cut_off_gives_its_lines_and_then_an_error() {
        let text: String = (0..1_000)
            .map(|number| order(&format!("order-{number}")) + "\n")
            .collect();
        let mut bytes = gzip(&text);
        bytes.truncate(bytes.len() - 10);
        let (lines, ended) = read_all(bytes);
        assert!(lines.len() > 500, "{}", lines.len());
        assert!(ended.is_err());
    }

    #[test]
    fn an_empty_file_has_no_lines() {
        assert!(matches!(read_all(Vec::new()), (lines, Ok(())) if lines.is_empty()));
    }
}
