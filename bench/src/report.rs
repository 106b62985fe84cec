//! Figures and the goals they are held against, as a table and as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// It is shown for comparison.
    None,
}

impl Goal {
    fn is_met(self, figure: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(figure >= least),
            Self::AtMost(most) => Some(figure <= most),
            Self::None => None,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {} {unit}", number(least)),
            Self::AtMost(most) => format!("≤ {} {unit}", number(most)),
            Self::None => String::new(),
        }
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    goal: Goal,
    /// What each run gave; the median counts.
    runs: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// Notes what one run of a measurement gave; rows of one name are runs of one measurement.
    pub(crate) fn note(&mut self, name: &str, figure: f64, unit: &'static str, goal: Goal) {
        eprintln!("  {name}: {} {unit}", number(figure));
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => row.runs.push(figure),
            None => self.0.push(Row {
                name: name.to_owned(),
                unit,
                goal,
                runs: vec![figure],
            }),
        }
    }

    /// The median so far of a measurement, for ratios.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|row| row.name == name).map(Row::median)
    }

    /// The table.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "\n| what | median | goal | met | runs |\n|---|---:|---:|---|---|"
        )?;
        for row in &self.0 {
            let met = match row.goal.is_met(row.median()) {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            };
            let runs: Vec<String> = row.runs.iter().map(|run| number(*run)).collect();
            writeln!(
                out,
                "| {} | {} {} | {} | {met} | {} |",
                row.name,
                number(row.median()),
                row.unit,
                row.goal.text(row.unit),
                runs.join(", "),
            )?;
        }
        Ok(())
    }

    /// The same for machines.
    pub(crate) fn to_json(&self) -> Value {
        let rows = self.0.iter().map(|row| {
            json!({
                "name": row.name,
                "unit": row.unit,
                "median": row.median(),
                "runs": row.runs,
                "goal": row.goal.text(row.unit),
                "met": row.goal.is_met(row.median()),
            })
        });
        Value::Array(rows.collect())
    }
}

/// Three significant digits below a hundred, whole numbers with separators above.
fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
