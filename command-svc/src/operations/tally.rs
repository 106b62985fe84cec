//! Counts what is done of an import, chunk by chunk.

use std::collections::VecDeque;

use tokio::sync::OwnedSemaphorePermit;

use super::ERRORS_MAX;
use super::lease::{Failed, Progress};

/// What became of a part of the input.
#[derive(Debug)]
pub(super) enum Step {
    /// A line of this chunk.
    Line { chunk: i32, failed: Option<Failed> },
    /// All lines of a chunk have begun.
    Chunk {
        chunk: i32,
        lines: i64,
        bytes: i64,
        /// Its place among the chunks that are open.
        place: OwnedSemaphorePermit,
    },
    /// A chunk is not there.
    Missing,
}

/// Counts what is done, chunk by chunk.
#[derive(Debug)]
pub(super) struct Tally {
    /// Progress up to the first unfinished chunk.
    pub(super) progress: Progress,
    /// Errors of those that are not recorded yet.
    errors: Vec<Failed>,
    /// The chunks behind those, of which lines are under way or done.
    open: VecDeque<OpenChunk>,
}

#[derive(Debug, Default)]
struct OpenChunk {
    /// Lines and bytes, once all lines have begun, and the place among those that are open.
    size: Option<(i64, i64, OwnedSemaphorePermit)>,
    done: i64,
    failed: i64,
    /// No more than may be kept.
    errors: Vec<Failed>,
}

impl Tally {
    pub(super) fn new(progress: Progress) -> Self {
        Self {
            progress,
            errors: Vec::new(),
            open: VecDeque::new(),
        }
    }

    /// Counts a step that has been taken.
    pub(super) fn take_in(&mut self, step: Step) {
        match step {
            Step::Line { chunk, failed } => {
                let room = self.room();
                let open = self.open(chunk);
                open.done += 1;
                open.failed += i64::from(failed.is_some());
                let is_kept = open.errors.len() < room;
                open.errors.extend(failed.filter(|_| is_kept));
            }
            Step::Chunk {
                chunk,
                lines,
                bytes,
                place,
            } => {
                self.open(chunk).size = Some((lines, bytes, place));
            }
            Step::Missing => {}
        }
        while let Some(first) = self.open.front()
            && let Some((lines, bytes, _)) = first.size.as_ref()
            && first.done == *lines
        {
            let (lines, bytes) = (*lines, *bytes);
            let room = self.room();
            let OpenChunk { failed, errors, .. } = self.open.pop_front().expect("there is a front");
            self.errors.extend(errors.into_iter().take(room));
            self.progress = Progress {
                chunks: self.progress.chunks + 1,
                bytes: self.progress.bytes + bytes,
                lines: self.progress.lines + lines,
                succeeded: self.progress.succeeded + lines - failed,
                failed: self.progress.failed + failed,
            };
        }
    }

    /// How many more errors are kept.
    fn room(&self) -> usize {
        let room = ERRORS_MAX.saturating_sub(self.progress.failed.cast_unsigned());
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// A chunk that is not done.
    fn open(&mut self, chunk: i32) -> &mut OpenChunk {
        let index = usize::try_from(chunk - self.progress.chunks).expect("chunks are done in order");
        while self.open.len() <= index {
            self.open.push_back(OpenChunk::default());
        }
        &mut self.open[index]
    }

    /// Errors that are to be recorded with the progress so far.
    pub(super) fn take_errors(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.errors)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn line(chunk: i32, failed: Option<u64>) -> Step {
        let failed = failed.map(|line| Failed {
            line,
            reference: None,
            problem: "{}".to_owned(),
        });
        Step::Line { chunk, failed }
    }

    fn chunk(chunk: i32, lines: i64) -> Step {
        let places = Arc::new(Semaphore::new(1));
        Step::Chunk {
            chunk,
            lines,
            bytes: 100 * lines,
            place: places.try_acquire_owned().expect("it is free"),
        }
    }

    #[test]
    fn a_chunk_counts_once_all_of_its_lines_and_of_those_before_it_are_done() {
        let begun = Progress {
            chunks: 7,
            lines: 70,
            succeeded: 70,
            ..Progress::default()
        };
        let mut tally = Tally::new(begun);
        for step in [line(7, None), chunk(7, 2), line(8, Some(73)), chunk(8, 1)] {
            tally.take_in(step);
            assert_eq!(tally.progress, begun, "a line of the first one is not done");
        }
        assert!(tally.take_errors().is_empty());
        tally.take_in(line(7, Some(72)));
        let done = Progress {
            chunks: 9,
            bytes: 300,
            lines: 73,
            succeeded: 71,
            failed: 2,
        };
        assert_eq!(tally.progress, done);
        let lines: Vec<u64> = tally.take_errors().iter().map(|error| error.line).collect();
        assert_eq!(lines, [72, 73]);
        tally.take_in(chunk(9, 0));
        assert_eq!(
            tally.progress.chunks, 10,
            "a chunk of blank lines is done at once"
        );
    }

    #[test]
    fn errors_beyond_the_limit_are_counted_and_not_kept() {
        let mut tally = Tally::new(Progress::default());
        let lines = i64::try_from(ERRORS_MAX).expect("it is small");
        for _ in 0..2 {
            let number = tally.progress.chunks;
            (0..lines).for_each(|index| tally.take_in(line(number, Some(index.cast_unsigned()))));
            tally.take_in(chunk(number, lines));
        }
        assert_eq!(tally.progress.failed, 2 * lines);
        assert_eq!(tally.take_errors().len() as u64, ERRORS_MAX);
    }

    #[test]
    fn errors_that_would_not_be_kept_are_not_gathered_behind_a_slow_line_either() {
        let mut tally = Tally::new(Progress {
            failed: i64::try_from(ERRORS_MAX - 1).expect("it is small"),
            ..Progress::default()
        });
        (1..=100).for_each(|number| tally.take_in(line(1, Some(number))));
        assert_eq!((tally.open[1].failed, tally.open[1].errors.len()), (100, 1));
    }
}
