//! Aligned columns.

use std::io::Write;

/// Writes rows with each column as wide as its widest cell. Two spaces between; the last column is not padded.
pub fn write(out: &mut dyn Write, rows: &[Vec<String>]) -> std::io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Written by strangers, shown on terminals.
            line.extend(cell.chars().map(|c| if c.is_control() { ' ' } else { c }));
            line.extend(std::iter::repeat_n(' ', (width + 2).saturating_sub(cell.chars().count())));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// How long ago, in one unit: `12s`, `5m`, `3h`, `9d`.
pub fn ago(then: crate::types::Timestamp, now: crate::types::Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// How far ahead, rounded, in one unit: `12s`, `5m`, `2h`, `9d`.
pub fn ahead(at: crate::types::Timestamp, now: crate::types::Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs().max(0);
    match seconds {
        0..100 => format!("{seconds}s"),
        100..5400 => format!("{}m", (seconds + 30) / 60),
        5400..129_600 => format!("{}h", (seconds + 1800) / 3600),
        _ => format!("{}d", (seconds + 43_200) / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_ahead_are_rounded() {
        let now = crate::types::Timestamp::UNIX_EPOCH;
        let shown = |seconds| super::ahead(crate::types::Timestamp::from_second(seconds).unwrap(), now);
        for (seconds, text) in
            [(-5, "0s"), (7, "7s"), (299, "5m"), (7199, "2h"), (86_399, "24h"), (600_000, "7d")]
        {
            assert_eq!(shown(seconds), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        super::write(&mut out, &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a    bb\nccc  d\n");
    }
}
