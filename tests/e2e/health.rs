//! Health checks of every kind, asked of real programs in real containers, and what is seen after the switch.
//!
//! The programs are the host's Python, seen in the containers by way of its /usr.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for};
use super::load::get;

/// Serves HTTP, or HTTPS, gRPC, or nothing but a word that it is ready; `BAD` has it work no more.
const PROGRAM: &str = r#"
import http.server, os, socket, ssl, sys, threading, time
kind, bad = os.environ["KIND"], os.environ.get("BAD")
print("this is", kind, "and it is", "bad" if bad else "good", flush=True)

class Page(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self): self.answer()
    def do_GET(self): self.answer()
    def answer(self):
        asked = self.headers["Host"] == "shop.example" and self.headers["X-Key"] == "k"
        # As 201, so that the usual statuses would do and the one that is asked for has to be looked at.
        self.send_response(201 if asked else 403)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"x" * 20000 + (b"everything is broken" if bad else b"everything is well"))
    def log_message(self, *args): pass

def serve(port):
    return http.server.ThreadingHTTPServer(("", port), Page)

if kind == "http":
    serve(8080).serve_forever()
elif kind in ("https", "skip"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/other.pem" if bad and kind == "https" else "/server.pem")
    server = serve(8443)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
elif kind in ("grpc", "grpctls"):
    import grpc
    from concurrent import futures
    def check(request, context):
        if request != b"\x0a\x04shop":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return b"\x08\x02" if bad else b"\x08\x01"
    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)})
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    if kind == "grpc":
        server.add_insecure_port("0.0.0.0:50051")
    else:
        pem = open("/server.pem", "rb").read()
        server.add_secure_port("0.0.0.0:50051", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    server.wait_for_termination()
elif kind == "notify":
    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    def say(text): own.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
    say("STATUS=reading its files")
    time.sleep(float(os.environ.get("DELAY", "0")))
    say("STATUS=it gives up\nSTOPPING=1" if bad else "READY=1")
    time.sleep(1000)
elif kind == "deserter":
    # Its health page stays, and its clients find nobody.
    threading.Thread(target=serve(9000).serve_forever, daemon=True).start()
    main = serve(8080)
    threading.Thread(target=main.serve_forever, daemon=True).start()
    if bad:
        time.sleep(2)
        print("the listener is closed", flush=True)
        main.shutdown()
        main.server_close()
    time.sleep(1000)
"#;

/// A lab whose containers may see the host's /usr.
fn lab() -> Lab {
    let lab = Lab::new();
    let text = std::fs::read_to_string(lab.config()).unwrap();
    let text = text.replace("host_mounts = [", "host_mounts = [\"/usr\", \"/usr/**\", ");
    let text = text.replace("[engine]\n", "[engine]\nsubuids = \"1000000:655360\"\n");
    std::fs::write(lab.config(), text).unwrap();
    lab.write("services/program.py", PROGRAM);
    lab
}

/// A service that runs the program.
fn program(image: &str, kind: &str, more: &str, check: &str) -> String {
    format!(
        r#"image = "{image}"
command = ["/usr/bin/python3", "/program.py"]
volumes = ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"]
stop_grace_period = "100ms"
{more}
[environment]
KIND = "{kind}"
#BAD
[healthcheck]
{check}
interval = "200ms"
timeout = "5s"
start_period = "30s"
start_interval = "200ms"
retries = 3
[deploy]
strategy = "blue-green"
drain = "0s"
bake = "500ms"
timeout = "55s"
"#
    )
    .replace(
        "\nvolumes",
        "\nconfigs = [{ file = \"program.py\", target = \"/program.py\" }#CONFIGS]\nvolumes",
    )
}

fn openssl(lab: &Lab, args: &str) {
    let output =
        Command::new("openssl").args(args.split(' ')).current_dir(lab.path("work/services")).output();
    let output = output.unwrap();
    assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate, with its key, of an authority of its own: `NAME.pem` for the server, `NAME.crt` for those who trust it.
fn certificate(lab: &Lab, name: &str, of: &str) {
    openssl(
        lab,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={of} \
             -addext subjectAltName=DNS:{of} -addext basicConstraints=critical,CA:FALSE -keyout {name}.key -out {name}.crt"
        ),
    );
    let part = |kind: &str| std::fs::read(lab.path(&format!("work/services/{name}.{kind}"))).unwrap();
    std::fs::write(lab.path(&format!("work/services/{name}.pem")), [part("key"), part("crt")].concat())
        .unwrap();
}

#[test]
fn every_kind_of_check_lets_the_good_one_in_and_keeps_the_bad_one_out() {
    let mut lab = lab();
    let image = lab.image("1", Kind::Good);
    certificate(&lab, "server", "shop.example");
    certificate(&lab, "other", "shop.example");
    let asks = "headers = { Host = \"shop.example\", X-Key = \"k\" }\nstatus = [\"201\", 204]";
    let pem = ", { file = \"server.pem\", target = \"/server.pem\" }, { file = \"other.pem\", target = \"/other.pem\" }";
    // Service, what it is given beside its program, its check, and how the bad one fails it.
    let tls = "ca_file = \"server.crt\"\ntls_server_name = \"shop.example\"";
    let services = [
        (
            "http",
            "",
            format!("http = \"/\"\nport = 8080\ncontains = \"everything is well\"\n{asks}"),
            "does not contain",
        ),
        (
            "https",
            pem,
            format!("https = \"/\"\nport = 8443\nmethod = \"HEAD\"\n{asks}\n{tls}"),
            "certificate",
        ),
        (
            "skip",
            pem,
            format!("https = \"/\"\nport = 8443\ntls_skip_verify = true\ncontains = \"well\"\n{asks}"),
            "does not contain",
        ),
        (
            "grpc",
            "",
            "grpc = 50051\ngrpc_service = \"shop\"".to_owned(),
            "gRPC health of shop on port 50051: NOT_SERVING",
        ),
        ("grpctls", pem, format!("grpc = 50051\ngrpc_service = \"shop\"\n{tls}"), "NOT_SERVING"),
        ("notify", "", "notify = true".to_owned(), "it says that it stops: it gives up"),
    ];
    let write = |lab: &Lab, bad: &str| {
        for (kind, configs, check, _) in &services {
            let text = program(&image, kind, "", check).replace("#CONFIGS", configs).replace("#BAD", bad);
            // The one that is bad from the start has no start period to hide in.
            let text = if bad.is_empty() {
                text
            } else {
                text.replace("start_period = \"30s\"", "start_period = \"10s\"")
            };
            lab.write(&format!("services/{kind}.toml"), &text);
        }
    };
    write(&lab, "");
    lab.write(
        "services/refuser.toml",
        &program(&image, "http", "", "http = \"/\"\nport = 8080")
            .replace("#CONFIGS", "")
            .replace("55s", "15s"),
    );
    // Its root is nobody on the host, and it can write nothing.
    let mapped = program(&image, "notify", "userns_mode = \"auto\"\nread_only = true", "notify = true");
    lab.write("services/mapped.toml", &mapped.replace("#CONFIGS", ""));
    lab.commit("all kinds");
    lab.start_agent();
    lab.wait_agent();
    for (kind, ..) in &services {
        lab.wait_serving(kind, &image);
        assert_eq!(lab.service(kind)["generation"], 1, "{kind}");
    }
    lab.wait_serving("mapped", &image);
    let refused = wait_for("the one whose check asks otherwise", || {
        Some(lab.service("refuser")).filter(|service| service["state"] == "failed")
    });
    assert!(refused["message"].as_str().unwrap().contains("GET / on port 8080: status 403"), "{refused}");

    write(&lab, "BAD = \"1\"");
    lab.commit("all bad");
    for (kind, _, _, why) in &services {
        let failed = wait_for(&format!("the end of {kind}; {}", lab.agent_log()), || {
            Some(lab.service(kind)).filter(|service| service["state"] == "failed")
        });
        let message = failed["message"].as_str().unwrap();
        assert!(message.contains(why), "{kind}: {message}");
        assert_eq!((&failed["reason"], &failed["generation"]), (&"unhealthy".into(), &1.into()), "{kind}");
        let receipt = receipt(&lab, kind);
        assert_eq!(receipt["log"][0], format!("this is {kind} and it is bad"), "{receipt}");
        assert!(lab.ok(&["why", kind]).contains("and it is bad"));
    }
}

/// The last receipt of a service.
fn receipt(lab: &Lab, service: &str) -> Value {
    lab.history().into_iter().rfind(|receipt| receipt["service"] == service).unwrap()
}

#[test]
fn what_is_said_while_the_agent_is_away_is_heard() {
    let mut lab = lab();
    let image = lab.image("1", Kind::Good);
    let text = program(&image, "notify", "user = \"1000:1000\"", "notify = true").replace("#CONFIGS", "");
    lab.deploy("slow", &text.replace("#BAD", "DELAY = \"10\""), "slow");
    lab.start_agent();
    lab.wait_agent();
    wait_for("its first word", || {
        let doing = lab.service("slow")["doing"].as_str().unwrap_or_default().to_owned();
        doing.contains("it has not said READY=1 yet: reading its files").then_some(())
    });
    lab.kill_agent();
    let record = lab.path("run/containers/slow.1/notified.json");
    wait_for("its word", || {
        let said: Value = serde_json::from_slice(&std::fs::read(&record).ok()?).ok()?;
        (said["ready"] == true).then_some(())
    });
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let service = lab.service("slow");
    assert_eq!(
        (&service["generation"], &service["health"], &service["restarts"]),
        (&1.into(), &"healthy".into(), &0.into())
    );
}

#[test]
fn an_image_s_own_check_is_used_unless_it_is_turned_off() {
    let mut lab = Lab::new();
    let (well, sick) = (lab.image("1", Kind::Checked), lab.image("2", Kind::CheckedSick));
    let service = |image: &str, more: &str| {
        format!(
            "image = \"{image}\"\nstop_grace_period = \"100ms\"\n{more}\n[deploy]\nbake = \"0s\"\ntimeout = \"30s\"\n"
        )
    };
    let one = |more: &str| service(&well, more);
    lab.write("services/own.toml", &one(""));
    lab.write("services/off.toml", &one("[healthcheck]\ndisable = true"));
    lab.write("services/times.toml", &one("[healthcheck]\nretries = 2\nstart_period = \"1s\""));
    lab.commit("well");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let two = |more: &str| service(&sick, more);
    lab.write("services/own.toml", &two(""));
    lab.write("services/off.toml", &two("[healthcheck]\ntest = [\"NONE\"]"));
    lab.write("services/times.toml", &two("[healthcheck]\nretries = 2\nstart_period = \"1s\""));
    lab.commit("sick");
    lab.wait_serving("off", &sick);
    for name in ["own", "times"] {
        let failed =
            wait_for(name, || Some(lab.service(name)).filter(|service| service["state"] == "failed"));
        assert_eq!(failed["reason"], "unhealthy");
        let message = failed["message"].as_str().unwrap();
        assert!(message.contains("/bin/sh ended with 1: the image says no"), "{message}");
        assert_eq!(failed["image"], well.as_str(), "{name}");
    }
}

#[test]
fn a_new_version_has_to_be_well_for_as_long_as_the_service_says() {
    let mut lab = Lab::new();
    let (good, decays) = (lab.image("1", Kind::Good), lab.image("2", Kind::Decays));
    let port = free_port();
    let file = |image: &str| {
        super::lab::web(image, port, "")
            .replace("retries = 3", "retries = 1\nsuccess_threshold = 3")
            .replace("[deploy]", "[deploy]\nmin_healthy_time = \"8s\"")
    };
    lab.deploy("web", &file(&good), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert!(lab.history().pop().unwrap()["healthy_seconds"].as_f64().unwrap() >= 8.0);
    // It is well for four seconds.
    lab.deploy("web", &file(&decays), "web 2");
    assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
    let last = lab.history().pop().unwrap();
    assert_eq!((&last["result"], &last["reason"]), (&"failed".into(), &"unhealthy".into()));
    assert_eq!(last["switched_at"], Value::Null, "it never had traffic");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
}

/// Asks once, and says how that went.
fn knock(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) else {
        return false;
    };
    let asked = stream.write_all(b"GET / HTTP/1.0\r\nHost: shop.example\r\nX-Key: k\r\n\r\n");
    let mut answer = Vec::new();
    asked.is_ok() && stream.read_to_end(&mut answer).is_ok() && !answer.is_empty()
}

#[test]
fn a_version_that_refuses_its_clients_loses_them_though_its_check_passes() {
    let mut lab = lab();
    let image = lab.image("1", Kind::Good);
    let port = free_port();
    let more = format!("ports = [\"127.0.0.1:{port}:8080\"]");
    let check = "http = \"/\"\nport = 9000\nstatus = 403\nmethod = \"HEAD\"";
    let text = program(&image, "deserter", &more, check).replace("#CONFIGS", "").replace("500ms", "18s");
    let text = text.replace("interval = \"200ms\"", "interval = \"1s\"");
    lab.deploy("web", &text.replace("bake = \"18s\"", "bake = \"0s\""), "good");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    // The old generation has served: there is something to compare with.
    assert!((0..50).all(|_| knock(port)));
    lab.deploy("web", &text.replace("#BAD", "BAD = \"1\""), "bad");
    wait_for("its clients to be refused", || (!knock(port)).then_some(()));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(40) && lab.service("web")["state"] != "failed" {
        for _ in 0..40 {
            knock(port);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let receipt = receipt(&lab, "web");
    assert_eq!(
        (&receipt["result"], &receipt["reason"]),
        (&"rolled-back".into(), &"error-rate".into()),
        "{receipt}"
    );
    let message = receipt["message"].as_str().unwrap();
    assert!(message.contains("connections were refused, reset or dropped"), "{message}");
    let log: Vec<&str> = receipt["log"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(log, ["this is deserter and it is bad", "the listener is closed"]);
    let told = std::fs::read_to_string(lab.path("agent.log")).unwrap();
    assert!(told.contains("\n  the listener is closed"), "the journal has them too");
    assert!(knock(port), "the old one serves again");
    assert_eq!(lab.service("web")["generation"], 1);
}

#[test]
fn want_of_memory_and_an_end_after_the_switch_bring_the_old_version_back() {
    let mut lab = Lab::new();
    let image = lab.image("1", Kind::Good);
    let service = |command: &str| {
        format!(
            "image = \"{image}\"\ncommand = [\"/bin/sh\", \"-c\", '{command}']\nmem_limit = \"16m\"\nstop_grace_period = \"100ms\"\n[deploy]\ndrain = \"0s\"\nbake = \"30s\"\n"
        )
    };
    let now = |text: &str| text.replace("bake = \"30s\"", "bake = \"0s\"");
    let hungry = "sleep 8; /bin/busybox tail /dev/zero; sleep 1000";
    lab.write("services/hungry.toml", &now(&service("sleep 1000")));
    lab.write("services/ends.toml", &now(&service("sleep 1000")));
    // It has always lived with that.
    lab.write("services/used.toml", &now(&service("/bin/busybox tail /dev/zero; sleep 1000")));
    lab.commit("good");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    wait_for("what it lives with", || (lab.service("used")["oom_kills"] == 1).then_some(()));
    lab.write("services/hungry.toml", &service(hungry));
    lab.write("services/ends.toml", &service("sleep 8; echo that is all; exit 4"));
    lab.write("services/used.toml", &service(&format!(": again; {hungry}")).replace("30s", "14s"));
    lab.commit("bad");
    for (name, reason) in [("hungry", "out-of-memory"), ("ends", "exited")] {
        wait_for(&format!("the end of {name}"), || (lab.service(name)["state"] == "failed").then_some(()));
        let receipt = receipt(&lab, name);
        assert_eq!(
            (&receipt["result"], &receipt["reason"]),
            (&"rolled-back".into(), &reason.into()),
            "{receipt}"
        );
        assert!(receipt["message"].as_str().unwrap().ends_with("after the switch"), "{receipt}");
        assert_eq!(lab.service(name)["generation"], 1);
    }
    assert_eq!(receipt(&lab, "ends")["log"][0], "that is all");
    wait_for("the one that is used to it", || {
        let used = lab.service("used");
        (used["generation"] == 2 && used["rollout"].is_null()).then_some(())
    });
}

#[test]
fn the_last_lines_of_a_version_that_is_given_up_are_kept_and_no_more_of_them() {
    let (mut lab, port) = Lab::serving();
    let image = lab.reference("1");
    // The last but one is longer than a receipt has room for.
    let lines = |word: &str| -> Vec<String> {
        let long = "x".repeat(300);
        (1..=30).map(|n| if n == 29 { format!("{word} 29 {long}") } else { format!("{word} {n}") }).collect()
    };
    let gives_up = |lab: &Lab, word: &str| {
        let script: String = lines(word).iter().map(|line| format!("echo {line}; ")).collect();
        let command = format!("command = [\"/bin/sh\", \"-c\", \"{script}exit 4\"]");
        lab.deploy("web", &super::lab::web(&image, port, &command), word);
        assert_eq!(lab.run(&["sync", "--wait"]).status.code(), Some(1));
        let receipt = receipt(lab, "web");
        let why = (&receipt["result"], &receipt["reason"]);
        assert_eq!(why, (&"failed".into(), &"exited".into()), "{receipt}");
        receipt
    };
    let journal = |lab: &Lab| std::fs::read_to_string(lab.path("agent.log")).unwrap();

    let kept = gives_up(&lab, "line");
    let whole = lines("line").split_off(10);
    let short: Vec<String> = whole.iter().map(|line| line.chars().take(200).collect()).collect();
    assert_eq!(kept["log"], serde_json::json!(short), "{kept}");
    let told: String = short.iter().map(|line| format!("\n  {line}")).collect();
    assert!(journal(&lab).contains(&told), "the journal has them too: {told}");
    assert!(!journal(&lab).contains("\n  line 10\n"), "and none before them");
    let why: Value = serde_json::from_str(&lab.ok(&["why", "web", "--json"])).unwrap();
    assert_eq!(why["log"], serde_json::json!(whole), "{why}");

    // Who wants none of it in git has none.
    lab.kill_agent();
    lab.configure("[report]\nlog_lines = 0\n");
    lab.start_agent();
    lab.wait_agent();
    let kept = gives_up(&lab, "word");
    assert_eq!(kept.get("log"), None, "{kept}");
    assert!(!journal(&lab).contains("\n  word "), "nor has the journal");
    let why = lab.ok(&["why", "web"]);
    assert!(why.contains("\n  word 30\n"), "the host has its log all the same: {why}");
}
