//! Files that are there and cannot be read: each costs its own service, or the services of its host, and nothing is taken
//! for gone.

use super::*;

const SERVICE: &str = "image = \"r.io/a:1\"\n";

/// The names of services that this host is to have, and whether they can be acted on.
fn told(view: &RepoView) -> Vec<(&str, bool)> {
    view.services.iter().map(|(name, spec)| (name.as_str(), spec.is_ok())).collect()
}

#[test]
fn a_service_file_that_is_no_file_stops_that_service_only() {
    let mut files = repo(&[("services/a.toml", SERVICE), ("services/b.toml", "imag = 1\n")]);
    files.refuse("services/c.toml", "is a symbolic link: put the file itself there");
    files.insert("services/d.toml".to_owned(), vec![0xff]);
    let view = read(&files, &host("h", &[]), &Policy::default());
    assert_eq!(told(&view), [("a", true), ("b", false), ("c", false), ("d", false)]);
    assert!(view.fatal.is_none() && view.declared_in_repo == 4, "{view:?}");
    let refusals: Vec<_> = view.services.values().filter_map(|spec| spec.as_ref().err()).collect();
    assert!(refusals.iter().all(|refusal| refusal.reason == Reason::ConfigInvalid), "{refusals:?}");
    assert!(refusals[1].message.starts_with("services/c.toml is a symbolic link"), "{refusals:?}");
    assert_eq!(refusals[2].message, "services/d.toml is not UTF-8");
    // All of it is told at once.
    for file in ["services/b.toml", "services/c.toml", "services/d.toml"] {
        assert!(view.diagnostics.iter().any(|found| found.is_error() && found.file == file), "{file}");
    }
}

#[test]
fn a_host_file_that_cannot_be_read_takes_nothing_away() {
    let by_label = "image = \"r.io/a:1\"\nhosts = [\"role=web\"]\n";
    let elsewhere = "image = \"r.io/a:1\"\nhosts = [\"other\"]\n";
    let own = [("services/a.toml", by_label), ("services/b.toml", SERVICE), ("services/c.toml", elsewhere)];
    let with = |change: &dyn Fn(&mut RepoFiles)| {
        let mut files = repo(&own);
        change(&mut files);
        read(&files, &host("h", &[]), &Policy::default())
    };
    let text = |text: &'static [u8]| {
        move |files: &mut RepoFiles| drop(files.insert("hosts/h.toml".to_owned(), text.to_vec()))
    };
    assert_eq!(told(&with(&text(b"labels = [\"role=web\"]\n"))), [("a", true), ("b", true)]);
    assert_eq!(told(&with(&|_| ())), [("b", true)], "nobody gives it the label");
    // It may have the label, and what it says of the others is not known either.
    let refused = |files: &mut RepoFiles| files.refuse("hosts/h.toml", "is a symbolic link");
    let broken: [&dyn Fn(&mut RepoFiles); 3] = [&refused, &text(b"\xff"), &text(b"labels = [\n= x")];
    for (place, change) in broken.into_iter().enumerate() {
        let view = with(change);
        assert_eq!(told(&view), [("a", false), ("b", false)], "{place}");
        let refusal = view.services[&name("a")].as_ref().unwrap_err();
        assert!(refusal.message.contains("hosts/h.toml"), "{refusal:?}");
    }
}
