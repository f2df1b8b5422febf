//! What hosts say of commits, heard by others: through real git, without asking for more than has moved.

use std::sync::atomic::Ordering;

use gitopsd::git::{Evidence, Repository};
use gitopsd::reconcile::arrival::{Arrival, Landed};
use gitopsd::reconcile::tagged::Tagged;
use gitopsd::types::{CommitId, HostName, Reason, Refusal, Timestamp};

use crate::git_server::{HttpServer, Lab};
use crate::{config, follow, id};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// A host of its own that says how it is.
fn say(lab: &Lab, name: &str, commit: &CommitId, trouble: Option<&str>, seconds: i64) {
    let repository = Repository::open(&config(&lab.url()), &lab.path(&format!("cache-{name}"))).unwrap();
    follow(&repository, None).unwrap();
    let (service, refusal) =
        ("shop".parse().unwrap(), Refusal::new(Reason::Unhealthy, trouble.unwrap_or_default()));
    let trouble = trouble.map(|_| (&service, &refusal));
    let word = Arrival::new(&host(name), &["role=web".to_owned()], commit, trouble, at(seconds));
    let line = serde_json::to_string(&word).unwrap();
    repository.publish(None, &host(name), &[(commit.clone(), word.id, line)]).unwrap();
}

fn words(evidence: &[Evidence]) -> Vec<(String, Option<Landed>, Option<String>)> {
    let all = evidence.iter().map(|it| {
        let on = it.on.as_ref().map(|on| on.state);
        (it.host.to_string(), on, it.before.as_ref().map(|before| before.commit.to_string()))
    });
    all.collect()
}

/// Through a directory and over http: the same.
fn each(test: impl Fn(&Lab, &Repository, Option<&HttpServer>)) {
    let lab = Lab::new().with_repo();
    test(&lab, &lab.open(), None);
    let lab = Lab::new().with_repo();
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let server = HttpServer::start(&lab.path(""), None);
    let repository = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
    test(&lab, &repository, Some(&server));
}

#[test]
fn the_last_word_of_each_host_is_heard() {
    each(|lab, repository, _| {
        let first = follow(repository, None).unwrap();
        say(lab, "a-1", first.id(), Some("500"), 1);
        say(lab, "a-1", first.id(), None, 2);
        say(lab, "a-2", first.id(), None, 1);
        say(lab, "b-1", first.id(), None, 1);
        lab.commit("README.md", "x", "nothing");
        let third = id(&lab.commit("services/shop.toml", "image = \"r.io/shop:2\"\n", "shop 2"));
        say(lab, "a-2", &third, Some("GET /: 500\n{\"id\":\"x\"}"), 3);
        let head = follow(repository, Some(first.id())).unwrap();
        let heard = repository.hear(None, &|name| name.as_str().starts_with("a-")).unwrap();
        let evidence = repository.evidence(&head, &heard).unwrap();
        assert_eq!(
            words(&evidence),
            [
                ("a-1".to_owned(), None, Some(first.id().to_string())),
                ("a-2".to_owned(), Some(Landed::Failed), None),
            ]
        );
        assert_eq!(evidence[0].before.as_ref().unwrap().state, Landed::Healthy);
        assert_eq!(evidence[0].labels(), ["role=web"]);
        // People read it too, and what a container wrote does not pass for anything else.
        let log = lab.git("config.git", &["log", "--notes=gitopsd/*", "main"]);
        assert!(log.contains("    a-1: healthy at this commit\n"), "{log}");
        assert!(log.contains("    a-2: failed at this commit: shop: GET /: 500"), "{log}");
        // Held against what was there before.
        let before = repository.before(&head, 10).unwrap();
        assert_eq!(before.len(), 2);
        assert_eq!(before[1].id(), first.id());
        let evidence = repository.evidence(&before[1], &heard).unwrap();
        assert!(evidence.iter().all(|it| it.on.as_ref().unwrap().state == Landed::Healthy));
    });
}

#[test]
fn listening_asks_for_nothing_but_what_has_moved() {
    each(|lab, repository, server| {
        let Some(server) = server else { return };
        let first = follow(repository, None).unwrap();
        say(lab, "a-1", first.id(), None, 1);
        say(lab, "z-1", first.id(), None, 1);
        let wanted = |name: &HostName| name.as_str() == "a-1";
        let look = || {
            let before = server.requests.load(Ordering::SeqCst);
            let head = follow(repository, Some(first.id())).unwrap();
            let heard = repository.hear(None, &wanted).unwrap();
            let words = words(&repository.evidence(&head, &heard).unwrap());
            (server.requests.load(Ordering::SeqCst) - before, words)
        };
        let (_, heard) = look();
        assert_eq!(heard.len(), 1);
        // Nothing has moved: the look at the branch is the only request. Nor does it cost more that others have moved.
        assert_eq!(look().0, 1);
        say(lab, "z-1", first.id(), Some("500"), 2);
        assert_eq!(look().0, 1);
        say(lab, "a-1", first.id(), Some("500"), 2);
        let (requests, heard) = look();
        assert_eq!((requests, heard[0].1), (3, Some(Landed::Failed)));
        assert_eq!(look().0, 1);
        // A cache that is lost is no loss.
        std::fs::remove_dir_all(lab.cache()).unwrap();
        let again = Repository::open(&config(&server.url("config.git")), &lab.cache()).unwrap();
        let head = follow(&again, Some(first.id())).unwrap();
        let heard = again.hear(None, &wanted).unwrap();
        assert_eq!(again.evidence(&head, &heard).unwrap()[0].on.as_ref().unwrap().state, Landed::Failed);
    });
}

