//! Files of the config repo in containers: changed by a commit, kept for a rollback and for a boot without git.

use super::image::Kind;
use super::lab::{Lab, wait_for, web};
use super::load::get;

const MORE: &str =
    "env_file = \"web/web.env\"\nconfigs = [{ file = \"web/app.conf\", target = \"/etc/app.conf\" }]";

/// What the container that serves has.
fn seen(lab: &Lab) -> String {
    lab.ok(&["exec", "web", "--", "/bin/sh", "-c", "cat /etc/app.conf; echo $MODE"])
}

#[test]
fn a_generation_keeps_the_files_that_it_began_with() {
    let mut lab = Lab::new();
    let (image, port) = (lab.image("1", Kind::Good), super::lab::free_port());
    lab.write("services/web/app.conf", "one\n");
    lab.write("services/web/web.env", "MODE=first\n");
    lab.deploy("web", &web(&image, port, MORE), "with files");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_receipt("deployed");
    assert_eq!(seen(&lab), "one\nfirst\n");

    // A change of the content alone is a deploy, with that key as its reason.
    lab.write("services/web/app.conf", "two\n");
    let plan = lab.run(&["plan", lab.path("work").to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(2), "{plan:?}");
    assert!(String::from_utf8_lossy(&plan.stdout).contains("configs"), "{plan:?}");
    lab.commit("another content");
    lab.ok(&["sync", "--wait"]);
    assert_eq!(seen(&lab), "two\nfirst\n");
    assert_eq!(lab.service("web")["generation"], 2);

    // Back to the former generation, whose content no head of the branch has.
    lab.ok(&["rollback", "web"]);
    wait_for("the former content", || (seen(&lab) == "one\nfirst\n").then_some(()));
    lab.ok(&["resume", "web"]);
    lab.ok(&["sync", "--wait"]);
    assert_eq!(seen(&lab), "two\nfirst\n");

    // A boot without git and registry.
    lab.kill_agent();
    lab.cut_power();
    std::fs::rename(lab.path("repo.git"), lab.path("gone.git")).unwrap();
    lab.stop_registry();
    lab.start_agent();
    wait_for("the service after the boot", || get(port, "/").is_ok().then_some(()));
    assert_eq!(seen(&lab), "two\nfirst\n");
    lab.ok(&["rollback", "web"]);
    wait_for("the former content", || (seen(&lab) == "one\nfirst\n").then_some(()));
}

#[test]
fn contents_that_nothing_needs_go() {
    let mut lab = Lab::new();
    let (image, port) = (lab.image("1", Kind::Good), super::lab::free_port());
    lab.write("services/web/web.env", "");
    lab.write("services/web/app.conf", "0\n");
    lab.deploy("web", &web(&image, port, MORE), "0");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_receipt("deployed");
    for number in 1..=3 {
        lab.write("services/web/app.conf", &format!("{number}\n"));
        lab.commit(&number.to_string());
        lab.ok(&["sync", "--wait"]);
        assert_eq!(seen(&lab), format!("{number}\n\n"));
    }
    lab.ok(&["gc"]);
    let kept: std::collections::BTreeSet<String> = std::fs::read_dir(lab.path("state/configs"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(kept, ["2\n".to_owned(), "3\n".to_owned()].into(), "current and previous");
}

#[test]
fn a_damaged_content_is_told_and_mended_by_a_restart() {
    let mut lab = Lab::new();
    let (image, port) = (lab.image("1", Kind::Good), super::lab::free_port());
    lab.write("services/web/web.env", "");
    lab.write("services/web/app.conf", "whole\n");
    lab.deploy("web", &web(&image, port, MORE), "one");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_receipt("deployed");
    let file = std::fs::read_dir(lab.path("state/configs")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, "other\n").unwrap();
    // It reads its own copy for as long as it runs.
    assert_eq!(seen(&lab), "whole\n\n");
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for("the reason in the status", || {
        let why = lab.ok(&["why", "web"]);
        (why.contains("config file /etc/app.conf") && why.contains("state-invalid")).then_some(())
    });
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    // On a busy machine the tries before this were many, and the next one is far.
    lab.run(&["sync"]);
    wait_for("the service", || get(port, "/").is_ok().then_some(()));
    assert_eq!(seen(&lab), "whole\n\n");
}
