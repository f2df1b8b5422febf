//! The format of Compose's env files: `NAME=value` a line, comments, quotes, escapes.
//!
//! Source: docs.docker.com/compose/how-tos/environment-variables/variable-interpolation, "`.env` file syntax"; where it
//! is silent, compose-go's `dotenv`. Nothing is taken from the host and no variable is filled in: where Compose would,
//! the line is refused.

use std::collections::BTreeMap;
use std::ops::Range;

use super::section::Findings;

/// After so many errors the rest is not read: it is no env file.
const MAX_ERRORS: u32 = 20;

/// Reads the variables of a file; of two of one name the later one counts. What is wrong is a finding, told without
/// the line itself: values are often secret.
pub(super) fn parse(findings: &Findings<'_>) -> BTreeMap<String, String> {
    let text = findings.source.text;
    let mut reader =
        Reader { text, at: if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 } };
    let mut variables = BTreeMap::new();
    let mut errors = 0;
    loop {
        reader.skip(char::is_whitespace);
        let start = reader.at;
        match reader.peek() {
            None => return variables,
            Some('#') => {
                reader.line();
                continue;
            }
            Some(_) => {}
        }
        match reader.entry() {
            Ok((name, value)) => {
                variables.insert(name, value);
            }
            Err(wrong) => {
                let hint = wrong.hint.map(str::to_owned);
                findings.error_unseen(start..start, wrong.message, hint);
                errors += 1;
                if errors == MAX_ERRORS {
                    return variables;
                }
                // What is wrong may have been found at the end of its line, or in the middle.
                if !reader.taken(start..reader.at).ends_with('\n') {
                    reader.line();
                }
            }
        }
    }
}

struct Wrong {
    message: String,
    hint: Option<&'static str>,
}

