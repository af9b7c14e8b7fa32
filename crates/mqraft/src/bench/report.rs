//! What was measured: rows of times and rates, the broker's floor among them.

use serde_json::{Map, Value, json};

use super::samples::{Percentiles, Samples};
use crate::output;

const HEAD: [&str; 9] = [
    "",
    "count",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "p99.9 ms",
    "max ms",
    "a second",
    "p50 / floor",
];

/// All that a run of `bench` found out.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    numbers: Vec<Number>,
    /// What it was measured on and how, for JSON.
    pub(super) setting: Map<String, Value>,
}

/// One thing that was timed.
#[derive(Debug)]
struct Row {
    what: What,
    samples: Samples,
    per_second: Option<f64>,
}

/// A thing that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct What {
    /// As JSON calls it.
    pub(super) key: &'static str,
    /// As people do.
    pub(super) name: &'static str,
    /// Whether it is a floor: what it takes without a cluster.
    pub(super) is_floor: bool,
    /// The key of the floor to compare with.
    pub(super) floor: Option<&'static str>,
}

/// What the broker and the disk take, without a cluster.
pub(super) const fn floor(key: &'static str, name: &'static str) -> What {
    What {
        key,
        name,
        is_floor: true,
        floor: None,
    }
}

/// What a cluster takes.
pub(super) const fn ours(key: &'static str, name: &'static str) -> What {
    What {
        key,
        name,
        is_floor: false,
        floor: None,
    }
}

impl What {
    /// The floor that does the same without a cluster.
    pub(super) const fn above(self, floor: What) -> What {
        What {
            floor: Some(floor.key),
            ..self
        }
    }
}

/// One number that stands by itself.
#[derive(Debug)]
struct Number {
    key: &'static str,
    name: &'static str,
    value: f64,
}

impl Report {
    /// Rows are shown in the order in which they are first named.
    pub(super) fn row(&mut self, what: What) -> &mut Samples {
        &mut self.row_of(what).samples
    }

    pub(super) fn rate(&mut self, what: What, per_second: f64) {
        self.row_of(what).per_second = Some(per_second);
    }

    fn row_of(&mut self, what: What) -> &mut Row {
        let at = self.rows.iter().position(|row| row.what == what);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                what,
                samples: Samples::default(),
                per_second: None,
            });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Whether nothing was found out.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn number(&mut self, key: &'static str, name: &'static str, value: f64) {
        self.numbers.push(Number { key, name, value });
    }

    // For people.

    /// The table; the rows of the floor come first and begin with the word.
    pub(super) fn table(&self) -> String {
        let mut figures: Vec<_> = self.rows.iter().map(Figures::of).collect();
        figures.sort_by_key(|row| !row.what.is_floor);
        let head = HEAD.map(str::to_owned).to_vec();
        let rows = figures.iter().map(|row| row.cells(&figures));
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        let mut text = output::figures(&rows);
        for number in &self.numbers {
            text += &format!("\n{}: {}", number.name, shown(number.value));
        }
        text
    }

    // For programs.

    pub(super) fn json(&self) -> Value {
        let rows = |is_floor: bool| {
            let rows = self
                .rows
                .iter()
                .filter(move |row| row.what.is_floor == is_floor);
            rows.map(|row| (row.what.key.to_owned(), Figures::of(row).json()))
        };
        let numbers = self.numbers.iter();
        let numbers = numbers.map(|number| (number.key.to_owned(), json!(number.value)));
        let mut document = self.setting.clone();
        document.insert("floor".to_owned(), rows(true).collect());
        document.insert("ours".to_owned(), rows(false).chain(numbers).collect());
        Value::Object(document)
    }
}

/// A row, worked out.
struct Figures {
    what: What,
    times: Option<Percentiles>,
    per_second: Option<f64>,
}

impl Figures {
    fn of(row: &Row) -> Figures {
        Figures {
            what: row.what,
            times: row.samples.percentiles(),
            per_second: row.per_second,
        }
    }

    fn cells(&self, all: &[Figures]) -> Vec<String> {
        let floor = if self.what.is_floor { "floor: " } else { "" };
        let mut cells = vec![format!("{floor}{}", self.what.name)];
        match &self.times {
            None => cells.extend(std::iter::repeat_n(String::new(), 6)),
            Some(times) => {
                cells.push(times.count.to_string());
                let of = [times.p50, times.p90, times.p99, times.p999, times.max];
                cells.extend(of.map(|ms| format!("{ms:.3}")));
            }
        }
        cells.push(self.per_second.map_or(String::new(), shown));
        let below = all.iter().find(|row| Some(row.what.key) == self.what.floor);
        let ratio = below.and_then(|floor| Some(self.times?.p50 / floor.times?.p50));
        cells.push(ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")));
        cells
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        let mut insert = |name: &str, value| object.insert(name.to_owned(), value);
        if let Some(times) = &self.times {
            insert("count", json!(times.count));
            insert("p50_ms", json!(times.p50));
            insert("p90_ms", json!(times.p90));
            insert("p99_ms", json!(times.p99));
            insert("p999_ms", json!(times.p999));
            insert("max_ms", json!(times.max));
        }
        if let Some(rate) = self.per_second {
            insert("per_second", json!(rate));
        }
        Value::Object(object)
    }
}

/// Three digits and more, as many as mean something.
fn shown(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BARE: What = floor("bare", "there and back");
    const PUT: What = ours("put", "put").above(BARE);

    /// A row stands on its floor, and JSON keeps the two apart.
    #[test]
    fn a_row_is_compared_with_its_floor() {
        let mut report = Report::default();
        report.row(BARE).add(Duration::from_millis(2));
        report.row(PUT).add(Duration::from_millis(3));
        report.rate(PUT, 12_345.6);
        report.number("publishes_per_put", "publishes per put", 1.0);
        let expected = [
            "                       count  p50 ms  p90 ms  p99 ms  p99.9 ms  max ms  a second  p50 / floor",
            "floor: there and back      1   2.000   2.000   2.000     2.000   2.000",
            "put                        1   3.000   3.000   3.000     3.000   3.000     12346         1.50",
            "publishes per put: 1.00",
        ];
        assert_eq!(report.table(), expected.join("\n"));
        let json = report.json();
        assert_eq!(json["floor"]["bare"]["p999_ms"], 2.0);
        assert_eq!(json["ours"]["put"]["per_second"], 12_345.6);
        assert_eq!(json["ours"]["publishes_per_put"], 1.0);
        assert!(json["ours"]["bare"].is_null());
    }
}
