//! Entries of a log as they are printed. Bytes go out as they came in, except to a terminal, which a container has no
//! business to control.

use std::io::{self, Write};

use crate::engine::native::{LogEntry, Stream};
use crate::types::{Generation, ReplicaIndex, ServiceName};

/// Prints entries of one service.
#[derive(Debug)]
pub struct Printer {
    service: ServiceName,
    json: bool,
    timestamps: bool,
    terminal: bool,
    from: Option<(Generation, ReplicaIndex)>,
    /// Whose line was begun and not ended.
    open: Option<(Generation, ReplicaIndex, Stream)>,
}

impl Printer {
    /// `terminal`: whether it goes to one.
    pub fn new(service: ServiceName, json: bool, timestamps: bool, terminal: bool) -> Self {
        Self { service, json, timestamps, terminal, from: None, open: None }
    }

    /// Prints an entry; one that goes on is continued on its line, as long as nothing comes in between.
    pub fn print(&mut self, entry: &LogEntry, out: &mut dyn Write) -> io::Result<()> {
        if self.json {
            return self.print_json(entry, out);
        }
        let whose = (entry.generation, entry.index, entry.stream);
        let continued = self.open == Some(whose);
        if !continued {
            self.end_line(out)?;
            let from = (entry.generation, entry.index);
            if self.from.is_some_and(|last| last != from) {
                let replica = match entry.index {
                    ReplicaIndex::FIRST => String::new(),
                    index => format!(", replica {index}"),
                };
                self.note(out, &format!("generation {}{replica}", entry.generation))?;
            }
            self.from = Some(from);
            if self.timestamps {
                write!(out, "{} ", entry.at)?;
            }
        }
        match self.terminal {
            true => out.write_all(harmless(&entry.text).as_bytes())?,
            false => out.write_all(&entry.text)?,
        }
        if entry.ends {
            self.open = None;
            writeln!(out)?;
        } else {
            self.open = Some(whose);
        }
        Ok(())
    }

    fn print_json(&self, entry: &LogEntry, out: &mut dyn Write) -> io::Result<()> {
        let mut line = serde_json::json!({
            "at": entry.at,
            "service": self.service,
            "generation": entry.generation,
            "stream": entry.stream.to_string(),
            "text": String::from_utf8_lossy(&entry.text),
        });
        if !entry.ends {
            line["partial"] = true.into();
        }
        if entry.index != ReplicaIndex::FIRST {
            line["replica"] = entry.index.number().into();
        }
        writeln!(out, "{line}")
    }

    /// Says something beside the lines, on standard error: what reads the lines gets nothing but these.
    pub fn note(&mut self, out: &mut dyn Write, text: &str) -> io::Result<()> {
        self.end_line(out)?;
        out.flush()?;
        writeln!(io::stderr(), "-- {text} --")
    }

    /// Ends a line that was begun.
    pub fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.end_line(out)
    }

    fn end_line(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self.open.take() {
            Some(_) => writeln!(out),
            None => Ok(()),
        }
    }
}

/// Text without what would move the cursor, change the title or answer for the keyboard. Colours and tabs stay.
fn harmless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        if c == '\x1b'
            && let Some(length) = color(after)
        {
            shown.push(c);
            shown.push_str(after.get(..length).unwrap_or_default());
            rest = after.get(length..).unwrap_or_default();
            continue;
        }
        match c {
            '\t' => shown.push(c),
            '\0'..='\x1f' => shown.extend(['^', char::from(c as u8 + b'@')]),
            '\x7f' => shown.push_str("^?"),
            '\u{80}'..='\u{9f}' => shown.push('\u{fffd}'),
            _ => shown.push(c),
        }
        rest = after;
    }
    if shown.contains('\x1b') {
        // The next line has its own colours.
        shown.push_str("\x1b[0m");
    }
    shown
}

/// The length of a colour's sequence behind its escape: `[`, digits and semicolons, `m`. Source: ECMA-48, SGR.
fn color(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('[')?;
    let length = inner.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    (inner.as_bytes().get(length) == Some(&b'm') && length < 32).then_some(length + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(generation: u64, stream: Stream, text: &[u8], ends: bool) -> LogEntry {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        LogEntry {
            at,
            generation: Generation(generation),
            index: ReplicaIndex::FIRST,
            stream,
            ends,
            text: text.to_vec(),
        }
    }

    fn print(json: bool, timestamps: bool, entries: &[LogEntry]) -> Vec<u8> {
        let mut printer = Printer::new("web".parse().unwrap(), json, timestamps, false);
        let mut out = Vec::new();
        for entry in entries {
            printer.print(entry, &mut out).unwrap();
        }
        printer.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        use Stream::{Stderr, Stdout};
        let parts = [
            entry(1, Stdout, b"a\xff\x1b[2J", false),
            entry(1, Stdout, b"b", true),
            entry(1, Stdout, b"c", false),
            entry(1, Stderr, b"oops", true),
            entry(1, Stdout, b"d", false),
        ];
        assert_eq!(print(false, false, &parts), b"a\xff\x1b[2Jb\nc\noops\nd\n");
        let stamped = print(false, true, &parts);
        assert_eq!(stamped.windows(4).filter(|text| text == b"2026").count(), 4);
        let lines = String::from_utf8(print(true, false, &parts[..2])).unwrap();
        let lines: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((&lines[0]["partial"], &lines[1]["partial"]), (&true.into(), &serde_json::Value::Null));
        assert_eq!(lines[0]["text"], "a\u{fffd}\u{1b}[2J");
    }

    #[test]
    fn a_terminal_is_not_controlled() {
        assert_eq!(harmless(b"a\tb \x1b[1;31mred\x1b[0m"), "a\tb \x1b[1;31mred\x1b[0m\x1b[0m");
        assert_eq!(harmless(b"\x1b[2J\x1b]0;title\x07\rx\x7f"), "^[[2J^[]0;title^G^Mx^?");
        assert_eq!(harmless("\u{9b}31m\u{e9}".as_bytes()), "\u{fffd}31m\u{e9}");
        assert_eq!(harmless(b"\x1b["), "^[[");
        assert_eq!(harmless(b"\x1b[31"), "^[[31");
    }
}
