//! The figures: medians with minimum and maximum, and ratios taken run by run.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Seconds by round, of one row on one target; `None` where a round did not finish the row.
pub type Times = Vec<Option<f64>>;

/// One row of the table: its times on each target, in the order of [`Report::targets`].
#[derive(Clone, Debug)]
pub struct Line {
    /// The row's name.
    pub name: String,
    /// By target.
    pub times: Vec<Times>,
}

/// A whole table. The first target is the one that the others are compared with.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was measured against what: versions, sizes.
    pub setting: Vec<(&'static str, String)>,
    /// Headings of the columns.
    pub targets: Vec<String>,
    /// The rows.
    pub lines: Vec<Line>,
}

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

/// The summary of `values`, or `None` when there are none.
pub fn summary(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let odd = sorted.len() % 2 == 1;
    let median = if odd { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    Some(Summary { median, min, max })
}

impl Summary {
    /// The middle.
    pub fn median(self) -> f64 {
        self.median
    }
}

impl Line {
    fn seconds(&self, target: usize) -> Option<Summary> {
        summary(self.times[target].iter().flatten().copied())
    }

    /// How many times longer target `other` took than the first, run by run.
    fn ratio(&self, other: usize) -> Option<Summary> {
        let pairs = self.times[0].iter().zip(&self.times[other]);
        summary(pairs.filter_map(|(ours, theirs)| Some((*theirs)? / (*ours)?)))
    }
}

impl Report {
    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.setting {
            let _ = writeln!(text, "{name}: {value}");
        }
        let _ = write!(text, "{:15}", "row");
        for target in &self.targets {
            let _ = write!(text, " {target:>29}");
        }
        for target in &self.targets[1..] {
            let _ = write!(text, " {:>28}", format!("{target} / {}", self.targets[0]));
        }
        text.push('\n');
        for line in &self.lines {
            let _ = write!(text, "{:15}", line.name);
            for index in 0..self.targets.len() {
                let _ = write!(text, " {:>29}", line.seconds(index).map_or_else(none, seconds));
            }
            for index in 1..self.targets.len() {
                let _ = write!(text, " {:>28}", line.ratio(index).map_or_else(none, ratio));
            }
            text.push('\n');
        }
        text
    }

    /// The same for programs; times in seconds.
    pub fn json(&self) -> Value {
        let setting: serde_json::Map<_, _> =
            self.setting.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let cell = |line: &Line, index: usize| {
            json!({
                "target": self.targets[index],
                "seconds": line.seconds(index).map(value),
                "rounds": line.times[index],
                "ratio_to_first": line.ratio(index).map(value),
            })
        };
        let row = |line: &Line| {
            let cells: Vec<Value> = (0..self.targets.len()).map(|i| cell(line, i)).collect();
            json!({ "row": line.name, "targets": cells })
        };
        json!({ "setting": setting, "rows": self.lines.iter().map(row).collect::<Vec<_>>() })
    }
}

fn value(summary: Summary) -> Value {
    json!({ "median": summary.median, "min": summary.min, "max": summary.max })
}

fn none() -> String {
    "-".to_owned()
}

fn seconds(s: Summary) -> String {
    let one = |seconds: f64| match seconds {
        s if s >= 0.1 => format!("{s:.2}s"),
        s if s >= 1e-4 => format!("{:.2}ms", s * 1e3),
        s => format!("{:.2}us", s * 1e6),
    };
    format!("{} ({}-{})", one(s.median), one(s.min), one(s.max))
}

fn ratio(s: Summary) -> String {
    format!("{:.3} ({:.3}-{:.3})", s.median, s.min, s.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let times = vec![vec![Some(1.0), Some(2.0), None], vec![Some(3.0), Some(2.0), Some(9.0)]];
        let lines = vec![Line { name: "x".to_owned(), times }];
        let targets = vec!["ours".to_owned(), "qemu".to_owned()];
        Report { setting: vec![("memory", "1 MiB".to_owned())], targets, lines }
    }

    #[test]
    fn summary_of_odd_even_and_none() {
        assert_eq!(summary([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(summary([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(summary([]), None);
    }

    #[test]
    fn ratio_is_taken_run_by_run() {
        let ratio = report().lines[0].ratio(1).unwrap();
        assert_eq!((ratio.min, ratio.max), (1.0, 3.0));
    }

    #[test]
    fn table_and_json_have_every_row_and_target() {
        let table = report().table();
        assert!(
            table.contains("memory: 1 MiB") && table.contains("1.50s (1.00s-2.00s)"),
            "{table}"
        );
        let json = report().json();
        assert_eq!(json["rows"][0]["targets"][1]["seconds"]["max"], 9.0);
        assert_eq!(json["setting"]["memory"], "1 MiB");
    }
}
