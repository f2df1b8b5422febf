//! A command line split into words, as Compose splits a `command` that is one string.

/// Splits at blanks; quotes and backslashes work as in a shell, variables do not. `None`: a quote is not closed.
pub(crate) fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().push(chars.next()?),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words() {
        for (text, expected) in [
            ("a b  c", vec!["a", "b", "c"]),
            ("sh -c 'echo \"hi\" there'", vec!["sh", "-c", "echo \"hi\" there"]),
            (r#"a\ b "c d" e''"#, vec!["a b", "c d", "e"]),
            ("''", vec![""]),
            ("", vec![]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
        assert_eq!(split("'a"), None);
        assert_eq!(split("a\\"), None);
    }
}
