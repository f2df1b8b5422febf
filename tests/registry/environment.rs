//! Proxies of the environment: by the program itself, in a network of its own, where not everything is loopback.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::support::certificates::Certificates;
use super::support::command::Machine;
use super::support::image::{Layer, noise};
use super::support::proxy::head;
use super::support::server::{Face, Server, free_port};

/// An address of the documentation's (RFC 5737), and names for it.
const ADDRESS: &str = "192.0.2.10";
const NAME: &str = "registry.lab.test";

/// Runs in a network of its own: loopback, and one more address.
fn apart(run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("tests need root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{ADDRESS} {NAME}\n")).unwrap();
        mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
        for line in ["link set lo up", &format!("addr add {ADDRESS}/32 dev lo")] {
            assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
        }
        run();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A proxy as companies have one: CONNECT for https, absolute URLs for http. It writes down whom it led where.
struct Forward {
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

impl Forward {
    /// `user` is what it takes, as it is written in a header.
    fn new(user: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let its_log = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let log = its_log.clone();
                std::thread::spawn(move || lead(stream.unwrap(), user, &log));
            }
        });
        Self { port, log }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What was asked since the last time.
    fn led(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

fn lead(stream: TcpStream, user: Option<&str>, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (first, headers) = head(&mut reader)?;
    let mut stream = stream;
    let given =
        headers.iter().find(|(name, _)| name == "proxy-authorization").map(|(_, value)| value.as_str());
    if user.is_some_and(|user| given != Some(user)) {
        let answer = "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=\"lab\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        log.lock().unwrap().push("407".to_owned());
        return stream.write_all(answer.as_bytes()).ok();
    }
    log.lock().unwrap().push(first.trim_end().to_owned());
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    // Names are the proxy's to find, and all of them are here.
    let port = |authority: &str| authority.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    if method == "CONNECT" {
        let there = TcpStream::connect(("127.0.0.1", port(target)?)).ok()?;
        stream.write_all(b"HTTP/1.1 200 x\r\n\r\n").ok()?;
        let (mut from, mut to) = (there.try_clone().ok()?, stream.try_clone().ok()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            to.shutdown(Shutdown::Both).ok()
        });
        let mut there = there;
        let _ = std::io::copy(&mut reader, &mut there);
        return there.shutdown(Shutdown::Both).ok();
    }
    let (authority, path) = target.strip_prefix("http://")?.split_once('/')?;
    let mut there = TcpStream::connect(("127.0.0.1", port(authority)?)).ok()?;
    let mut text = format!("{method} /{path} HTTP/1.0\r\n");
    for (name, value) in
        headers.iter().filter(|(name, _)| !name.starts_with("proxy-") && name != "connection")
    {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    there.write_all(format!("{text}\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    there.read_to_end(&mut answer).ok()?;
    stream.write_all(&answer).ok()
}

/// A registry by http and by https, on all addresses, and a machine that knows both.
struct Lab {
    _server: Server,
    _secure: Server,
    machine: Machine,
    http: u16,
    https: u16,
}

impl Lab {
    fn new() -> Self {
        let server = Server::everywhere(&Face::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.push("1", &[Layer::default().file("file", &noise(1, 10_000)).gzip()]));
        let machine = Machine::new("");
        let lab = Certificates::new(machine.dir.path(), "lab", &format!("DNS:{NAME},IP:{ADDRESS}"), "2");
        let secure = server.face(&Face {
            tls: Some((&lab.certificate, &lab.key)),
            everywhere: true,
            ..Face::default()
        });
        let (http, https) = (server.port, secure.port);
        let mut sections = format!("[registry.\"127.0.0.1:{http}\"]\nplain_http = true\n");
        for host in [NAME, ADDRESS] {
            sections.push_str(&format!(
                "[registry.\"{host}:{http}\"]\nplain_http = true\n[registry.\"{host}:{https}\"]\nca_file = \"{}\"\n",
                lab.ca.display()
            ));
        }
        machine.configure(&sections);
        Self { _server: server, _secure: secure, machine, http, https }
    }

    fn pull(&self, host: &str, port: u16, environment: &[(&str, &str)]) -> (bool, String) {
        self.machine.forget();
        self.machine.pull(&format!("{host}:{port}/app:1"), environment)
    }
}

/// The environment, whom to ask at which port, and whether the proxy leads there.
type Row<'a> = (Vec<(&'a str, &'a str)>, &'a str, u16, bool);

#[test]
fn each_way_is_the_right_one() {
    apart(|| {
        let (lab, proxy) = (Lab::new(), Forward::new(None));
        let url = proxy.url();
        let (name, address) = (format!("{NAME}:{}", lab.http), format!("{ADDRESS}:{}", lab.http));
        let connect = format!("CONNECT {NAME}:{} HTTP/1.1", lab.https);
        let get = format!("GET http://{name}/v2/app/manifests/1 HTTP/1.1");
        let (http, https) = (lab.http, lab.https);
        let with_port = format!("{NAME}:{http}");
        let other_port = format!("{NAME}:{https}");
        let rows: Vec<Row<'_>> = vec![
            (vec![], NAME, http, false),
            (vec![], NAME, https, false),
            (vec![("HTTP_PROXY", &url)], NAME, http, true),
            (vec![("http_proxy", &url)], NAME, http, true),
            (vec![("HTTP_PROXY", &url)], NAME, https, false),
            (vec![("HTTPS_PROXY", &url)], NAME, https, true),
            (vec![("https_proxy", &url)], NAME, https, true),
            (vec![("HTTPS_PROXY", &url)], NAME, http, false),
            (vec![("ALL_PROXY", &url)], NAME, http, true),
            (vec![("ALL_PROXY", &url)], NAME, https, true),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "example.org, lab.test")], NAME, http, false),
            (vec![("ALL_PROXY", &url), ("no_proxy", ".lab.test")], NAME, https, false),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "*.lab.test")], NAME, https, false),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "*.registry.lab.test")], NAME, https, true),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "ab.test")], NAME, http, true),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "*")], NAME, http, false),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", &with_port)], NAME, http, false),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", &other_port)], NAME, http, true),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "192.0.2.0/24")], ADDRESS, http, false),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "192.0.3.0/24")], ADDRESS, http, true),
            (vec![("ALL_PROXY", &url), ("NO_PROXY", ADDRESS)], ADDRESS, https, false),
            // A name is not looked up for that.
            (vec![("ALL_PROXY", &url), ("NO_PROXY", "192.0.2.0/24")], NAME, http, true),
            // This host itself.
            (vec![("ALL_PROXY", &url)], "127.0.0.1", http, false),
            (vec![("ALL_PROXY", "http://127.0.0.1:1")], "127.0.0.1", http, false),
        ];
        for (environment, host, port, by) in rows {
            let (came, said) = lab.pull(host, port, &environment);
            assert!(came, "{environment:?} to {host}:{port}: {said}");
            let led = proxy.led();
            assert_eq!(!led.is_empty(), by, "{environment:?} to {host}:{port}: {led:?}");
            if by && host == NAME {
                let expected = if port == http { &get } else { &connect };
                assert!(led.contains(expected), "{led:?}");
            }
            if by && host == ADDRESS {
                assert!(led.iter().all(|line| line.contains(&address)), "{led:?}");
            }
        }
    });
}

