//! What a message of the fleet means to the nodes that hear it: numbers as JavaScript reads them.
//!
//! 1.2.1 compares `parseInt(term)` with its own term, and where it is higher remembers the *text*,
//! which it later compares and counts on as `Number(text)`. The two differ: `7x` is above 6 and makes
//! the node's term NaN, which is behind nothing and ahead of nothing for good; `1e400` is above 0 and
//! makes it infinite, which rejects every number.

/// A message on one of the fleet's topics, cut at its colons.
#[derive(Debug, PartialEq)]
pub(super) struct Said<'a> {
    pub(super) term: &'a str,
    /// Absent in a message without a colon, which 1.2.1 passes over.
    pub(super) sender: Option<&'a str>,
    pub(super) metric: Option<&'a str>,
    /// 1.2.1 reads three fields; ours have a fourth.
    pub(super) mark: Option<&'a str>,
}

impl Said<'_> {
    pub(super) fn read(text: &str) -> Said<'_> {
        let mut fields = text.split(':');
        Said {
            term: fields.next().unwrap_or_default(),
            sender: fields.next(),
            metric: fields.next(),
            mark: fields.next(),
        }
    }
}

/// Which term a node has that said this text, or believed it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Term {
    /// Any heartbeat of this term or a later one is taken.
    Counted(u64),
    /// Above whatever we would say: only a heartbeat without a number is taken.
    Beyond,
    /// NaN, or below zero: any heartbeat is taken.
    Nothing,
}

impl Term {
    /// `limit` is the highest term that is followed.
    pub(super) fn read(text: &str, limit: u64) -> Term {
        let number = number(text);
        if number.is_nan() || number <= 0.0 {
            Term::Nothing
        } else if number > limit as f64 {
            Term::Beyond
        } else {
            // A term need not be whole: 6.5 rejects 6.
            Term::Counted(number.ceil() as u64)
        }
    }
}

/// JavaScript's `Number(text)` of a text that `parseInt` finds a positive number in; NaN for any other.
fn number(text: &str) -> f64 {
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    let text = text.trim_matches(blank);
    match text {
        "Infinity" | "+Infinity" => return f64::INFINITY,
        _ => {}
    }
    let decimal = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    // Rust knows more words for numbers than JavaScript does.
    match text.chars().all(decimal) {
        true => text.parse().unwrap_or(f64::NAN),
        false => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 52;

    /// What follows the third colon is read by us alone; a name with a colon falls apart.
    #[test]
    fn a_message_is_cut_at_its_colons() {
        let plain = Said {
            term: "7",
            sender: Some("node-1"),
            metric: Some("10"),
            mark: None,
        };
        assert_eq!(Said::read("7:node-1:10"), plain);
        let marked = Said {
            mark: Some("raft/plant-a/gw-1"),
            ..plain
        };
        assert_eq!(Said::read("7:node-1:10:raft/plant-a/gw-1"), marked);
        assert_eq!(Said::read("node-1").sender, None);
        assert_eq!(Said::read("7:a:b:10").metric, Some("b"));
        assert_eq!(Said::read("").term, "");
    }

    /// The term in which a heartbeat is not behind, for whoever has taken this text for one.
    #[test]
    fn terms_as_the_fleet_counts_them() {
        let cases = [
            ("1", Term::Counted(1)),
            ("007", Term::Counted(7)),
            (" +12 ", Term::Counted(12)),
            ("\u{feff}12", Term::Counted(12)),
            ("1e3", Term::Counted(1_000)),
            ("6.5", Term::Counted(7)),
            ("4503599627370496", Term::Counted(LIMIT)),
            ("4503599627370497", Term::Beyond),
            ("9007199254740993", Term::Beyond),
            ("1e+21", Term::Beyond),
            ("1e400", Term::Beyond),
            ("Infinity", Term::Beyond),
            ("0", Term::Nothing),
            ("-5", Term::Nothing),
            ("-1e400", Term::Nothing),
            ("NaN", Term::Nothing),
            ("nan", Term::Nothing),
            ("inf", Term::Nothing),
            ("7x", Term::Nothing),
            ("node-1", Term::Nothing),
            ("", Term::Nothing),
        ];
        for (text, term) in cases {
            assert_eq!(Term::read(text, LIMIT), term, "{text:?}");
        }
        let long = "9".repeat(400);
        assert_eq!(Term::read(&long, LIMIT), Term::Beyond);
    }
}
