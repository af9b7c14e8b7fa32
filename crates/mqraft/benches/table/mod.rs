//! Figures in aligned columns: a row for each way to do a thing, so that they stand side by side.

use std::time::Duration;

/// A table printed when all of its rows are known.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings above its figures; the rows' names have none.
    pub(crate) fn new(headings: Vec<String>) -> Self {
        let head = std::iter::once(String::new()).chain(headings).collect();
        Self { rows: vec![head] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, name: &str, figures: Vec<String>) {
        let row = std::iter::once(name.to_owned()).chain(figures).collect();
        self.rows.push(row);
    }

    /// Names to the left, figures to the right.
    pub(crate) fn print(&self) {
        let widths = self.widths();
        for row in &self.rows {
            let (name, figures) = row.split_first().expect("a row has a name");
            print!("{name:<width$}", width = widths[0]);
            for (figure, width) in figures.iter().zip(&widths[1..]) {
                print!("  {figure:>width$}");
            }
            println!();
        }
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![0; self.rows[0].len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        widths
    }
}

/// The samples at these percentiles.
pub(crate) fn percentiles<const N: usize>(
    mut samples: Vec<Duration>,
    percents: [usize; N],
) -> [Duration; N] {
    samples.sort_unstable();
    percents.map(|percent| samples[(samples.len() - 1) * percent / 100])
}

/// The one in the middle; none of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// `0.372`
pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

/// `158,000`: three digits that mean something.
pub(crate) fn per_second(rate: f64) -> String {
    let mut digits = format!("{rate:.0}");
    let mut at = digits.len();
    while at > 3 {
        at -= 3;
        digits.insert(at, ',');
    }
    digits
}
