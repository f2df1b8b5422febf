//! The webhook listener, by real requests: curl and raw sockets, signed by openssl.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what is wrong by panicking"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use gitopsd::config::agent::WebhookConfig;
use gitopsd::webhook::Webhook;

const SECRET: &str = "correct horse battery staple";
const SOON: Duration = Duration::from_secs(30);

struct Lab {
    dir: tempfile::TempDir,
    webhook: Option<Webhook>,
    woken: Receiver<()>,
    _runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new(listen: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-webhook-").tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        fs::write(dir.path().join("secret"), format!("{SECRET}\n")).unwrap();
        let config =
            WebhookConfig { listen: listen.parse().unwrap(), secret_file: dir.path().join("secret") };
        let (tell, woken) = channel();
        let webhook = Webhook::begin(&config, runtime.handle(), move || tell.send(()).unwrap_or_default());
        Self { dir, webhook: Some(webhook), woken, _runtime: runtime }
    }

    fn webhook(&self) -> &Webhook {
        self.webhook.as_ref().unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.webhook().address().unwrap()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The status that curl gets for a body with these fields.
    fn post(&self, body: &[u8], fields: &[String]) -> String {
        let mut command = Command::new("curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30", "--noproxy", "*"]);
        command.arg("--data-binary").arg(format!("@{}", self.file("body", body).display()));
        for field in fields {
            command.args(["-H", field]);
        }
        let output = command.arg(format!("http://{}/hook", self.address())).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// HMAC-SHA256 by openssl, as it is or in hexadecimal digits.
    fn mac(&self, key: &[u8], message: &[u8]) -> Vec<u8> {
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let output = Command::new("openssl")
            .args(["dgst", "-sha256", "-mac", "HMAC", "-macopt", &format!("hexkey:{key}"), "-binary"])
            .arg(self.file("message", message))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn hex(&self, key: &[u8], message: &[u8]) -> String {
        self.mac(key, message).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Waits for a wake, and until no more come.
    fn settle(&self) {
        self.woken.recv_timeout(SOON).expect("a wake");
        while self.woken.recv_timeout(Duration::from_millis(1_500)).is_ok() {}
    }

    fn good(&self, body: &[u8]) -> Vec<String> {
        vec![format!("X-Hub-Signature-256: sha256={}", self.hex(SECRET.as_bytes(), body))]
    }
}

fn fields(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn the_deliveries_of_each_forge_wake() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let lab = Lab::new("127.0.0.1:0");
    let body = br#"{"ref": "refs/heads/main", "after": "0000"}"#;
    let key = SECRET.as_bytes();
    let mac = lab.hex(key, body);
    let standard = lab.mac(key, &[b"msg_1.1770000000.".as_slice(), body].concat());
    let standard = STANDARD.encode(standard);
    let times = ["webhook-id: msg_1".to_owned(), "webhook-timestamp: 1770000000".to_owned()];
    let signed =
        |signature: &str| [times.as_slice(), &[format!("webhook-signature: v1,{signature}")]].concat();
    let good = [
        ("GitHub", vec![format!("X-Hub-Signature-256: sha256={mac}"), "X-GitHub-Event: push".to_owned()]),
        ("Gitea", vec![format!("X-Gitea-Signature: {mac}"), format!("X-Hub-Signature-256: sha256={mac}")]),
        ("Forgejo", vec![format!("X-Forgejo-Signature: {mac}"), format!("X-Gitea-Signature: {mac}")]),
        ("GitLab's token", vec![format!("X-Gitlab-Token: {SECRET}")]),
        ("GitLab's signature", signed(&standard)),
        ("a script", vec![format!("X-Signature-256: {mac}")]),
        ("that waits", vec![format!("X-Signature-256: {mac}"), "Expect: 100-continue".to_owned()]),
    ];
    for (count, (whose, fields)) in good.iter().enumerate() {
        assert_eq!(lab.post(body, fields), "202", "{whose}");
        assert_eq!(lab.webhook().deliveries(), count as u64 + 1, "{whose}");
    }
    lab.settle();
    let refused = lab.webhook().refused();
    assert_eq!(refused, 0);

    let other = lab.hex(b"another secret, as long", body);
    let wrong = [
        ("403", vec![format!("X-Hub-Signature-256: sha256={other}")]),
        ("403", vec![format!("X-Gitea-Signature: {other}")]),
        ("403", fields(&["X-Gitlab-Token: correct horse battery stapl"])),
        ("403", signed(&STANDARD.encode(&other.as_bytes()[..32]))),
        ("401", vec![]),
        ("401", fields(&["X-GitHub-Event: push"])),
        // SHA-1 is not enough.
        ("401", fields(&["X-Hub-Signature: sha1=7d38cdd689735b008b3c702edd92eea23791c5f6"])),
        ("411", vec![format!("X-Signature-256: {mac}"), "Transfer-Encoding: chunked".to_owned()]),
        ("431", vec![format!("X-Signature-256: {mac}"), format!("X-Long: {}", "x".repeat(40_000))]),
    ];
    for (count, (status, fields)) in wrong.iter().enumerate() {
        assert_eq!(lab.post(body, fields), *status, "{fields:?}");
        assert_eq!(lab.webhook().refused(), count as u64 + 1, "{fields:?}");
    }
    assert_eq!(lab.webhook().deliveries(), good.len() as u64);
    assert_eq!(lab.woken.recv_timeout(Duration::from_millis(1_500)), Err(RecvTimeoutError::Timeout));
}

#[test]
fn large_bodies_are_signed_without_being_kept() {
    let lab = Lab::new("[::1]:0");
    let large = vec![b'x'; 20 << 20];
    assert_eq!(lab.post(&large, &lab.good(&large)), "202");
    let mut other = large.clone();
    other[19 << 20] = b'y';
    assert_eq!(lab.post(&other, &lab.good(&large)), "403");
    let too_large = vec![b'x'; (25 << 20) + 1];
    assert_eq!(lab.post(&too_large, &lab.good(&large)), "413");
    assert_eq!(lab.post(b"", &lab.good(b"")), "202");
}

#[test]
fn secrets_are_read_anew() {
    let lab = Lab::new("127.0.0.1:0");
    let body = b"{}";
    let next = "the next one is as long as that";
    let good = lab.good(body);
    let new = vec![format!("X-Signature-256: {}", lab.hex(next.as_bytes(), body))];
    assert_eq!((lab.post(body, &good).as_str(), lab.post(body, &new).as_str()), ("202", "403"));
    lab.file("secret", format!("{SECRET}\n{next}\n").as_bytes());
    assert_eq!((lab.post(body, &good).as_str(), lab.post(body, &new).as_str()), ("202", "202"));
    lab.file("secret", next.as_bytes());
    assert_eq!((lab.post(body, &good).as_str(), lab.post(body, &new).as_str()), ("403", "202"));
    for bad in ["", "\n\n", "short"] {
        lab.file("secret", bad.as_bytes());
        assert_eq!(lab.post(body, &new), "503", "{bad:?}");
        // Least of all does an empty key open the door: `openssl dgst -sha256 -hmac ''` of the body, and an empty token.
        let empty =
            "X-Signature-256: 22f8eea909400af98adf3681a9f31923ef6b7fcba4abb553d92823a3e9d5c25e".to_owned();
        assert_eq!(lab.post(body, &[empty]), "503", "{bad:?}");
        assert_ne!(lab.post(body, &fields(&["X-Gitlab-Token;"])), "202", "{bad:?}");
    }
    fs::remove_file(lab.dir.path().join("secret")).unwrap();
    assert_eq!(lab.post(body, &new), "503");
}

/// The whole of a raw request's answer.
fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn what_is_no_request_is_told_so() {
    let lab = Lab::new("127.0.0.1:0");
    let token = format!("Host: x\r\nX-Gitlab-Token: {SECRET}\r\n");
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\n{token}\r\n"), "405"),
        (format!("PUT / HTTP/1.1\r\n{token}Content-Length: 0\r\n\r\n"), "405"),
        (format!("POST / HTTP/1.1\r\n{token}Content-Length: 0\r\nContent-Length: 0\r\n\r\n"), "400"),
        (format!("POST / HTTP/1.1\r\n{token}Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"), "411"),
        (format!("POST / HTTP/1.1\r\n{token}Content-Length: -1\r\n\r\n"), "400"),
        (format!("POST / HTTP/1.1\r\n{token}{token}Content-Length: 0\r\n\r\n"), "401"),
        ("\r\n\r\n\0\0\0".to_owned(), "400"),
        ("\x16\x03\x01\x02\0\x01\0\r\n\r\n".to_owned(), "400"),
        (format!("POST / HTTP/1.1\r\n{token}Content-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n"), "202"),
    ] {
        let answer = raw(lab.address(), request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer:?}");
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            if status == "400" && answer.contains("no request of") { 2 } else { 1 },
            "{answer}"
        );
    }
}

#[test]
fn who_drips_holds_nobody_up() {
    let lab = Lab::new("127.0.0.1:0");
    let mut slow: Vec<TcpStream> = Vec::new();
    for _ in 0..150 {
        let mut stream = TcpStream::connect(lab.address()).unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nX-").unwrap();
        slow.push(stream);
        let _ = slow.iter_mut().map(|stream| stream.write_all(b"a")).count();
    }
    let since = Instant::now();
    assert_eq!(lab.post(b"{}", &lab.good(b"{}")), "202");
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    lab.woken.recv_timeout(SOON).expect("a wake");
    // The first ones were ended for the later ones; in the end, time ends all.
    let mut first = slow.remove(0);
    first.set_read_timeout(Some(SOON)).unwrap();
    assert!(matches!(first.read(&mut [0; 16]), Ok(0) | Err(_)));
    let mut last = slow.pop().unwrap();
    last.set_read_timeout(Some(SOON)).unwrap();
    let since = Instant::now();
    assert!(matches!(last.read(&mut [0; 16]), Ok(0)), "ended by the deadline");
    assert!(since.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_flood_is_counted_and_real_ones_come_through() {
    let lab = Lab::new("127.0.0.1:0");
    let address = lab.address();
    let bad = b"POST / HTTP/1.1\r\nHost: x\r\nX-Gitlab-Token: wrong wrong wrong wrong\r\nContent-Length: 2\r\n\r\n{}";
    let body = b"{}";
    let good = lab.good(body);
    let since = Instant::now();
    std::thread::scope(|scope| {
        let floods: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    (0..250).filter(|_| raw(address, bad).starts_with("HTTP/1.1 403 ")).count()
                })
            })
            .collect();
        for _ in 0..20 {
            assert_eq!(lab.post(body, &good), "202");
        }
        // More connections than there is room for may end one of them early.
        let told: usize = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
        assert_eq!(told, 1_000);
    });
    assert_eq!((lab.webhook().deliveries(), lab.webhook().refused()), (20, 1_000));
    let took = since.elapsed();
    let mut wakes = 0;
    while lab.woken.recv_timeout(Duration::from_millis(1_500)).is_ok() {
        wakes += 1;
    }
    println!("20 deliveries within 1,000 others: {took:?}, {wakes} wakes");
    assert!(wakes >= 1 && wakes <= took.as_secs() + 2, "{wakes} wakes in {took:?}");
}

#[test]
fn a_delivery_during_the_pause_is_told_of_after_it() {
    let lab = Lab::new("127.0.0.1:0");
    let good = lab.good(b"{}");
    assert_eq!(lab.post(b"{}", &good), "202");
    lab.woken.recv_timeout(SOON).expect("the first wake");
    for _ in 0..3 {
        assert_eq!(lab.post(b"{}", &good), "202");
    }
    lab.woken.recv_timeout(SOON).expect("one for those that came meanwhile");
}

#[test]
fn an_address_that_is_taken_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let lab = Lab::new(&taken.local_addr().unwrap().to_string());
    assert_eq!(lab.webhook().address(), None);
    let address = taken.local_addr().unwrap();
    drop(taken);
    let until = Instant::now() + SOON;
    while lab.webhook().address() != Some(address) {
        assert!(Instant::now() < until, "it does not listen");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(lab.post(b"{}", &lab.good(b"{}")), "202");
}

#[test]
fn it_ends_with_its_value() {
    let mut lab = Lab::new("127.0.0.1:0");
    let address = lab.address();
    drop(lab.webhook.take());
    let until = Instant::now() + SOON;
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < until, "it still listens");
        std::thread::sleep(Duration::from_millis(20));
    }
}