/// What stands in one repository with the branch is told to the server as what is here: the newest commits, of which only
/// so many are told.
#[test]
fn what_was_heard_makes_no_look_at_the_branch_larger() {
    each(|lab, repository, _| {
        for n in 0..30 {
            lab.commit("services/shop.toml", &format!("image = \"r.io/shop:{n}\"\n"), "shop");
        }
        let first = follow(repository, None).unwrap();
        for seconds in 0..25 {
            say(lab, "a-1", first.id(), Some(&seconds.to_string()), seconds);
        }
        repository.fetch().unwrap();
        let heard = repository.hear(None, &|_| true).unwrap();
        assert_eq!(words(&repository.evidence(&first, &heard).unwrap())[0].1, Some(Landed::Failed));
        let held = || -> usize {
            let text = lab.git("cache/repo.git", &["rev-list", "--objects", "--all", "--count"]);
            let loose = lab.git("cache/repo.git", &["count-objects", "-v"]);
            let number = |key: &str| -> usize {
                let line = loose.lines().find_map(|line| line.strip_prefix(key)).unwrap();
                line.trim().parse().unwrap()
            };
            assert!(text.parse::<usize>().unwrap() <= number("count:") + number("in-pack:"));
            number("count:") + number("in-pack:")
        };
        let before = held();
        lab.commit("services/shop.toml", "image = \"r.io/shop:31\"\n", "shop 31");
        assert!(repository.fetch().unwrap().moved);
        // A commit, its tree and that of the folder, a file; and what a thin pack leaned on.
        let grown = held() - before;
        assert!(grown <= 6, "{grown} objects came");
        // A copy of it that is lost is heard again.
        std::fs::remove_dir_all(lab.path("cache/heard.git")).unwrap();
        let heard = repository.hear(None, &|_| true).unwrap();
        assert_eq!(words(&repository.evidence(&first, &heard).unwrap())[0].1, Some(Landed::Failed));
    });
}

#[test]
fn what_tags_stood_for_is_found_at_the_newest_commit_that_somebody_looked_at() {
    each(|lab, repository, _| {
        let first = follow(repository, None).unwrap();
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        let tell = |name: &str, commit: &CommitId, seconds: i64, tags: &[(&str, &str)]| {
            let repository =
                Repository::open(&config(&lab.url()), &lab.path(&format!("cache-{name}"))).unwrap();
            follow(&repository, None).unwrap();
            let tags =
                tags.iter().map(|(image, c)| ((*image).to_owned(), digest(c).parse().unwrap())).collect();
            let word = Tagged::new(&host(name), commit, tags, at(seconds));
            let line = serde_json::to_string(&word).unwrap();
            repository.publish(None, &host(name), &[(commit.clone(), word.id, line)]).unwrap();
        };
        tell("a-1", first.id(), 1, &[("r.io/shop:1", "1"), ("r.io/db:1", "2")]);
        let second = id(&lab.commit("README.md", "x", "more"));
        tell("b-1", &second, 9, &[("r.io/shop:1", "3")]);
        tell("b-2", &second, 8, &[("r.io/shop:1", "4")]);
        let head = follow(repository, Some(first.id())).unwrap();
        let heard = repository.hear(None, &|_| true).unwrap();
        let tags = repository.tags(&head, &heard).unwrap();
        let of = |image: &str| tags.get(image).map(|(digest, by)| (digest.to_string(), by.to_string()));
        assert_eq!(of("r.io/shop:1"), Some((digest("4"), "b-2".to_owned())));
        assert_eq!(of("r.io/db:1"), Some((digest("2"), "a-1".to_owned())));
        assert_eq!(of("r.io/other:1"), None);
    });
}

#[test]
fn a_commit_in_a_hurry_says_so_in_its_last_paragraph() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    for (message, hurry) in [
        ("shop 2", false),
        ("shop 2\n\nGitopsd-Waves: now", true),
        ("shop 2\n\nGitopsd-Waves: now\n\nOr not.", false),
        ("shop 2\n\nSigned-off-by: Ann\nGITOPSD-WAVES: Now", true),
        ("shop 2\n\nGitopsd-Waves: later", false),
        ("Gitopsd-Waves: now", false),
    ] {
        lab.commit("README.md", message, message);
        let head = follow(&repository, None).unwrap();
        assert_eq!(repository.waives_waves(&head).unwrap(), hurry, "{message}");
    }
}
