//! The input of an import on its way into the database: cut into chunks between lines, in bounded memory, however it arrives.

use std::mem;

use sha2::{Digest as _, Sha256};

use crate::COMMAND_BYTES_MAX;

/// From how many bytes on lines go to the database.
const CHUNK_BYTES: usize = 256 * 1_024;

/// How many lines go there together at most: what works on them takes them all up at once.
pub(super) const CHUNK_LINES_MAX: u64 = 1_000;

/// The longest line, in bytes: what it asks for is a command. Of a longer one as much is kept as shows that it is too long.
pub(super) const LINE_BYTES_MAX: usize = COMMAND_BYTES_MAX;

/// Some lines, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The number of the first one, from 1.
    pub(super) first_line: u64,
    /// The lines.
    pub(super) lines: Vec<u8>,
}

/// What is known of an input once all of it has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole {
    /// The hash of its bytes.
    pub(super) sha256: [u8; 32],
    /// How many bytes go to the database.
    pub(super) bytes: u64,
    /// How many lines it has.
    pub(super) lines: u64,
}

/// Cuts what arrives into chunks.
#[derive(Debug)]
pub(super) struct Chunks {
    hash: Sha256,
    /// Bytes of the unfinished line.
    line_bytes: usize,
    /// Lines that are complete.
    lines: u64,
    bytes: u64,
    first_line: u64,
    gathered: Vec<u8>,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self {
            hash: Sha256::new(),
            line_bytes: 0,
            lines: 0,
            bytes: 0,
            first_line: 1,
            gathered: Vec::new(),
        }
    }

    /// Takes in what arrived, and gives the chunks that are complete with it.
    pub(super) fn push(&mut self, arrived: &[u8]) -> Vec<Chunk> {
        self.hash.update(arrived);
        let mut complete = Vec::new();
        for part in arrived.split_inclusive(|byte| *byte == b'\n') {
            let is_end = part.ends_with(b"\n");
            let text = &part[..part.len() - usize::from(is_end)];
            let room = LINE_BYTES_MAX + 1 - self.line_bytes;
            self.gathered.extend_from_slice(&text[..text.len().min(room)]);
            self.line_bytes = (self.line_bytes + text.len()).min(LINE_BYTES_MAX + 1);
            if is_end {
                self.end_line();
                if self.gathered.len() >= CHUNK_BYTES || self.lines + 1 - self.first_line >= CHUNK_LINES_MAX {
                    complete.extend(self.cut());
                }
            }
        }
        complete
    }

    /// The last chunk, and the whole.
    pub(super) fn finish(mut self) -> (Option<Chunk>, Whole) {
        if self.line_bytes > 0 {
            self.end_line();
        }
        let last = self.cut();
        let whole = Whole {
            sha256: self.hash.finalize().into(),
            bytes: self.bytes,
            lines: self.lines,
        };
        (last, whole)
    }

    fn end_line(&mut self) {
        self.gathered.push(b'\n');
        self.lines += 1;
        self.line_bytes = 0;
    }

    fn cut(&mut self) -> Option<Chunk> {
        let first_line = mem::replace(&mut self.first_line, self.lines + 1);
        let lines = mem::take(&mut self.gathered);
        self.bytes += lines.len() as u64;
        (!lines.is_empty()).then_some(Chunk { first_line, lines })
    }
}

/// The lines of a chunk that are not blank, with their numbers.
pub(super) fn lines(chunk: &Chunk) -> impl Iterator<Item = (u64, &[u8])> {
    let lines = chunk.lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let numbered = (chunk.first_line..).zip(lines);
    numbered.filter(|(_, line)| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &[u8], piece_bytes: usize) -> (Vec<Chunk>, Whole) {
        let mut chunks = Chunks::new();
        let mut complete: Vec<Chunk> = text
            .chunks(piece_bytes)
            .flat_map(|piece| chunks.push(piece))
            .collect();
        let (last, whole) = chunks.finish();
        complete.extend(last);
        (complete, whole)
    }

    fn all_lines(chunks: &[Chunk]) -> Vec<(u64, Vec<u8>)> {
        let lines = chunks.iter().flat_map(lines);
        lines.map(|(number, line)| (number, line.to_vec())).collect()
    }

    #[test]
    fn an_input_is_cut_between_lines_however_it_arrives() {
        let text: String = (1..=20_000)
            .map(|number| match number % 100 {
                7 => "\n".to_owned(),
                _ => format!(
                    "{{\"order\":\"order-{number}\",\"note\":\"{}\"}}\r\n",
                    "x".repeat(number % 50)
                ),
            })
            .collect();
        let (whole_at_once, whole) = chunks(text.as_bytes(), usize::MAX);
        assert!(whole_at_once.len() > 2, "{}", whole_at_once.len());
        assert!(
            whole_at_once
                .iter()
                .all(|chunk| chunk.lines.len() < 2 * CHUNK_BYTES)
        );
        assert_eq!((whole.lines, whole.bytes), (20_000, text.len() as u64));
        let lines = all_lines(&whole_at_once);
        assert_eq!(lines.len(), 19_800);
        assert!(lines.iter().all(|(number, line)| {
            line.starts_with(format!("{{\"order\":\"order-{number}\"").as_bytes())
        }));
        for piece_bytes in [1_000, 7_777, 300_000] {
            let (in_pieces, of_pieces) = chunks(text.as_bytes(), piece_bytes);
            assert_eq!(
                (all_lines(&in_pieces), of_pieces),
                (lines.clone(), whole),
                "{piece_bytes}"
            );
        }
    }

    #[test]
    fn of_a_line_that_is_too_long_as_much_is_kept_as_shows_it() {
        let text = [b"a\n", "x".repeat(10 * LINE_BYTES_MAX).as_bytes(), b"\nb"].concat();
        let (chunks, whole) = chunks(&text, 64 * 1_024);
        let lengths: Vec<_> = all_lines(&chunks)
            .into_iter()
            .map(|(number, line)| (number, line.len()))
            .collect();
        assert_eq!(lengths, [(1, 1), (2, LINE_BYTES_MAX + 1), (3, 1)]);
        assert_eq!(whole.lines, 3);
        assert_ne!(
            whole.sha256,
            chunks_sha(b"a\nxx\nb"),
            "the hash is that of all bytes"
        );
    }

    fn chunks_sha(text: &[u8]) -> [u8; 32] {
        chunks(text, 10).1.sha256
    }

    #[test]
    fn a_chunk_has_no_more_lines_than_are_taken_up_at_once() {
        let (chunks, whole) = chunks("1\n".repeat(2_500).as_bytes(), 700);
        let first_lines: Vec<u64> = chunks.iter().map(|chunk| chunk.first_line).collect();
        assert_eq!(first_lines, [1, 1_001, 2_001]);
        assert_eq!((all_lines(&chunks).len(), whole.lines), (2_500, 2_500));
    }

    #[test]
    fn an_empty_input_has_no_chunk() {
        assert!(matches!(chunks(b"", 1), (chunks, Whole { lines: 0, .. }) if chunks.is_empty()));
        let (blank, whole) = chunks(b"\n \n", 1);
        assert_eq!((all_lines(&blank).len(), whole.lines), (0, 2));
    }
}
