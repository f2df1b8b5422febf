//! Who may have an image: passwords, tokens, certificates; and who never gets to see a password.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use gitopsd::config::agent::RegistryConfig;
use gitopsd::registry::{PullError, Registry, Store};
use gitopsd::types::Reason;

use super::support::certificates::Certificates;
use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Face, Server};
use super::support::{Host, plain};

/// `htpasswd -nbB ada secret`
const HTPASSWD: &str = "ada:$2y$05$byOg03/riZXHRM.PiACP9.L3YKNy0qr3XiiuKOmZn0Sg8MaACHLTq";

const BASIC: &str = "Basic YWRhOnNlY3JldA==";

fn layer() -> Blob {
    Layer::default().file("file", &noise(1, 10_000)).gzip()
}

/// The configuration of a registry whose user is ada.
fn ada(dir: &Path, password: &str) -> RegistryConfig {
    let file = dir.join(format!("password-{password}"));
    std::fs::write(&file, format!("{password}\n")).unwrap();
    RegistryConfig { username: Some("ada".to_owned()), password_file: Some(file), ..plain() }
}

fn host(address: &str, config: RegistryConfig) -> Host {
    Host::with(BTreeMap::from([(address.to_owned(), config)]))
}

#[track_caller]
fn assert_secret(error: &PullError) {
    let text = format!("{error} {error:?}");
    assert!(!text.contains("secret") && !text.contains("YWRh"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_given() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let closed = server.face(&Face { htpasswd: Some(HTPASSWD), ..Face::default() });
    let dir = tempfile::tempdir().unwrap();
    let reference = format!("{}/app:1", closed.address());
    host(&closed.address(), ada(dir.path(), "secret")).pull(&reference).await.unwrap();
    for (config, told) in [(ada(dir.path(), "wrong"), "does not let"), (plain(), "asks for a password")] {
        let error = host(&closed.address(), config).pull(&reference).await.unwrap_err();
        assert_eq!(error.reason, Reason::Auth, "{error}");
        assert!(error.to_string().contains(told), "{error}");
        assert!(error.may_pass(), "somebody may correct it");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let missing = RegistryConfig {
        username: Some("ada".to_owned()),
        password_file: Some(dir.path().join("missing")),
        ..plain()
    };
    let error = host(&closed.address(), missing).pull(&reference).await.unwrap_err();
    assert_eq!(error.reason, Reason::Auth);
    assert!(error.to_string().contains("missing"), "{error}");
}

/// A registry that wants tokens: `realm` as it names it, with `{}` for its own address. Each token is good for
/// `uses` requests.
fn token_registry(server: &Server, realm: &'static str, uses: usize) -> Proxy {
    let (given, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Proxy::new(server, move |request, upstream| {
        let own = request.header("host").unwrap().to_owned();
        if request.path.starts_with("/token?") {
            if request.header("authorization") != Some(BASIC) {
                return Answer::new(401, b"{}");
            }
            assert!(request.path.contains("scope=repository%3Aapp%3Apull"), "{}", request.path);
            assert!(request.path.contains("service=lab"), "{}", request.path);
            used.store(0, Ordering::Relaxed);
            let number = given.fetch_add(1, Ordering::Relaxed) + 1;
            return Answer::new(200, format!(r#"{{"token":"t{number}","expires_in":60}}"#).as_bytes());
        }
        let expected = format!("Bearer t{}", given.load(Ordering::Relaxed));
        let fresh = used.fetch_add(1, Ordering::Relaxed) < uses;
        if request.header("authorization") == Some(&expected) && fresh {
            return upstream.get(&request.clone().without("authorization"));
        }
        let realm = realm.replace("{}", &own);
        let challenge = format!(r#"Bearer realm="{realm}",service="lab",scope="repository:app:pull""#);
        Answer::new(401, b"{}").header("WWW-Authenticate", "Negotiate").header("WWW-Authenticate", &challenge)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_kept_and_renewed() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let dir = tempfile::tempdir().unwrap();
    // Enough for all: one token. For one request: a token for each of manifest, configuration and layer.
    for (uses, tokens) in [(100, 1), (1, 3)] {
        let proxy = token_registry(&server, "http://{}/token", uses);
        let reference = format!("{}/app:1", proxy.address());
        host(&proxy.address(), ada(dir.path(), "secret")).pull(&reference).await.unwrap();
        let asked = proxy.requests().iter().filter(|request| request.path.starts_with("/token")).count();
        assert_eq!(asked, tokens);
        for request in proxy.requests().iter().filter(|request| request.path.starts_with("/v2/")) {
            assert_ne!(
                request.header("authorization"),
                Some(BASIC),
                "the password is for the token service alone"
            );
        }
    }
    let proxy = token_registry(&server, "http://{}/token", 100);
    let reference = format!("{}/app:1", proxy.address());
    let error = host(&proxy.address(), ada(dir.path(), "wrong")).pull(&reference).await.unwrap_err();
    assert_eq!(error.reason, Reason::Auth, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_elsewhere_is_not_asked() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let dir = tempfile::tempdir().unwrap();
    // Another loopback address stands for another host.
    for realm in
        ["http://127.0.0.2:9/token", "http://169.254.169.254/token", "https://evil.example/token", "no url"]
    {
        let proxy = token_registry(&server, realm, 100);
        let reference = format!("{}/app:1", proxy.address());
        let error = host(&proxy.address(), ada(dir.path(), "secret")).pull(&reference).await.unwrap_err();
        assert_eq!(error.reason, Reason::Auth, "{realm}: {error}");
        assert!(error.to_string().contains("token"), "{realm}: {error}");
        assert_secret(&error);
        assert!(proxy.requests().iter().all(|request| request.header("authorization").is_none()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_does_not_follow_a_redirect() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let storage =
        Proxy::new(&server, |request, upstream| upstream.get(&request.clone().without("authorization")));
    let elsewhere = storage.address();
    let proxy = Proxy::new(&server, move |request, upstream| {
        if request.header("authorization") != Some(BASIC) {
            return Answer::new(401, b"{}").header("WWW-Authenticate", "Basic realm=\"lab\"");
        }
        if request.is_blob() {
            let place = format!("http://{elsewhere}{}", request.path);
            return Answer::new(307, b"").header("Location", &place);
        }
        upstream.get(&request.clone().without("authorization"))
    });
    let dir = tempfile::tempdir().unwrap();
    let reference = format!("{}/app:1", proxy.address());
    host(&proxy.address(), ada(dir.path(), "secret")).pull(&reference).await.unwrap();
    assert_eq!(storage.requests().len(), 2, "configuration and layer came from there");
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_does_not_get_the_registrys_password() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let closed = server.face(&Face { htpasswd: Some(HTPASSWD), ..Face::default() });
    let greedy =
        Proxy::new(&server, |_, _| Answer::new(401, b"{}").header("WWW-Authenticate", "Basic realm=\"lab\""));
    let dir = tempfile::tempdir().unwrap();
    let mut config = ada(dir.path(), "secret");
    config.mirrors = vec![format!("http://{}", greedy.address()).parse().unwrap()];
    let reference = format!("{}/app:1", closed.address());
    host(&closed.address(), config.clone()).pull(&reference).await.unwrap();
    assert!(!greedy.requests().is_empty());
    assert!(greedy.requests().iter().all(|request| request.header("authorization").is_none()));
    // One with a section of its own gets what is written there.
    let both = BTreeMap::from([(closed.address(), config), (greedy.address(), ada(dir.path(), "other"))]);
    Host::with(both).pull(&reference).await.unwrap();
    let given: Vec<_> =
        greedy.requests().iter().filter_map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert!(given.iter().all(|value| value == "Basic YWRhOm90aGVy") && !given.is_empty(), "{given:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn https_by_an_authority_of_ones_own() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let dir = tempfile::tempdir().unwrap();
    let good = Certificates::new(dir.path(), "good", "IP:127.0.0.1", "2");
    let other = Certificates::new(dir.path(), "other", "IP:127.0.0.2", "2");
    let expired = Certificates::new(dir.path(), "expired", "IP:127.0.0.1", "-1");
    let by = |ca: &Path| RegistryConfig { ca_file: Some(ca.to_owned()), ..RegistryConfig::default() };
    let face =
        |of: &Certificates| server.face(&Face { tls: Some((&of.certificate, &of.key)), ..Face::default() });
    let secure = face(&good);
    let reference = format!("{}/app:1", secure.address());
    host(&secure.address(), by(&good.ca)).pull(&reference).await.unwrap();
    let rows = [
        ("no authority", &secure, RegistryConfig::default()),
        ("another authority", &secure, by(&other.ca)),
        ("another host's certificate", &face(&other), by(&other.ca)),
        ("an old certificate", &face(&expired), by(&expired.ca)),
    ];
    for (what, server, config) in rows {
        let reference = format!("{}/app:1", server.address());
        let error = host(&server.address(), config).pull(&reference).await.unwrap_err();
        assert_eq!(error.reason, Reason::Tls, "{what}: {error}");
        assert!(error.may_pass(), "{what}: somebody may correct it");
    }
    // A file that is none is told at once.
    let state = tempfile::tempdir().unwrap();
    for (name, text) in [("gone.pem", None), ("none.pem", Some("no certificate"))] {
        let file = dir.path().join(name);
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let store = std::sync::Arc::new(Store::open(state.path()).unwrap());
        let error = Registry::new(store, [("r.io".to_owned(), by(&file))].into()).err().unwrap();
        assert_eq!(error.reason, Reason::Tls, "{error}");
        assert!(error.to_string().contains("r.io"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_not_given_up_by_a_redirect() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let dir = tempfile::tempdir().unwrap();
    let good = Certificates::new(dir.path(), "good", "IP:127.0.0.1", "2");
    // openssl's own server answers with a file that holds a whole answer.
    let answer = format!(
        "HTTP/1.0 307 x\r\nLocation: http://{}/v2/app/manifests/1\r\nContent-Length: 0\r\n\r\n",
        server.address()
    );
    std::fs::create_dir_all(dir.path().join("v2/app/manifests")).unwrap();
    std::fs::write(dir.path().join("v2/app/manifests/1"), answer).unwrap();
    let port = super::support::server::free_port();
    let mut tls = Command::new("openssl")
        .current_dir(dir.path())
        .args(["s_server", "-quiet", "-HTTP", "-accept", &format!("127.0.0.1:{port}")])
        .arg("-cert")
        .arg(&good.certificate)
        .arg("-key")
        .arg(&good.key)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    super::support::wait_for("openssl", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let address = format!("127.0.0.1:{port}");
    let config = RegistryConfig { ca_file: Some(good.ca), ..RegistryConfig::default() };
    let result = host(&address, config).resolve(&format!("{address}/app:1")).await;
    tls.kill().unwrap();
    tls.wait().unwrap();
    let error = result.unwrap_err();
    assert!(error.to_string().contains("from https to http"), "{error}");
}

/// All that is logged, by anybody.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let dir = tempfile::tempdir().unwrap();
    // Right and wrong, as a password and for a token.
    for password in ["secret", "wrong-secret"] {
        let closed = server.face(&Face { htpasswd: Some(HTPASSWD), ..Face::default() });
        let tokens = token_registry(&server, "http://{}/token", 100);
        for address in [closed.address(), tokens.address()] {
            let result = host(&address, ada(dir.path(), password)).pull(&format!("{address}/app:1")).await;
            assert_eq!(result.is_ok(), password == "secret");
            if let Err(error) = result {
                tracing::warn!("{} {error:?}", error.to_refusal());
                assert_secret(&error);
            }
        }
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("does not let this host"), "it was listened to: {text}");
    // The path of its file is no secret.
    let text = text.replace("password-wrong-secret", "").replace("password-secret", "");
    for secret in ["secret", "YWRh", "Bearer t"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}
