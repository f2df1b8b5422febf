//! Signals by name.

/// Signal number of `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; empty = SIGTERM.
///
/// Source: OCI image-spec config.md, `StopSignal`; signal(7).
pub fn signal_number(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if upper.is_empty() {
        return Some(nix::libc::SIGTERM);
    }
    let (first, last) = (nix::libc::SIGRTMIN(), nix::libc::SIGRTMAX());
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=last).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=last - first).contains(&offset).then(|| first + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return (0..=last - first).contains(&offset).then(|| last - offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_in_every_spelling() {
        let rtmin = nix::libc::SIGRTMIN();
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", rtmin + 3),
            ("RTMAX-1", nix::libc::SIGRTMAX() - 1),
        ] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for bad in ["SIGFOO", "0", "99", "-1", "RTMIN+99", "RTMIN-1", "RTMIN3"] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
