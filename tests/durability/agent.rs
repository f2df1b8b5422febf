//! The whole program on a disk without room: what serves goes on serving, the status says why, and it heals by itself.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::disk::{Disk, EXT4, Memory, alone, fill_up};
use super::image::Kind;
use super::lab::{Lab, free_port, web};
use super::load::Load;
use super::support::wait_for;

/// Down to the last block, also those that only root may take.
fn fill_to_the_brim(root: &Path) -> PathBuf {
    let ballast = fill_up(root, 0);
    let mut file = fs::OpenOptions::new().append(true).open(&ballast).unwrap();
    for part in [64 << 10, 1 << 10] {
        while file.write_all(&vec![1; part]).is_ok() {}
        // Refused here and now, or when it is written out.
        let _ = file.sync_all();
    }
    ballast
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_waits_for_room() {
    let _alone = alone().await;
    let memory = Memory::new(320);
    let disk = Disk::below(memory.root(), EXT4, 256);
    let mut lab = Lab::new();
    let state = disk.root().join("state");
    let config = fs::read_to_string(lab.config()).unwrap();
    let own = format!("state_dir = \"{}\"", lab.path("state").display());
    assert!(config.contains(&own));
    fs::write(lab.config(), config.replace(&own, &format!("state_dir = \"{}\"", state.display()))).unwrap();
    let port = free_port();
    let (v1, v2) = (lab.image("1", Kind::Good), lab.image("2", Kind::Good));
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let load = Load::begin(port, 40);
    // Room for the commit, and for no image.
    let ballast = fill_up(&disk.root(), 4 << 20);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    let service = wait_for("the reason", || {
        let service = lab.service("web");
        (service["reason"] == "disk-space").then_some(service)
    });
    println!("{service:#}");
    assert_eq!(service["image"], v1.as_str(), "the old version serves");
    let message = service["message"].as_str().unwrap();
    assert!(message.contains("are free, and 4.") && message.contains("gitopsd gc"), "{message}");
    // No room for anything: a commit cannot even be fetched, and what runs runs on.
    fs::remove_file(ballast).unwrap();
    let ballast = fill_to_the_brim(&disk.root());
    lab.deploy("web", &web(&v2, port, "environment = { A = \"b\" }\n"), "web 2 with more");
    wait_for("the reason of the repo", || (lab.status()["repo"]["reason"] == "disk-space").then_some(()));
    // A start on such a disk finds its containers, and still says why nothing moves.
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    wait_for("the reason again", || (lab.status()["repo"]["reason"] == "disk-space").then_some(()));
    assert_eq!(lab.service("web")["image"], v1.as_str());
    fs::remove_file(ballast).unwrap();
    lab.wait_serving("web", &v2);
    load.end_without_failure();
    wait_for("the reserve", || state.join("reserve/space").exists().then_some(()));
}
