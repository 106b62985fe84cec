//! Reads the file, on a thread of its own: it may be a pipe that is silent for long.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use crate::failure::Failure;

/// How much is handed over at a time.
const PIECE_BYTES: usize = 64 * 1_024;

/// How every gzip file begins (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

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

/// Reads the whole source, until the end or until nobody wants more. What cannot be read breaks off what receives it.
pub(crate) fn read(
    source: Source,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    bar: &ProgressBar,
) -> io::Result<()> {
    let counted = Counted {
        bytes: source.bytes,
        bar: bar.clone(),
    };
    let mut text = decompressed(counted)?;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = text.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece);
        let broke_off = io::Error::from(io::ErrorKind::InvalidData);
        let (piece, ended) = match read {
            Ok(0) => return Ok(()),
            Ok(_) => (Ok(piece.into()), None),
            Err(error) => (Err(broke_off), Some(error)),
        };
        let is_wanted = pieces.blocking_send(piece).is_ok();
        match ended {
            Some(error) => return Err(error),
            None if is_wanted => {}
            None => return Ok(()),
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

/// Shows how much is read.
struct Counted {
    bytes: Box<dyn Read + Send>,
    bar: ProgressBar,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.bytes.read(buffer)?;
        self.bar.inc(length as u64);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder
            .write_all(text.as_bytes())
            .expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything")
    }

    /// What is handed over, whether it was broken off, and how reading ended.
    fn read_all(bytes: Vec<u8>) -> (Vec<u8>, bool, io::Result<()>) {
        let (sender, mut receiver) = mpsc::channel(1_024);
        let source = Source {
            size_bytes: None,
            bytes: Box::new(io::Cursor::new(bytes)),
        };
        let ended = read(source, &sender, &ProgressBar::hidden());
        drop(sender);
        let (mut text, mut broke_off) = (Vec::new(), false);
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                Ok(piece) => text.extend_from_slice(&piece),
                Err(_) => broke_off = true,
            }
        }
        (text, broke_off, ended)
    }

    #[test]
    fn gzip_is_recognised_by_its_first_bytes_and_may_have_several_members() {
        let members = [gzip("a\n"), gzip("b")].concat();
        for bytes in [members, b"a\nb".to_vec()] {
            let (text, broke_off, ended) = read_all(bytes);
            assert_eq!((&*text, broke_off), (&b"a\nb"[..], false));
            assert!(ended.is_ok());
        }
    }

    #[test]
    fn a_file_that_is_cut_off_breaks_off_what_receives_it() {
        let mut bytes = gzip(&"an order\n".repeat(100_000));
        bytes.truncate(bytes.len() - 10);
        let (_, broke_off, ended) = read_all(bytes);
        assert!(broke_off && ended.is_err());
    }

    #[test]
    fn an_empty_file_is_handed_over_as_nothing() {
        assert!(matches!(read_all(Vec::new()), (text, false, Ok(())) if text.is_empty()));
    }
}
