//! Names that may stand in a topic, and the metric beside them.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::topic::ALL;

/// The longest name of a node, a cluster or a prefix level, in bytes.
pub const MAX_NAME: usize = 64;

/// A name of a node or a cluster: one level of an MQTT topic.
///
/// 1 to 64 bytes of ASCII letters, digits, `.`, `_` and `-`, beginning with a letter or a digit.
/// That leaves out what MQTT gives a meaning (`/`, `+`, `#`, a leading `$`) and `:`, which the
/// npm package node-raft-over-mqtt reads as part of a term. `all` is taken: it stands in the
/// topic of what goes to every node, and what is meant for one must not reach all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("a name must not be empty")]
    Empty,
    /// It is too long.
    #[error("a name has at most {MAX_NAME} bytes, this one has {0}")]
    TooLong(usize),
    /// It holds a character that a name may not hold.
    #[error("a name holds only letters, digits, '.', '_' and '-', not {0:?}")]
    Character(char),
    /// It begins with a character that a name may not begin with.
    #[error("a name begins with a letter or a digit, not {0:?}")]
    First(char),
    /// It means every node where a node's name may stand.
    #[error("{ALL:?} means every node and is no name")]
    Reserved,
}

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with it.
    pub fn new(text: &str) -> Result<Name, NameError> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        if text.len() > MAX_NAME {
            return Err(NameError::TooLong(text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character(bad));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::First(first));
        }
        if text == ALL {
            return Err(NameError::Reserved);
        }
        Ok(Name(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// By text, which is ordered as names are.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}

/// How well a node suits to lead: lower is better. Any finite number; default 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metric(f64);

/// A metric that is no number: NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("a metric is a finite number, not {0}")]
pub struct MetricError(f64);

impl Metric {
    /// Checks `value`.
    ///
    /// # Errors
    /// When it is NaN or infinite.
    pub fn new(value: f64) -> Result<Metric, MetricError> {
        // Adding zero turns -0 into 0, so that equal metrics are also equal in order.
        if value.is_finite() {
            Ok(Metric(value + 0.0))
        } else {
            Err(MetricError(value))
        }
    }

    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl Eq for Metric {}

impl PartialOrd for Metric {
    fn partial_cmp(&self, other: &Metric) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Metric {
    fn cmp(&self, other: &Metric) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "x".repeat(MAX_NAME + 1);
        let cases: &[(&str, Result<(), NameError>)] = &[
            ("gw-1", Ok(())),
            ("Plant_A.cell-7", Ok(())),
            ("", Err(NameError::Empty)),
            (&long, Err(NameError::TooLong(MAX_NAME + 1))),
            ("a:b", Err(NameError::Character(':'))),
            ("a/b", Err(NameError::Character('/'))),
            ("+", Err(NameError::Character('+'))),
            ("#", Err(NameError::Character('#'))),
            ("$SYS", Err(NameError::Character('$'))),
            ("-x", Err(NameError::First('-'))),
            ("gäb", Err(NameError::Character('ä'))),
            ("a\0", Err(NameError::Character('\0'))),
            ("all", Err(NameError::Reserved)),
            ("all-1", Ok(())),
        ];
        for (text, expected) in cases {
            assert_eq!(Name::new(text).map(|_| ()), *expected, "{text:?}");
        }
    }

    #[test]
    fn metrics_are_finite_and_ordered() {
        assert!(Metric::new(f64::NAN).is_err());
        assert!(Metric::new(f64::INFINITY).is_err());
        assert_eq!(Metric::new(-0.0), Metric::new(0.0));
        assert!(Metric::new(-1.0).unwrap() < Metric::new(0.5).unwrap());
    }
}