/// A host without ca-certificates: what needs none comes, and what needs them says so.
#[test]
fn authorities_are_read_only_where_they_are_needed() {
    apart(|| {
        let lab = Lab::new();
        let none = [("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
        let (came, said) = lab.pull("127.0.0.1", lab.http, &none);
        assert!(came, "{said}");
        let (came, said) = lab.pull(NAME, lab.https, &none);
        assert!(came, "its own ca_file is enough: {said}");
        let (came, said) = lab.pull("127.0.0.1", lab.https, &none);
        assert!(!came, "{said}");
        assert!(said.contains("is ca-certificates installed?") && said.contains("(tls)"), "{said}");
    });
}

#[test]
fn a_proxy_may_want_a_password() {
    apart(|| {
        // `ada:se cret`
        let (lab, proxy) = (Lab::new(), Forward::new(Some("Basic YWRhOnNlIGNyZXQ=")));
        let with = |user: &str| format!("http://{user}127.0.0.1:{}", proxy.port);
        for port in [lab.http, lab.https] {
            let (came, said) = lab.pull(NAME, port, &[("ALL_PROXY", &with("ada:se%20cret@"))]);
            assert!(came && !said.contains("cret"), "{said}");
            assert!(!proxy.led().is_empty());
            for user in ["", "ada:wrong@"] {
                let (came, said) = lab.pull(NAME, port, &[("ALL_PROXY", &with(user))]);
                assert!(!came && !said.contains("wrong"), "{said}");
                let shown = format!("127.0.0.1:{} of ALL_PROXY", proxy.port);
                assert!(said.contains("407") || said.contains(&shown), "{said}");
                assert!(said.contains("proxy") && said.contains("user"), "what to do: {said}");
            }
        }
    });
}

#[test]
fn a_proxy_that_is_none_is_named() {
    apart(|| {
        let lab = Lab::new();
        let down = format!("http://ada:secret@127.0.0.1:{}", free_port());
        for port in [lab.http, lab.https] {
            let (came, said) = lab.pull(NAME, port, &[("ALL_PROXY", &down)]);
            assert!(!came && !said.contains("secret"), "{said}");
            assert!(said.contains("of ALL_PROXY") && said.contains("registry-unreachable"), "{said}");
        }
        for (value, word) in [("socks5://ada:secret@127.0.0.1:1", "not supported"), ("http://", "no address")]
        {
            let (came, said) = lab.pull(NAME, lab.http, &[("HTTPS_PROXY", value)]);
            assert!(!came && !said.contains("secret"), "{said}");
            assert!(said.contains("HTTPS_PROXY") && said.contains(word), "{said}");
        }
    });
}
