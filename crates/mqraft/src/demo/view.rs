//! What one sees of the demo: a table redrawn in place on a terminal, lines everywhere else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::Format;
use crate::local::Node;
use crate::output;
use crate::screen::{Mode, Screen};

/// How many of the last events stand below the table.
const SHOWN_EVENTS: usize = 10;

const HEAD: [&str; 8] = [
    "node",
    "pid",
    "role",
    "term",
    "metric",
    "commit",
    "applied",
    "is_leader",
];

pub(crate) struct View {
    mode: Mode,
    flags: String,
    started: Instant,
    /// What stands below the table.
    events: VecDeque<String>,
    invitation: Vec<String>,
    screen: Screen,
}

impl View {
    pub(crate) fn new(format: Format, broker: &str, cluster: &str) -> View {
        let mut view = View {
            mode: Mode::of(format),
            flags: format!("--broker {broker} --cluster {cluster} --insecure"),
            started: Instant::now(),
            events: VecDeque::new(),
            invitation: Vec::new(),
            screen: Screen::default(),
        };
        view.say(&format!("a broker at {broker}"));
        view
    }

    /// Tells an event.
    pub(crate) fn say(&mut self, event: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let line = format!("{seconds:7.3} s  {event}");
        match self.mode {
            Mode::Lines => output::line(&line),
            Mode::Json => output::line(&json!({ "seconds": seconds, "event": event }).to_string()),
            Mode::Live => {
                self.events.push_back(line);
                if self.events.len() > SHOWN_EVENTS {
                    self.events.pop_front();
                }
            }
        }
    }

    /// The two times of a takeover.
    pub(crate) fn figures(&mut self, first_commit: Duration, exclusive_leader: Duration) {
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let (first_commit, exclusive_leader) = (ms(first_commit), ms(exclusive_leader));
        if self.mode == Mode::Json {
            let seconds = self.started.elapsed().as_secs_f64();
            let figures = json!({
                "seconds": seconds,
                "event": "takeover",
                "first_commit_ms": first_commit,
                "exclusive_leader_ms": exclusive_leader,
            });
            return output::line(&figures.to_string());
        }
        self.say(&format!(
            "first commit:     {first_commit:8.1} ms after the leader's death"
        ));
        self.say(&format!(
            "exclusive leader: {exclusive_leader:8.1} ms after the leader's death"
        ));
    }

    /// Tells what one can try now.
    pub(crate) fn invite(&mut self, leader: Option<u32>) {
        let pid = leader.map_or("PID".to_owned(), |pid| pid.to_string());
        let flags = &self.flags;
        let lines = vec![
            "From another terminal:".to_owned(),
            format!("  kill -9 {pid}"),
            format!("  mqraft put door open {flags}"),
            format!("  mqraft leader --watch {flags}"),
            "Ctrl-C ends the demo.".to_owned(),
        ];
        match self.mode {
            Mode::Lines => lines.iter().for_each(|line| output::line(line)),
            Mode::Live => self.invitation = lines,
            Mode::Json => {}
        }
    }

    /// Shows the table once, where it is not shown all the time.
    pub(crate) fn snapshot(&mut self, nodes: &[Node]) {
        if self.mode == Mode::Lines {
            output::line(&format!("\n{}\n", table(nodes)));
        }
    }

    /// Replaces the picture on the terminal.
    pub(crate) fn draw(&mut self, nodes: &[Node]) {
        if self.mode != Mode::Live {
            return;
        }
        let mut picture = table(nodes);
        for line in [String::new()].iter().chain(&self.events) {
            picture.push('\n');
            picture.push_str(line);
        }
        for line in &self.invitation {
            picture.push('\n');
            picture.push_str(line);
        }
        self.screen.draw(picture);
    }
}

fn table(nodes: &[Node]) -> String {
    let head = HEAD.map(str::to_owned).to_vec();
    let rows = std::iter::once(head).chain(nodes.iter().map(Node::row));
    output::table(&rows.collect::<Vec<_>>())
}
