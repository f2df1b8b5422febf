//! `kill -9` at any moment: a final name means complete, what is unfinished is wiped, the next pull goes on.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gitopsd::registry::Store;
use gitopsd::types::PinnedImage;

use super::support::image::{Blob, Layer, With, noise};
use super::support::proxy::Proxy;
use super::support::server::Server;
use super::support::tree::describe;
use super::support::{Host, names, plain, wait_for};

/// Tells the child its state directory and its image.
const STATE: &str = "REGISTRY_TEST_STATE";
const IMAGE: &str = "REGISTRY_TEST_IMAGE";

fn layer(seed: u8) -> Blob {
    let root = With { mode: 0o755, ..With::default() };
    let mut layer = Layer::default().entry("./", tar::EntryType::Directory, "", b"", &root);
    for number in 0..100 {
        layer = layer.file(&format!("file-{seed}-{number}"), &noise(number, 20_000));
    }
    layer.gzip()
}

/// Not a test of its own: the process that gets killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the others of this module run it"]
async fn child() {
    let (Ok(state), Ok(image)) = (std::env::var(STATE), std::env::var(IMAGE)) else { return };
    let _scenario = fail::FailScenario::setup();
    let image: PinnedImage = serde_json::from_str(&image).unwrap();
    let gitopsd::types::ImageRef::Registry(reference) = &image.reference else { panic!("{image:?}") };
    let store = std::sync::Arc::new(Store::open(Path::new(&state)).unwrap());
    let hosts = [(reference.registry.clone(), plain())].into();
    let registry = gitopsd::registry::Registry::new(store, hosts)
        .unwrap()
        .with_program(env!("CARGO_BIN_EXE_gitopsd").into());
    println!("\nchild begins");
    registry.pull(&image, &|_| {}).await.unwrap();
}

/// Starts the child, and waits until it is about to pull.
fn start(state: &Path, image: &PinnedImage, failpoints: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture"])
        .env(STATE, state)
        .env(IMAGE, serde_json::to_string(image).unwrap())
        .env("FAILPOINTS", failpoints)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "child begins"), "the child did not begin");
    // Whatever else it says is not to stop it.
    std::thread::spawn(move || lines.count());
    child
}

/// Trees and image of a host where nothing went wrong.
#[derive(Clone)]
struct Truth {
    image: PinnedImage,
    trees: Vec<(String, String)>,
}

async fn truth(address: &str) -> Truth {
    let host = Host::new(&[address]);
    let image = host.resolve(&format!("{address}/app:1")).await.unwrap();
    host.registry.pull(&image, &|_| {}).await.unwrap();
    let layers = host.dir.path().join("store/layers");
    let trees =
        names(&layers).into_iter().map(|name| (name.clone(), describe(&layers.join(name).join("fs"))));
    Truth { image, trees: trees.collect() }
}

/// What has a final name is complete; gives how many layers and images that are.
#[track_caller]
fn check(state: &Path, truth: &Truth) -> (usize, usize) {
    let store = state.join("store");
    let layers = layers(state);
    for name in &layers {
        let (_, expected) =
            truth.trees.iter().find(|(known, _)| known == name).expect("a layer of the image");
        assert_eq!(
            &describe(&store.join("layers").join(name).join("fs")),
            expected,
            "{name} is not complete"
        );
    }
    let images = names(&store.join("images")).iter().filter(|name| name.ends_with(".json")).count();
    if images > 0 {
        assert_eq!(layers.len(), truth.trees.len(), "an image without its layers");
    }
    (layers.len(), images)
}

/// After a crash: nothing unfinished is left, and a pull makes it whole.
async fn recover(state: &Path, address: &str, truth: &Truth) {
    let store = std::sync::Arc::new(Store::open(state).unwrap());
    assert_eq!(names(&state.join("store/tmp")), Vec::<String>::new());
    let hosts = [(address.to_owned(), plain())].into();
    let registry = gitopsd::registry::Registry::new(store.clone(), hosts)
        .unwrap()
        .with_program(env!("CARGO_BIN_EXE_gitopsd").into());
    registry.pull(&truth.image, &|_| {}).await.unwrap();
    assert!(store.image(&truth.image.digest).is_some());
    assert_eq!(check(state, truth), (truth.trees.len(), 1));
    assert_eq!(names(&state.join("store/tmp")), Vec::<String>::new());
}

