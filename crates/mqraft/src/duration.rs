//! Durations as the command line and the configuration file spell them: `500ms`, `8s`, `2m`.
//!
//! Our own twenty lines: the one unit per value that we want is less than what `humantime` takes
//! (`1h 30m`, months), and it is one dependency less on a router.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A [`Duration`] that is written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

/// A text that is no duration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SpanError(String);

impl fmt::Display for SpanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpanError(text) = self;
        write!(
            f,
            "{text:?} is no duration: write a whole number and a unit, as in 500ms, 8s or 2m"
        )
    }
}

impl std::error::Error for SpanError {}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let wrong = || SpanError(text.to_owned());
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(unit_at);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds_each = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            _ => return Err(wrong()),
        };
        let milliseconds = number.checked_mul(milliseconds_each).ok_or_else(wrong)?;
        Ok(Span(Duration::from_millis(milliseconds)))
    }
}

/// As it is read.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Span, SpanError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_make_a_duration() {
        let table = [
            ("500ms", Some(500)),
            ("8s", Some(8_000)),
            ("2m", Some(120_000)),
            ("0s", Some(0)),
            ("", None),
            ("8", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("1h", None),
            ("18446744073709551615m", None),
            ("18446744073709551616ms", None),
        ];
        for (text, milliseconds) in table {
            let expected = milliseconds.map(|ms| Span(Duration::from_millis(ms)));
            assert_eq!(text.parse().ok(), expected, "{text:?}");
        }
    }
}
