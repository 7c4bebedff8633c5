//! Progress on stderr: one live line on a terminal, a plain line every few seconds elsewhere. No colours, so there is
//! nothing for `NO_COLOR` to switch off.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// Pause between two plain lines.
const PLAIN_PAUSE: Duration = Duration::from_secs(5);

/// The line, and the notes above it.
pub struct LiveLine {
    live: Option<ProgressBar>,
    last_plain: Option<Instant>,
}

impl LiveLine {
    /// Live if stderr is a terminal.
    pub fn on_stderr() -> Self {
        let live = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is constant and valid; without it the bar has indicatif's own style.
            if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { live, last_plain: None }
    }

    /// Shows where things stand. Cheap enough to call a few times per second.
    pub fn update(&mut self, text: String) {
        match &self.live {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None if self.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_PAUSE) => {
                self.last_plain = Some(Instant::now());
                write(&text);
            }
            None => {}
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        match &self.live {
            Some(bar) => bar.suspend(|| write(text)),
            None => write(text),
        }
    }

    /// Ends the live line, leaving what it says last.
    pub fn finish(&mut self, text: String) {
        match self.live.take() {
            Some(bar) => bar.abandon_with_message(text),
            None => write(&text),
        }
    }

    /// Ends the live line without a trace.
    pub fn clear(&mut self) {
        if let Some(bar) = self.live.take() {
            bar.finish_and_clear();
        }
    }
}

fn write(text: &str) {
    // Nobody can be told that stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
