//! `mem_limit` and `memswap_limit` across layers.

use super::*;

/// What a repo with these files says of the service `a`: its refusal, with the findings.
fn refusal(files: &[(&str, &str)]) -> Option<(String, Vec<gitopsd::config::Diagnostic>)> {
    let mut all = repo(&[]);
    all.extend(files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())));
    let found = read(&all, &host("web-1", &[]), &Policy::default());
    let refusal = found.services[&name("a")].as_ref().err()?.clone();
    assert_eq!(refusal.reason, Reason::ConfigInvalid);
    Some((refusal.message, found.diagnostics))
}

/// What a running container would take and no runtime starts, told as Docker tells it, wherever its halves are written.
#[test]
fn swap_is_limited_together_with_memory() {
    let service = |lines: &str| format!("image = \"r.io/a:1\"\n{lines}\n");
    for fine in [
        "mem_limit = \"64m\"\nmemswap_limit = \"128m\"",
        "mem_limit = \"64m\"\nmemswap_limit = \"64m\"",
        "mem_limit = \"64m\"\nmemswap_limit = -1",
        "memswap_limit = -1",
        "mem_limit = \"64m\"",
    ] {
        assert!(refusal(&[("services/a.toml", &service(fine))]).is_none(), "{fine}");
    }
    let less = "`memswap_limit` (128.0 MiB) is less than `mem_limit` (256.0 MiB)";
    let alone = "`memswap_limit` needs a `mem_limit`";
    let defaults = "format = 1\n[defaults]\nmemswap_limit = \"128m\"\n";
    let on_host = "[services.a]\nmem_limit = \"256m\"\n";
    for (files, file, line, what) in [
        (
            vec![("services/a.toml", "mem_limit = \"256m\"\nmemswap_limit = \"128m\"")],
            "services/a.toml",
            3,
            less,
        ),
        (vec![("services/a.toml", "memswap_limit = \"128m\"")], "services/a.toml", 2, alone),
        (
            vec![("gitopsd.toml", defaults), ("services/a.toml", "mem_limit = \"256m\"")],
            "services/a.toml",
            2,
            less,
        ),
        (vec![("gitopsd.toml", defaults), ("services/a.toml", "")], "services/a.toml", 1, alone),
        (
            vec![
                ("services/a.toml", "mem_limit = \"64m\"\nmemswap_limit = \"128m\""),
                ("hosts/web-1.toml", on_host),
            ],
            "services/a.toml",
            1,
            less,
        ),
    ] {
        let files: Vec<_> = files
            .into_iter()
            .map(|(name, text)| {
                (name, if name.starts_with("services/") { service(text) } else { text.to_owned() })
            })
            .collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let (message, found) = refusal(&files).unwrap_or_else(|| panic!("{files:?} is taken"));
        assert!(message.starts_with(&format!("{file}:{line}:")) && message.contains(what), "{message}");
        let [error] = &found[..] else { panic!("{found:?}") };
        assert!(
            error.hint.as_ref().is_some_and(|hint| hint.contains("leave `memswap_limit` out")),
            "{error:?}"
        );
        // Said elsewhere than in the service's own file: the file is named.
        assert_eq!(error.line == 1, error.message.contains("as "), "{error:?}");
    }
}
