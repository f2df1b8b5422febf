//! Archives in S3: a real server of its API, and what it sends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gitopsd::config::agent::S3Config;
use gitopsd::registry::Store;
use gitopsd::types::Digest;

use super::host;
use super::make::{docker_save, hex, image, noise, tar};

/// moto's server: S3's API, in memory.
pub struct Moto {
    process: Child,
    pub port: u16,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn moto() -> Moto {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("moto/bin/moto_server");
    assert!(program.exists(), "{} is not there: `scripts/install-deps test` makes it", program.display());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new(program)
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let moto = Moto { process, port };
    for _ in 0..300 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return moto;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("moto does not listen");
}

/// Bytes that servers send through here.
pub fn counting_relay(to: u16) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up_from, &mut up_to);
                let _ = up_to.shutdown(std::net::Shutdown::Write);
            });
            let (mut from, mut to, count) = (server, client, count.clone());
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    count.fetch_add(length as u64, Ordering::Relaxed);
                    if to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, sent)
}

pub fn put(moto: &Moto, dir: &Path, path: &str, bytes: &[u8]) {
    std::fs::write(dir.join("upload"), bytes).unwrap();
    let url = format!("http://127.0.0.1:{}/{path}", moto.port);
    let status = Command::new("curl")
        .args(["-fsS", "-o", "/dev/null", "-T"])
        .arg(dir.join("upload"))
        .arg(&url)
        .status()
        .unwrap();
    assert!(status.success(), "PUT {path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_archive_in_s3_only_the_missing_layers_are_read() {
    // `make test-all` takes the real size.
    let large = std::env::var_os("GITOPSD_TEST_ALL").is_some();
    let (base, last) = if large { (150 << 20, 8 << 20) } else { (20 << 20, 2 << 20) };
    let moto = moto();
    let (port, sent) = counting_relay(moto.port);
    let host = host(S3Config::default());
    let config = format!(
        "state_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n[repo]\nurl = \"{0}/none\"\n[s3]\nendpoint = \"http://127.0.0.1:{port}\"\npath_style = true\n",
        host.dir.path().display()
    );
    std::fs::write(host.dir.path().join("gitopsd.toml"), config).unwrap();
    let pull = |url: &str, key: &str| {
        Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .arg("--config")
            .arg(host.dir.path().join("gitopsd.toml"))
            .args(["pull", url])
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", "no-secret")
            .output()
            .unwrap()
    };
    put(&moto, host.dir.path(), "images", b"");
    let bases: Vec<Vec<u8>> =
        (0..3).map(|number| tar(&[(&*format!("base/{number}"), &noise(base, number + 1))])).collect();
    let version = |number: u64| {
        let mut layers = bases.clone();
        layers.push(tar(&[("app", &noise(last, 100 + number)), ("version", number.to_string().as_bytes())]));
        docker_save(&image(layers))
    };
    let mut transferred = Vec::new();
    for number in 1..=2u64 {
        put(&moto, host.dir.path(), &format!("images/app-{number}.tar"), &version(number));
        sent.store(0, Ordering::Relaxed);
        let output = pull(&format!("s3://images/app-{number}.tar"), "tester");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let here = if number == 1 { "0 of 4 layers were here" } else { "3 of 4 layers were here" };
        assert!(text.contains(here), "{text}");
        transferred.push(sent.load(Ordering::Relaxed));
    }
    println!("first {} bytes, bump {} bytes, its layer {last}", transferred[0], transferred[1]);
    assert!(transferred[0] > 3 * base as u64, "{transferred:?}");
    assert!(transferred[1] < last as u64 + (2 << 20), "{transferred:?}");
    // An archive that is as it was costs one short answer.
    sent.store(0, Ordering::Relaxed);
    assert!(pull("s3://images/app-2.tar", "tester").status.success());
    assert!(sent.load(Ordering::Relaxed) < 4096, "{}", sent.load(Ordering::Relaxed));
    // One that is not there, and one that nobody may have.
    for (url, key, reason) in
        [("s3://images/none.tar", "tester", "image-not-found"), ("s3://images/app-2.tar", "", "(auth)")]
    {
        let output = pull(url, key);
        assert_eq!(output.status.code(), Some(1), "{url}");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(reason), "{text}");
    }
    // What came is what the archives hold.
    let store = Store::open(&host.dir.path().join("state")).unwrap();
    let layer = format!("sha256:{}", hex(&bases[2])).parse::<Digest>().unwrap();
    let tree = host.dir.path().join("state/store/layers").join(layer.hex()).join("fs/base/2");
    assert_eq!(std::fs::read(tree).unwrap(), noise(base, 3));
    drop(store);
}
