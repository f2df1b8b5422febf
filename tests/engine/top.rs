//! `gitopsd top`: what the kernel counts of running containers.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use gitopsd::engine::Engine;
use gitopsd::types::ByteSize;
use serde_json::Value;

use crate::containers::Rig;

fn top(rig: &Rig, args: &[&str]) -> Value {
    let output = rig.command(&[&["top", "--json"], args].concat()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_containers_use_is_counted() {
    let rig = Rig::new();
    // Half a processor, some memory that is held, three processes.
    let mut busy = rig.script("busy.3", "sleep 1000 & sleep 1000 & while :; do :; done");
    busy.spec.milli_cpus = Some(500);
    busy.spec.mem_limit = Some(ByteSize(64 << 20));
    busy.spec.pids_limit = Some(50);
    rig.start(&busy);
    let mut holder = rig.script(
        "holder.1",
        "dd if=/dev/zero of=/dev/shm/held bs=1048576 count=32 2>/dev/null; echo held; sleep 1000",
    );
    holder.spec.mem_limit = Some(ByteSize(256 << 20));
    rig.start(&holder);
    rig.wait_log(&holder.id, "held");
    let look = top(&rig, &["--interval", "2s"]);
    let rows = look["containers"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{look}");
    let (busy_row, holder_row) = (&rows[0], &rows[1]);
    assert_eq!((&busy_row["service"], &busy_row["generation"]), (&"busy".into(), &3.into()));
    let percent = busy_row["cpu_percent"].as_f64().unwrap();
    assert!((5.0..60.0).contains(&percent), "{percent} of a loop that may have 50");
    assert!(busy_row["cpu_seconds"].as_f64().unwrap() > 0.1);
    assert_eq!((&busy_row["memory_limit_bytes"], &busy_row["pids_limit"]), (&(64 << 20).into(), &50.into()));
    assert_eq!(busy_row["pids"], 3);
    let memory = holder_row["memory_bytes"].as_u64().unwrap();
    assert!((32 << 20..48 << 20).contains(&memory), "{memory}");
    assert_eq!(holder_row["pids_limit"], Value::Null);
    assert!(holder_row["cpu_percent"].as_f64().unwrap() < 5.0, "{look}");

    let text = rig.command(&["top", "busy", "--interval", "100ms"]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("SERVICE") && text.contains("64.0 MiB") && !text.contains("holder"), "{text}");
    let output = rig.command(&["top", "bussy"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `busy`?"), "{output:?}");

    // Again and again, and one that ends is no longer there.
    let args = ["top", "--json", "--watch", "--interval", "100ms"];
    let mut child = rig.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut count = || {
        let look: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        look["containers"].as_array().unwrap().len()
    };
    assert_eq!(count(), 2);
    rig.engine.stop(&busy.id, Duration::from_millis(10)).unwrap();
    let begun = Instant::now();
    while count() != 1 {
        assert!(begun.elapsed() < Duration::from_secs(10) * crate::containers::slow());
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
