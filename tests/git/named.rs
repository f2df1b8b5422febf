//! Files that the repo's `*.toml` name, out of commits: read where they are files, and otherwise the affair of whoever
//! names them.

use gitopsd::git::{Repository, files_at};

use crate::git_server::Lab;
use crate::hostile::{blob, commit_tree, raw_tree};
use crate::{config, follow};

const SHOP: &str = "image = 'r.io/shop:1'\nenv_file = ['shop.env', '../env/all.env']\n";

#[test]
fn what_is_named_is_read_and_nothing_else() {
    let lab = Lab::new().with_repo();
    let top = "format = 1\n[configs.page]\nfile = 'pages/index.html'\n";
    for (path, text) in [
        ("prod/gitopsd.toml", top),
        ("prod/services/shop.toml", SHOP),
        ("prod/services/shop.env", "A=1\n"),
        ("prod/services/other.env", "B=1\n"),
        ("prod/env/all.env", "C=1\n"),
        ("prod/pages/index.html", "<p>"),
        ("env/all.env", "of another folder"),
    ] {
        lab.commit(path, text, "files");
    }
    let mut config = config(&lab.url());
    config.path = "prod".to_owned();
    let repository = Repository::open(&config, &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let files = repository.files(&commit).unwrap();
    assert_eq!(files["env/all.env"], b"C=1\n");
    let names =
        ["env/all.env", "gitopsd.toml", "pages/index.html", "services/shop.env", "services/shop.toml"];
    assert_eq!(files.keys().collect::<Vec<_>>(), names);
    // `plan` of a revision and of a folder see the same.
    let at = files_at(&lab.path("work/prod"), "HEAD").unwrap();
    assert_eq!(at, files);
    assert_eq!(gitopsd::config::repo::read_dir(&lab.path("work/prod")).unwrap(), files);
    // What is gone in a later commit is not there.
    lab.git("work", &["rm", "-q", "prod/env/all.env"]);
    let commit_id = lab.commit("prod/services/shop.env", "A=2\n", "less");
    let commit = follow(&repository, Some(commit.id())).unwrap();
    assert_eq!(commit.id().as_str(), commit_id);
    let files = repository.files(&commit).unwrap();
    assert!(!files.contains_key("env/all.env") && files.refusal("env/all.env").is_none());
    assert_eq!(files["services/shop.env"], b"A=2\n");
}

#[test]
fn links_submodules_and_giants_are_refused_without_harm_to_others() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let commit = lab.git("config.git", &["rev-parse", "main"]);
    let toml = |name: &str| blob(&lab, format!("image = 'r.io/x:1'\nenv_file = '{name}'\n").as_bytes());
    let link = blob(&lab, b"/etc/shadow");
    let text = blob(&lab, b"A=1\n");
    let big = blob(&lab, &vec![b'x'; (1 << 20) + 1]);
    let tree = raw_tree(&lab, &[("100644", b"in", &text)]);
    let services = raw_tree(
        &lab,
        &[
            ("100644", b"a.toml", &toml("../e/good")),
            ("100644", b"b.toml", &toml("../e/link")),
            ("100644", b"c.toml", &toml("../e/aside/in")),
            ("100644", b"d.toml", &toml("../e/module/in")),
            ("100644", b"e.toml", &toml("../e/tree")),
            ("100644", b"f.toml", &toml("../e/big")),
            ("100644", b"g.toml", &toml("../e/twice")),
            ("100644", b"h.toml", &toml("../e/good/in")),
            ("100644", b"i.toml", &toml("../e/none")),
            ("100644", b"j.toml", &toml("../e-f/in")),
            ("100644", b"k.toml", &toml("../e/tree/in")),
        ],
    );
    let e = raw_tree(
        &lab,
        &[
            ("120000", b"aside", &link),
            ("100644", b"big", &big),
            ("100755", b"good", &text),
            ("120000", b"link", &link),
            ("160000", b"module", &commit),
            ("40000", b"tree", &tree),
            ("100644", b"twice", &text),
            ("120000", b"twice", &link),
        ],
    );
    // `e-f/in` is sorted between `e` and what is in it.
    commit_tree(&lab, &[("40000", b"e-f", &tree), ("40000", b"e", &e), ("40000", b"services", &services)]);
    let mut config = config(&lab.url());
    config.path = ".".to_owned();
    drop(repository);
    let repository = Repository::open(&config, &lab.path("cache2")).unwrap();
    let files = repository.files(&follow(&repository, None).unwrap()).unwrap();
    assert_eq!(files["e/good"], b"A=1\n");
    assert_eq!((files["e-f/in"].as_slice(), files["e/tree/in"].as_slice()), (&b"A=1\n"[..], &b"A=1\n"[..]));
    assert_eq!(files.keys().filter(|path| path.starts_with("e/")).count(), 2);
    for (path, why) in [
        ("e/link", "symbolic link"),
        ("e/aside/in", "symbolic link"),
        ("e/module/in", "submodule"),
        ("e/tree", "not a plain file"),
        ("e/big", "larger than 1 MiB"),
        ("e/twice", "there twice"),
    ] {
        assert!(
            files.refusal(path).is_some_and(|found| found.contains(why)),
            "{path}: {:?}",
            files.refusal(path)
        );
    }
    assert_eq!((files.refusal("e/none"), files.refusal("e/good/in")), (None, None));
}
