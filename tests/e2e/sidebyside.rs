//! Two agents on one machine.

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

#[test]
fn two_instances_live_side_by_side() {
    let (mut one, mut two) = (Lab::new(), Lab::new());
    let (port_one, port_two) = (free_port(), free_port());
    for (lab, port, version) in [(&mut one, port_one, "1"), (&mut two, port_two, "2")] {
        let image = lab.image(version, Kind::Good);
        lab.deploy("web", &web(&image, port, ""), "web");
        lab.start_agent();
        lab.wait_agent();
        lab.sync();
    }
    assert_eq!(get(port_one, "/").unwrap(), "version 1\n");
    assert_eq!(get(port_two, "/").unwrap(), "version 2\n");
    // A second agent on the same state is refused, and says who has it.
    let output = one.run(&["run", "--once"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("held by another agent"), "{output:?}");
    // One taken off the host leaves the other alone.
    one.kill_agent();
    one.ok(&["teardown", "--yes"]);
    assert!(get(port_one, "/").is_err());
    assert_eq!(get(port_two, "/").unwrap(), "version 2\n");
    two.sync();
    // What was torn down comes back from its own state.
    one.start_agent();
    one.wait_agent();
    wait_for("it to serve", || get(port_one, "/").ok());
}

#[test]
fn a_second_agent_of_one_name_touches_nothing_of_the_first() {
    let (lab, port) = Lab::serving();
    // As somebody does who tries another configuration and leaves the instance's name as it is.
    let other = lab.path("other");
    std::fs::create_dir(&other).unwrap();
    let text = std::fs::read_to_string(lab.config()).unwrap();
    let text = text.replace("/state\"", "/other/state\"").replace("/run\"", "/other/run\"");
    std::fs::write(other.join("gitopsd.toml"), text).unwrap();
    for verb in [vec!["run", "--once"], vec!["teardown", "--yes"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        let output = command.arg("--config").arg(other.join("gitopsd.toml")).args(&verb).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{verb:?}");
        assert!(said.contains(&format!("instance `{}` of this host is held", lab.instance)), "{said}");
    }
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    let service = lab.service("web");
    assert_eq!((&service["restarts"], &service["generation"]), (&0.into(), &1.into()), "{service}");
}
