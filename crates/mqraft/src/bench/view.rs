//! What one sees while it is measured: the table as far as it has come, on a terminal; elsewhere a line
//! for each step.

use std::time::{Duration, Instant};

use super::report::Report;
use crate::cli::Format;
use crate::output;
use crate::screen::{Mode, Screen};

/// How often the picture is drawn: each time takes some microseconds off what is measured.
const FRAME: Duration = Duration::from_millis(200);

pub(super) struct View {
    mode: Mode,
    started: Instant,
    screen: Screen,
    head: String,
    step: String,
    drawn_at: Option<Instant>,
}

impl View {
    pub(super) fn new(format: Format) -> View {
        View {
            mode: Mode::of(format),
            started: Instant::now(),
            screen: Screen::default(),
            head: String::new(),
            step: String::new(),
            drawn_at: None,
        }
    }

    /// Tells on what it is measured.
    pub(super) fn head(&mut self, head: String) {
        if self.mode == Mode::Lines {
            output::line(&head);
        }
        self.head = head;
    }

    /// Tells what is done now.
    pub(super) fn step(&mut self, report: &Report, step: String) {
        if self.mode == Mode::Lines {
            let seconds = self.started.elapsed().as_secs_f64();
            output::line(&format!("{seconds:7.3} s  {step}"));
        }
        self.step = step;
        self.drawn_at = None;
        self.draw(report);
    }

    /// Draws the picture, if it is time.
    pub(super) fn draw(&mut self, report: &Report) {
        let recent = self.drawn_at.is_some_and(|at| at.elapsed() < FRAME);
        if self.mode == Mode::Live && !recent {
            self.drawn_at = Some(Instant::now());
            let seconds = self.started.elapsed().as_secs_f64();
            let (head, table, step) = (&self.head, report.table(), &self.step);
            let picture = format!("{head}\n\n{table}\n\n{seconds:7.1} s  {step}");
            self.screen.draw(picture);
        }
    }

    /// The answer, or as much of it as there was time for.
    pub(super) fn end(&mut self, report: &Report, complete: bool) {
        let mut table = report.table();
        if !complete {
            table += "\n\ninterrupted: there was more to measure";
        }
        match self.mode {
            Mode::Live => self.screen.draw(format!("{}\n\n{table}", self.head)),
            Mode::Lines if report.is_empty() => {}
            Mode::Lines => output::line(&format!("\n{table}")),
            Mode::Json => output::line(&report.json().to_string()),
        }
    }
}
