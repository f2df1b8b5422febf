//! How far something is: a bar on a terminal, else a line now and then. On standard error, so that results can be
//! piped; nothing of it is coloured.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::registry::PullProgress;
use crate::types::{ByteSize, ImageRef, format_duration};

/// Most columns of a bar's line: the narrowest terminal that people have.
const COLUMNS: usize = 79;

/// From one text to the next.
const EVERY: Duration = Duration::from_millis(100);

/// Columns of the bar itself.
const WIDTH: usize = 12;

/// One line that is written over and over.
pub(super) struct Line {
    terminal: bool,
    shown: bool,
    last: Option<Instant>,
}

impl Line {
    /// Nothing at all where `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { terminal: !quiet && std::io::stderr().is_terminal(), shown: false, last: None }
    }

    /// Whether the last text stood there for a while; notes that it will be replaced if so.
    pub fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= EVERY);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Puts a text in place of the last one.
    pub fn show(&mut self, text: &str) {
        if self.terminal {
            let text: String = text.chars().take(COLUMNS).collect();
            // Return, text, erase to the end of the line (ECMA-48, EL). A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
            self.shown = true;
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar, its numbers, its rate and what is left.
pub(super) fn bar(done: u64, total: u64, elapsed: Duration) -> String {
    let part = if total == 0 { 1.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) };
    let full = (part * WIDTH as f64) as usize;
    let (done_text, total_text) = (ByteSize(done).human(), ByteSize(total).human());
    let mut text = format!("[{}{}] {done_text} of {total_text}", "#".repeat(full), "-".repeat(WIDTH - full));
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    if rate >= 1.0 && elapsed >= Duration::from_millis(500) {
        // Writing to a String cannot fail.
        let _ = write!(text, ", {}/s", ByteSize(rate as u64).human());
        let left = Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / rate).unwrap_or_default();
        if left >= Duration::from_secs(1) {
            let _ = write!(text, ", {} left", format_duration(Duration::from_secs(left.as_secs())));
        }
    }
    text
}

/// Of one image after the other.
pub(super) struct PullBar {
    line: Line,
    quiet: bool,
    image: Option<(ImageRef, Instant, usize)>,
}

impl PullBar {
    /// `quiet`: somebody else reads what is told.
    pub fn new(quiet: bool) -> Self {
        Self { line: Line::new(quiet), quiet, image: None }
    }

    pub fn show(&mut self, progress: &PullProgress) {
        if self.image.as_ref().is_none_or(|(image, ..)| *image != progress.reference) {
            self.image = Some((progress.reference.clone(), Instant::now(), 0));
        }
        let Some((image, begun, told)) = &mut self.image else { return };
        let here = progress.layers_here;
        let layers = match progress.layers {
            // An archive that is read as a whole shows its layers only then.
            0 => "archive".to_owned(),
            all => format!("{} of {all} layers", here + progress.layers_done),
        };
        if self.line.is_terminal() {
            let numbers = bar(progress.bytes, progress.total, begun.elapsed());
            let skipped = if here > 0 { format!(" ({here} skipped)") } else { String::new() };
            self.line.show(&format!("{} {layers}{skipped} {numbers}", tail(image)));
        } else if !self.quiet && progress.layers_done > *told {
            *told = progress.layers_done;
            let (bytes, total) = (ByteSize(progress.bytes).human(), ByteSize(progress.total).human());
            // Nobody may be reading.
            let _ = writeln!(std::io::stderr(), "{image}: {layers} here, {bytes} of {total}");
        }
    }

    pub fn finish(&mut self) {
        self.line.clear();
    }
}

/// The last part of a reference: the one that differs.
fn tail(image: &ImageRef) -> String {
    let text = image.to_string();
    text.rsplit('/').next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_much_how_fast_and_how_long() {
        let text = bar(10 << 20, 40 << 20, Duration::from_secs(2));
        assert_eq!(text, "[###---------] 10.0 MiB of 40.0 MiB, 5.0 MiB/s, 6s left");
        assert_eq!(bar(0, 0, Duration::ZERO), "[############] 0 B of 0 B");
        assert!(bar(7, 3, Duration::from_secs(1)).starts_with("[############] 7 B of 3 B"));
    }
}
