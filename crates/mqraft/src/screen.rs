//! A picture that is redrawn in place on a terminal, and lines everywhere else.

use std::io::{self, IsTerminal, Write};

use crate::cli::Format;

/// How what goes on is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A terminal: the picture is replaced.
    Live,
    /// A pipe or a file: a line per event.
    Lines,
    Json,
}

impl Mode {
    pub(crate) fn of(format: Format) -> Mode {
        match format {
            Format::Json => Mode::Json,
            Format::Text if io::stdout().is_terminal() => Mode::Live,
            Format::Text => Mode::Lines,
        }
    }
}

/// The picture on the terminal.
#[derive(Default)]
pub(crate) struct Screen {
    drawn: String,
}

impl Screen {
    /// Replaces the picture.
    pub(crate) fn draw(&mut self, picture: String) {
        if picture == self.drawn {
            return;
        }
        let above = self.drawn.lines().count();
        self.drawn = picture;
        let mut stdout = io::stdout().lock();
        if above > 0 {
            let _ = write!(stdout, "\x1b[{above}A");
        }
        // Without automatic wrapping a line of the picture is a line of the terminal.
        let _ = writeln!(stdout, "\x1b[J\x1b[?7l{}\x1b[?7h", self.drawn);
        let _ = stdout.flush();
    }
}
