//! Archives in S3: a real server of its API, and what it sends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::make::{docker_save, hex, image, noise, stream, tar};

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
    let file = dir.join("upload");
    std::fs::write(&file, bytes).unwrap();
    upload(moto, &file, path);
    std::fs::remove_file(file).unwrap();
}

fn upload(moto: &Moto, file: &Path, path: &str) {
    let url = format!("http://127.0.0.1:{}/{path}", moto.port);
    let status =
        Command::new("curl").args(["-fsS", "-o", "/dev/null", "-T"]).arg(file).arg(&url).status().unwrap();
    assert!(status.success(), "PUT {path}");
}

/// A host with a bucket, and a count of what the server sends.
struct World {
    moto: Moto,
    sent: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let moto = moto();
        let (port, sent) = counting_relay(moto.port);
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "state_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n[repo]\nurl = \"{0}/none\"\n[s3]\nendpoint = \"http://127.0.0.1:{port}\"\npath_style = true\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("gitopsd.toml"), config).unwrap();
        put(&moto, dir.path(), "images", b"");
        Self { moto, sent, dir }
    }

    /// Pulls; what was said, and how many bytes came.
    fn pull(&self, url: &str, key: &str) -> (Output, u64) {
        self.sent.store(0, Ordering::Relaxed);
        let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .arg("--config")
            .arg(self.dir.path().join("gitopsd.toml"))
            .args(["pull", url])
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", "no-secret")
            .output()
            .unwrap();
        (output, self.sent.load(Ordering::Relaxed))
    }

    #[track_caller]
    fn pulled(&self, url: &str, here: &str) -> u64 {
        let (output, sent) = self.pull(url, "tester");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains(here), "{text}");
        sent
    }

    fn layer(&self, content: &[u8]) -> PathBuf {
        self.dir.path().join("state/store/layers").join(hex(content)).join("fs")
    }
}

#[test]
fn of_an_archive_in_s3_only_the_missing_layers_are_read() {
    let (base, last) = (20 << 20, 2 << 20);
    let world = World::new();
    let bases: Vec<Vec<u8>> =
        (0..3).map(|number| tar(&[(&*format!("base/{number}"), &noise(base, number + 1))])).collect();
    let version = |number: u64| {
        let mut layers = bases.clone();
        layers.push(tar(&[("app", &noise(last, 100 + number)), ("version", number.to_string().as_bytes())]));
        docker_save(&image(layers))
    };
    let mut transferred = Vec::new();
    for (number, here) in [(1, "0 of 4 layers were here"), (2, "3 of 4 layers were here")] {
        put(&world.moto, world.dir.path(), &format!("images/app-{number}.tar"), &version(number));
        transferred.push(world.pulled(&format!("s3://images/app-{number}.tar"), here));
    }
    println!("first {} bytes, bump {} bytes, its layer {last}", transferred[0], transferred[1]);
    assert!(transferred[0] > 3 * base as u64, "{transferred:?}");
    assert!(transferred[1] < last as u64 + (1 << 20), "{transferred:?}");
    // An archive that is as it was costs one short answer.
    let again = world.pulled("s3://images/app-2.tar", "4 of 4 layers were here");
    assert!(again < 4096, "{again}");
    // One that is not there, and one that nobody may have.
    for (url, key, reason) in
        [("s3://images/none.tar", "tester", "image-not-found"), ("s3://images/app-2.tar", "", "(auth)")]
    {
        let (output, _) = world.pull(url, key);
        assert_eq!(output.status.code(), Some(1), "{url}");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(reason), "{text}");
    }
    // What came is what the archives hold.
    assert_eq!(std::fs::read(world.layer(&bases[2]).join("base/2")).unwrap(), noise(base, 3));
}

/// The promise in full size. The first version comes from the disk, which is quicker than this server, and its layers
/// are the same ones wherever they came from.
#[test]
fn a_bump_of_450_megabytes() {
    let (base, last) = (150usize << 20, 8 << 20);
    let world = World::new();
    let begun = std::time::Instant::now();
    // Of bytes that repeat: nothing is packed here, and they are quick to make.
    let bases: Vec<(Vec<u8>, String)> = (0..3)
        .map(|number| {
            let layer = tar(&[(&*format!("base/{number}"), &noise(1 << 20, number + 1).repeat(base >> 20))]);
            let digest = hex(&layer);
            (layer, digest)
        })
        .collect();
    let path = world.dir.path().join("app.tar");
    let write = |number: u64| {
        let layer = tar(&[("app", &noise(last, 100 + number)), ("version", number.to_string().as_bytes())]);
        let digest = hex(&layer);
        let layers =
            bases.iter().map(|(layer, digest)| (&layer[..], &**digest)).chain([(&layer[..], &*digest)]);
        stream(std::fs::File::create(&path).unwrap(), &layers.collect::<Vec<_>>());
    };
    write(1);
    let (output, _) = world.pull(&format!("file://{}", path.display()), "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    write(2);
    upload(&world.moto, &path, "images/app.tar");
    println!("prepared after {:.1?}", begun.elapsed());
    let bump = world.pulled("s3://images/app.tar", "3 of 4 layers were here");
    println!(
        "a bump of {last} bytes in {}: {bump} bytes, after {:.1?}",
        path.metadata().unwrap().len(),
        begun.elapsed()
    );
    assert!(bump < last as u64 + (2 << 20), "{bump}");
}