fn wrong<T>(message: impl Into<String>, hint: Option<&'static str>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), hint })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip(&mut self, unwanted: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&unwanted) {
            self.next();
        }
    }

    /// The rest of the line; the line's end is passed.
    fn line(&mut self) -> &'a str {
        let rest = self.rest();
        let line = rest.split('\n').next().unwrap_or_default();
        self.at += (line.len() + 1).min(rest.len());
        line
    }

    fn taken(&self, range: Range<usize>) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    fn entry(&mut self) -> Result<(String, String), Wrong> {
        if let Some(after) = self.rest().strip_prefix("export")
            && after.starts_with([' ', '\t'])
        {
            self.at += "export".len();
            self.skip(is_blank);
        }
        let start = self.at;
        self.skip(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        let name = self.taken(start..self.at);
        if name.starts_with(|c: char| !c.is_ascii_alphabetic() && c != '_') || name.is_empty() {
            return wrong("the line does not begin with the name of a variable", Some("NAME=value"));
        }
        self.skip(is_blank);
        match self.peek() {
            Some('=' | ':') => {
                self.next();
            }
            None | Some('\n' | '\r' | '#') => {
                let hint = "write NAME=value: nothing is taken from the host";
                return wrong(format!("`{name}` has no value"), Some(hint));
            }
            Some(_) => return wrong(format!("there is no `=` after `{name}`"), Some("NAME=value")),
        }
        let blanks = self.at;
        self.skip(is_blank);
        let value = match self.peek() {
            Some(quote @ ('\'' | '"')) => {
                self.next();
                self.quoted(name, quote)?
            }
            _ => {
                self.at = blanks;
                plain(name, self.line())?
            }
        };
        if value.contains('\0') {
            return wrong(format!("`{name}` holds a NUL"), None);
        }
        Ok((name.to_owned(), value))
    }

    /// From after the opening quote to the end of the line that has the closing one.
    fn quoted(&mut self, name: &str, quote: char) -> Result<String, Wrong> {
        let mut value = String::new();
        loop {
            match self.next() {
                None => return wrong(format!("`{name}`: its quote is not closed"), None),
                Some(c) if c == quote => break,
                Some('\\') => match (quote, self.next()) {
                    (_, None) => return wrong(format!("`{name}`: its quote is not closed"), None),
                    (_, Some(c)) if c == quote => value.push(c),
                    ('"', Some(c)) => unescape(c, &mut value),
                    (_, Some(c)) => value.extend(['\\', c]),
                },
                Some('$') if quote == '"' && self.peek().is_some_and(begins_a_variable) => {
                    return fills_in(name);
                }
                // A file that was written elsewhere ends its lines in CR LF.
                Some('\r') if self.peek() == Some('\n') => {}
                Some(c) => value.push(c),
            }
        }
        let rest = self.line().trim();
        if rest.is_empty() || rest.starts_with('#') {
            return Ok(value);
        }
        wrong(format!("`{name}`: something follows its closing quote"), None)
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// A value without quotes: up to ` #`, without the blanks around it.
fn plain(name: &str, line: &str) -> Result<String, Wrong> {
    let mut value = line;
    let mut blank = false;
    for (at, c) in line.char_indices() {
        if c == '#' && blank {
            value = line.get(..at).unwrap_or_default();
            break;
        }
        blank = c.is_whitespace();
    }
    let value = value.trim();
    let variable = value.match_indices('$').any(|(at, _)| {
        value.get(at + 1..).and_then(|after| after.chars().next()).is_some_and(begins_a_variable)
    });
    if variable { fills_in(name) } else { Ok(value.to_owned()) }
}

fn unescape(c: char, value: &mut String) {
    match c {
        'n' => value.push('\n'),
        'r' => value.push('\r'),
        't' => value.push('\t'),
        '\\' | '"' | '$' => value.push(c),
        // As in a shell, where the backslash means nothing.
        other => value.extend(['\\', other]),
    }
}

fn begins_a_variable(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '{' | '(' | '$')
}

fn fills_in<T>(name: &str) -> Result<T, Wrong> {
    let hint = "single quotes take it as it is; in double quotes `\\$` is a `$`";
    wrong(format!("`{name}` names a variable with `$`: none is filled in here"), Some(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (BTreeMap<String, String>, Vec<(usize, String)>) {
        let findings = Findings::new("services/a.env", text);
        let variables = parse(&findings);
        let found = findings.into_sorted();
        assert!(found.iter().all(|found| found.source_line.is_empty()), "a value was shown");
        (variables, found.into_iter().map(|found| (found.line, found.message)).collect())
    }

    #[test]
    fn values_as_compose_reads_them() {
        for (line, expected) in [
            ("A=value", "value"),
            ("A=", ""),
            ("A= # nothing", ""),
            ("A=#value", "#value"),
            ("A=value # comment", "value"),
            ("A=value# not a comment", "value# not a comment"),
            ("A = spaces  inside  ", "spaces  inside"),
            ("A: value", "value"),
            ("export A=value", "value"),
            ("\u{feff}A=value\r", "value"),
            ("A=it's", "it's"),
            (r"A=C:\new\table", r"C:\new\table"),
            ("A=5$ and $", "5$ and $"),
            ("A=''", ""),
            ("A='value' # comment", "value"),
            ("A='value'# comment", "value"),
            ("A='$OTHER ${X} $$'", "$OTHER ${X} $$"),
            (r"A='it\'s'", "it's"),
            (r"A='a\nb\\'", r"a\nb\\"),
            ("A='two\nlines'", "two\nlines"),
            ("A=\"two\r\nlines\"", "two\nlines"),
            (r#"A="a\tb\n\r\\ \"q\" \$x \d""#, "a\tb\n\r\\ \"q\" $x \\d"),
            ("A=\"#not # a comment\"", "#not # a comment"),
            ("A=\u{fc}ber", "\u{fc}ber"),
            ("# first\n\n  # second\nA=old\nA=value", "value"),
        ] {
            let (variables, found) = read(line);
            assert!(found.is_empty(), "{line:?}: {found:?}");
            assert_eq!(variables.get("A").map(String::as_str), Some(expected), "{line:?}");
            assert_eq!(variables.len(), 1, "{line:?}");
        }
        let names = read("A=1\nB.c-d='2'\n_E=3").0.into_keys().collect::<Vec<_>>();
        assert_eq!(names, ["A", "B.c-d", "_E"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_nothing_else_is_lost() {
        for (line, message) in [
            ("X", "`X` has no value"),
            ("X # comment", "`X` has no value"),
            ("X value", "no `=` after `X`"),
            ("9X=1", "does not begin with the name"),
            ("=1", "does not begin with the name"),
            ("X=$HOME", "none is filled in"),
            ("X=a${HOME}", "none is filled in"),
            ("X=pa$$word", "none is filled in"),
            ("X=\"$HOME\"", "none is filled in"),
            ("X='a' b", "something follows"),
            ("X=a\0b", "holds a NUL"),
        ] {
            let (variables, found) = read(&format!("A=1\n{line}\nB=2\n"));
            assert_eq!(found.len(), 1, "{line:?}: {found:?}");
            assert!(found[0].0 == 2 && found[0].1.contains(message), "{line:?}: {found:?}");
            assert_eq!(variables.keys().collect::<Vec<_>>(), ["A", "B"], "{line:?}");
        }
        assert_eq!(read(&"wrong\n".repeat(1000)).1.len(), 20);
        for open in ["A='x\nB=2\n", "A=\"x\\\"\nB=2", "A='x\\"] {
            let (variables, found) = read(open);
            assert!(variables.is_empty() && found.len() == 1, "{open:?}: {found:?}");
            assert!(found[0].0 == 1 && found[0].1.contains("not closed"), "{found:?}");
        }
    }
}