/// The layers that have their names.
fn layers(state: &Path) -> Vec<String> {
    names(&state.join("store/layers"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_layer() {
    let server = Server::new();
    let blobs = [layer(1), layer(2)];
    server.push("1", &blobs).await;
    let digest = blobs[1].digest();
    let (hanging, reached) = std::sync::mpsc::sync_channel(16);
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            (answer.cut, answer.hold) = (Some(answer.body.len() / 2), true);
            hanging.send(()).unwrap();
        }
        answer
    });
    let truth = truth(&server.address()).await;
    let dir = tempfile::tempdir().unwrap();
    let through = PinnedImage {
        reference: format!("{}/app:1", proxy.address()).parse().unwrap(),
        ..truth.image.clone()
    };
    let mut child = start(dir.path(), &through, "");
    reached.recv_timeout(Duration::from_secs(60)).unwrap();
    let half = || {
        let tmp = dir.path().join("store/tmp");
        let files = |name: &String| std::fs::read_dir(tmp.join(name).join("fs")).map_or(0, Iterator::count);
        names(&tmp).iter().any(|name| (1..100).contains(&files(name))).then_some(())
    };
    wait_for("half a layer", half);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(check(dir.path(), &truth).1, 0);
    // On a slow machine the other one may have its name by then.
    let other = &blobs[0].diff_id["sha256:".len()..];
    assert!(layers(dir.path()).iter().all(|name| name == other), "{:?}", layers(dir.path()));
    assert!(!names(&dir.path().join("store/tmp")).is_empty(), "it was in the middle");
    recover(dir.path(), &server.address(), &truth).await;
}

/// A pull that takes long gives names to what is finished; what is killed then has that much less to do again.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
async fn kills_in_a_long_pull() {
    let server = Server::new();
    let blobs = [layer(1), layer(2), layer(3)];
    server.push("1", &blobs).await;
    let digest = blobs[2].digest();
    let held = move |proxied: &str| proxied.contains(&digest);
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if held(&request.path) {
            (answer.cut, answer.hold) = (Some(answer.body.len() / 2), true);
        }
        answer
    });
    let truth = truth(&server.address()).await;
    let reference = format!("{}/app:1", proxy.address()).parse().unwrap();
    let through = PinnedImage { reference, ..truth.image.clone() };
    for (point, least) in [("pull::before_rename", 0), ("pull::after_rename", 1), ("", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let failpoint = if point.is_empty() { String::new() } else { format!("{point}=return") };
        let mut child = start(dir.path(), &through, &failpoint);
        if point.is_empty() {
            wait_for("the first names", || (layers(dir.path()).len() == least).then_some(()));
            child.kill().unwrap();
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{point}");
        let (named, images) = check(dir.path(), &truth);
        // On a slow machine the second one may not be unpacked yet when the first names are given.
        let expected = if least == 0 { 0..=0 } else { least..=2 };
        assert!(images == 0 && expected.contains(&named), "{point}: {named} layers, {images} images");
        let named = layers(dir.path());
        let counting = Proxy::counting(&server);
        let reference = format!("{}/app:1", counting.address()).parse().unwrap();
        let again = Truth { image: PinnedImage { reference, ..truth.image.clone() }, ..truth.clone() };
        recover(dir.path(), &counting.address(), &again).await;
        for blob in &blobs {
            let is_here = named.iter().any(|name| blob.diff_id.ends_with(name));
            let came = counting.count(&blob.digest()) > 0;
            assert_eq!(came, !is_here, "{point}: {} came again: {came}, of {named:?}", blob.diff_id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_time() {
    let server = Server::new();
    server.push("1", &[layer(1), layer(2), layer(3), layer(4)]).await;
    let truth = truth(&server.address()).await;
    let (mut killed, mut pause) = (0, Duration::ZERO);
    loop {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path(), &truth.image, "");
        std::thread::sleep(pause);
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        check(dir.path(), &truth);
        recover(dir.path(), &server.address(), &truth).await;
        if ended.signal() != Some(9) {
            assert!(ended.success(), "{ended:?}");
            break;
        }
        killed += 1;
        // Dense where little happens for long, and an end in sight on a slow machine.
        pause = pause * 5 / 4 + Duration::from_millis(2);
    }
    assert!(killed > 3, "it was over after {killed} kills");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
async fn kills_around_each_name() {
    let server = Server::new();
    server.push("1", &[layer(1), layer(2)]).await;
    let truth = truth(&server.address()).await;
    let rows = [
        ("pull::before_rename", 0..=0, 0),
        // On a slow machine one of them may have its name before the other one is unpacked.
        ("pull::after_rename", 1..=2, 0),
        ("pull::before_record", 2..=2, 0),
        ("pull::after_record", 2..=2, 1),
    ];
    for (point, layers, images) in rows {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path(), &truth.image, &format!("{point}=return"));
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{point}");
        let left = check(dir.path(), &truth);
        assert!(layers.contains(&left.0) && left.1 == images, "{point}: {left:?}");
        recover(dir.path(), &server.address(), &truth).await;
    }
}
