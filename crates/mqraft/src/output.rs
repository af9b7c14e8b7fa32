//! Answers go to stdout, as text or JSON; everything else goes to stderr.

use std::io::{self, IsTerminal, Write};

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::cli::Format;
use crate::exit::Failure;

/// Prints one answer. A reader that went away, as `head` does, is no failure.
pub(crate) fn answer(format: Format, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
    line(&match format {
        Format::Text => text(),
        Format::Json => json().to_string(),
    });
}

/// Prints one line.
pub(crate) fn line(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{text}");
    let _ = stdout.flush();
}

/// Prints bytes as they are; a terminal gets a line end after them.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(bytes);
    if stdout.is_terminal() {
        let _ = writeln!(stdout);
    }
    let _ = stdout.flush();
}

/// Says on stderr why a command failed.
pub(crate) fn failure(format: Format, failure: &Failure) {
    let Failure { exit, message } = failure;
    if message.is_empty() {
        return;
    }
    let text = match format {
        Format::Text => format!("mqraft: {message}"),
        Format::Json => json!({ "error": message, "exit_code": *exit as u8 }).to_string(),
    };
    let _ = writeln!(io::stderr(), "{text}");
}

/// Adds bytes under `name` as text, or where they are none under `<name>_base64`.
pub(crate) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    let (name, text) = match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.to_owned()),
        Err(_) => {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            (format!("{name}_base64"), text)
        }
    };
    object.insert(name, Value::String(text));
}

/// Lines up columns; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Lines up a column of names to the left and figures to the right of theirs; the first row is the head.
#[cfg(feature = "demo")]
pub(crate) fn figures(rows: &[Vec<String>]) -> String {
    let mut lines = vec![String::new(); rows.len()];
    for column in 0..rows.iter().map(Vec::len).max().unwrap_or(0) {
        let cell = |row: &Vec<String>| row.get(column).cloned().unwrap_or_default();
        let width = rows.iter().map(|row| cell(row).chars().count()).max();
        let width = width.unwrap_or(0);
        // A column that says nothing but its name is none.
        if column > 0 && rows.iter().skip(1).all(|row| cell(row).is_empty()) {
            continue;
        }
        for (line, row) in lines.iter_mut().zip(rows) {
            *line += &match column {
                0 => format!("{:<width$}", cell(row)),
                _ => format!("  {:>width$}", cell(row)),
            };
        }
    }
    let lines = lines.iter().map(|line| line.trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["node", "term", ""]), row(["gw-10", "3", "*"])]);
        assert_eq!(text, "node   term\ngw-10  3     *");
    }

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        let mut object = Map::new();
        insert_bytes(&mut object, "value", b"open");
        insert_bytes(&mut object, "other", &[0xff]);
        let expected = json!({ "value": "open", "other_base64": "/w==" });
        assert_eq!(Value::Object(object), expected);
    }
}
