//! What became of the lines, and the summary of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::place::Refused;
use crate::failure::Failure;
use crate::output::{count, per_second};

/// How many refusals of each code are shown.
const SAMPLES_MAX: usize = 3;

/// Counts outcomes.
pub(crate) struct Tally {
    began: Instant,
    placed: u64,
    replayed: u64,
    refused: u64,
    by_code: BTreeMap<String, RefusedCode>,
}

/// The refusals of one code.
#[derive(Clone, Default, Serialize)]
struct RefusedCode {
    count: u64,
    /// Those of the first lines.
    samples: Vec<Sample>,
}

#[derive(Clone, Serialize)]
struct Sample {
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    message: String,
}

/// The outcome of an import.
#[derive(Serialize)]
pub(crate) struct Summary<'a> {
    placed: u64,
    replayed: u64,
    refused: u64,
    seconds: f64,
    orders_per_second: u64,
    refusals: &'a BTreeMap<String, RefusedCode>,
    /// Why the import ended before the file did.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
}

impl Tally {
    /// Nothing yet; the time runs.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            placed: 0,
            replayed: 0,
            refused: 0,
            by_code: BTreeMap::new(),
        }
    }

    /// One order more that is there.
    pub(crate) fn placed(&mut self, is_replay: bool) {
        if is_replay {
            self.replayed += 1;
        } else {
            self.placed += 1;
        }
    }

    /// One line more that was refused.
    pub(crate) fn refuse(&mut self, refused: Refused) {
        self.refused += 1;
        let code = self.by_code.entry(refused.code).or_default();
        code.count += 1;
        code.samples.push(Sample {
            line: refused.line,
            order: refused.reference,
            message: refused.message,
        });
        // Answers come in another order than the lines.
        code.samples.sort_by_key(|sample| sample.line);
        code.samples.truncate(SAMPLES_MAX);
    }

    /// How many lines were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many lines are done.
    pub(crate) fn total(&self) -> u64 {
        self.placed + self.replayed + self.refused
    }

    /// What stands beside the progress bar.
    pub(crate) fn progress(&self) -> String {
        let rate = per_second(self.total(), self.began.elapsed().as_secs_f64());
        format!(
            "{} orders  {}/s  {} refused",
            count(self.total()),
            count(rate),
            count(self.refused)
        )
    }

    /// The summary so far; at the end, or where the import had to stop.
    pub(crate) fn summary(&self, stopped: Option<&Failure>) -> Summary<'_> {
        let seconds = self.began.elapsed().as_secs_f64();
        Summary {
            placed: self.placed,
            replayed: self.replayed,
            refused: self.refused,
            seconds,
            orders_per_second: per_second(self.placed + self.replayed, seconds),
            refusals: &self.by_code,
            stopped: stopped.map(ToString::to_string),
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "placed    {}\nreplayed  {}\nrefused   {}\ntook      {:.1} s ({} orders/s)",
            count(self.placed),
            count(self.replayed),
            count(self.refused),
            self.seconds,
            count(self.orders_per_second)
        )?;
        for (code, refused) in self.refusals {
            write!(f, "\n\n{code}: {}", count(refused.count))?;
            for sample in &refused.samples {
                write!(f, "\n  {sample}")?;
            }
        }
        match &self.stopped {
            Some(_) => write!(f, "\n\nstopped before the end; run it again to go on"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(order) = &self.order {
            write!(f, ", order {order}")?;
        }
        write!(f, ": {}", self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: u64) -> Refused {
        Refused {
            line,
            reference: Some(format!("cdnow-{line}")),
            code: "VALIDATION_FAILED".to_owned(),
            message: "/currency: is not a code of ISO 4217".to_owned(),
        }
    }

    #[test]
    fn the_summary_counts_every_refusal_and_shows_the_first_ones() {
        let mut tally = Tally::new();
        tally.placed(false);
        tally.placed(true);
        (7..12).rev().for_each(|line| tally.refuse(refused(line)));
        let text = tally.summary(None).to_string();
        assert!(
            text.starts_with("placed    1\nreplayed  1\nrefused   5\n"),
            "{text}"
        );
        assert!(
            text.contains("VALIDATION_FAILED: 5\n  line 7, order cdnow-7: /currency"),
            "{text}"
        );
        assert!(text.contains("line 9") && !text.contains("line 10"), "{text}");
    }

    #[test]
    fn an_import_that_stopped_says_so() {
        let tally = Tally::new();
        let failure = Failure::Failed("UNAVAILABLE: connection refused".to_owned());
        let summary = tally.summary(Some(&failure));
        assert!(summary.to_string().ends_with("run it again to go on"));
        let json = serde_json::to_value(&summary).expect("a summary is JSON");
        assert_eq!(json["stopped"], "UNAVAILABLE: connection refused");
    }
}
