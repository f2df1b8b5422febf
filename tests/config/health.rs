//! `[healthcheck]`: each kind of question, what goes with it, and what is laid over what.

use gitopsd::types::{Declared, HealthCheck, HttpMethod, Times};

use super::*;

const IMAGE: &str = "image = \"r.io/a:1\"\nports = [\"80:8080\"]\n";

/// A certificate of nobody's.
const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIBdTCCARugAwIBAgIUR6P7BSuGD88Bsy8O38u4HRl/cPUwCgYIKoZIzj0EAwIw\nDzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjExNzQzMjlaGA8yMTI2MTAyODE3NDMy\nOVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOUI\nF+jmTBvPExqWTr0d7w/GTiDD9GCgtmSNmVQ9XrNZH4VdpzrGgX3bBj2/a9pcMZc8\nb/J3Y84PLlg2gepTci+jUzBRMB0GA1UdDgQWBBRihtag8VVxuIrtYxnR8CfjrJ2N\n0zAfBgNVHSMEGDAWgBRihtag8VVxuIrtYxnR8CfjrJ2N0zAPBgNVHRMBAf8EBTAD\nAQH/MAoGCCqGSM49BAMCA0gAMEUCIQDkqIbUmKFCzZ0se7WQV17D4ImAaWro15Pi\n7Fs8FSJjJQIgTQAL9wPEpqEr48YXE2m6JoCwaYUKWz6hSOwRHi2PDKk=\n-----END CERTIFICATE-----\n";

fn with(check: &str, top: &str) -> RepoView {
    let text = format!("{IMAGE}[healthcheck]\n{check}\n");
    let mut files =
        repo(&[("services/a.toml", &text), ("services/ca.pem", CA), ("services/bad.pem", "nothing")]);
    files.insert("gitopsd.toml".to_owned(), format!("format = 1\n{top}").into_bytes());
    read(&files, &host("web-1", &[]), &Policy::default())
}

fn spec(view: &RepoView) -> &Declared {
    assert!(view.diagnostics.is_empty(), "{:?}", view.diagnostics);
    view.services[&name("a")].as_ref().unwrap()
}

fn check(text: &str) -> HealthCheck {
    spec(&with(text, "")).healthcheck.clone().unwrap()
}

#[test]
fn each_kind_of_question() {
    let Probe::Http(http) = check(
        "http = \"/up?full\"\nport = 9000\nmethod = \"HEAD\"\nstatus = [204, \"3xx\"]\nheaders = { Host = \"x.example\" }",
    )
    .probe
    else {
        panic!()
    };
    assert_eq!((http.path.as_str(), http.port, http.method), ("/up?full", 9000, HttpMethod::Head));
    assert_eq!(http.status.iter().map(ToString::to_string).collect::<Vec<_>>(), ["204", "300-399"]);
    assert_eq!((http.headers["Host"].as_str(), http.tls), ("x.example", None));
    let Probe::Http(https) =
        check("https = \"/\"\nca_file = \"ca.pem\"\ncontains = \"ok\"\nstatus = 200").probe
    else {
        panic!()
    };
    let tls = https.tls.unwrap();
    assert_eq!((https.port, https.contains.as_deref()), (8080, Some("ok")), "the one port that is published");
    assert_eq!((tls.ca.as_deref(), tls.server_name, tls.skip_verify), (Some(CA), None, false));
    let Probe::Grpc(grpc) = check("grpc = 50051\ngrpc_service = \"shop\"").probe else { panic!() };
    assert_eq!((grpc.port, grpc.service.as_str(), grpc.tls), (50051, "shop", None));
    let Probe::Grpc(grpc) = check("grpc = 50051\ntls_skip_verify = true").probe else { panic!() };
    assert!(grpc.tls.unwrap().skip_verify);
    let Probe::Grpc(grpc) = check("grpc = 50051\ntls = true\ntls_server_name = \"s.example\"").probe else {
        panic!()
    };
    assert_eq!(grpc.tls.unwrap().server_name.as_deref(), Some("s.example"));
    assert_eq!(check("notify = true").probe, Probe::Notify);
    assert_eq!(check("disable = true").probe, Probe::Ports);
    assert_eq!(check("test = [\"NONE\"]").probe, Probe::Ports);
    assert_eq!(check("image = true").probe, Probe::Image(Times::default()));
    let test = Probe::Test { command: vec!["pg_isready".to_owned()] };
    assert_eq!(check("test = [\"CMD\", \"pg_isready\"]").probe, test);
    let times = check("tcp = 5432\ninterval = \"9s\"\nstart_interval = \"100ms\"\nsuccess_threshold = 4");
    assert_eq!((times.interval, times.success_threshold), (Duration::from_secs(9), 4));
    assert_eq!((times.start_interval, times.retries), (Some(Duration::from_millis(100)), 3));
}

#[test]
fn times_alone_are_those_of_the_image_s_own_check() {
    let times = Times { retries: Some(9), ..Times::default() };
    assert_eq!(check("retries = 9").probe, Probe::Image(times));
    assert_eq!(spec(&with("", "")).healthcheck, None);
}

#[test]
fn another_question_brings_its_own_details_and_the_times_stay() {
    let defaults =
        "[defaults.healthcheck]\nhttp = \"/healthz\"\nstatus = 204\nheaders = { A = \"b\" }\nretries = 7\n";
    let low = spec(&with("", defaults)).healthcheck.clone().unwrap();
    assert!(matches!(&low.probe, Probe::Http(http) if http.status.len() == 1 && http.port == 8080));
    let high = spec(&with("tcp = 9", defaults)).healthcheck.clone().unwrap();
    assert_eq!((high.probe, high.retries), (Probe::Tcp { port: 9 }, 7));
    let more = spec(&with("method = \"POST\"", defaults)).healthcheck.clone().unwrap();
    assert!(
        matches!(&more.probe, Probe::Http(http) if http.method == HttpMethod::Post && http.headers.len() == 1)
    );
    assert_eq!(
        spec(&with("image = true", defaults)).healthcheck.as_ref().map(|check| &check.probe),
        Some(&Probe::Image(Times { retries: Some(7), ..Times::default() }))
    );
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (text, said) in [
        ("http = \"/\"\ntcp = 80", "a health check is one of `http`"),
        ("http = \"healthz\"", "a path that begins with `/`"),
        ("http = \"/a b\"", "a path that begins with `/`"),
        ("status = 200", "`status` says how to ask, and nothing says what"),
        ("port = 80", "`port` says how to ask"),
        ("tcp = 80\nstatus = 200", "`status` does not go with this kind of check"),
        ("grpc = 80\ncontains = \"x\"", "`contains` does not go with"),
        ("http = \"/\"\nca_file = \"ca.pem\"", "`ca_file` does not go with"),
        ("http = \"/\"\nstatus = [\"20x\"]", "`20x` is not a status"),
        ("http = \"/\"\nstatus = []", "`status` names none"),
        ("http = \"/\"\nstatus = [true]", "it takes numbers and texts"),
        ("http = \"/\"\nmethod = \"DELETE\"", "`method` is one of \"GET\""),
        ("http = \"/\"\nheaders = { \"a b\" = \"c\" }", "cannot be sent as a header"),
        ("http = \"/\"\nheaders = { a = \"c\\r\\nd: e\" }", "cannot be sent as a header"),
        ("http = \"/\"\nheaders = { Connection = \"keep-alive\" }", "Connection cannot be chosen"),
        ("http = \"/\"\ncontains = \"\"", "`contains` takes a text"),
        ("https = \"/\"\nca_file = \"none.pem\"", "there is no services/none.pem"),
        ("https = \"/\"\nca_file = \"bad.pem\"", "it holds no certificate in PEM"),
        ("https = \"/\"\nca_file = \"../../x.pem\"", "`ca_file`"),
        ("https = \"/\"\ntls_skip_verify = true\nca_file = \"ca.pem\"", "would say nothing"),
        ("https = \"/\"\ntls_server_name = \"a b\"", "is not a server's name"),
        ("grpc = 80\ntls = false\nca_file = \"ca.pem\"", "do not go with `tls = false`"),
        ("grpc = 0", "`grpc` takes a number from 1 to 65535"),
        ("notify = false", "`notify` is true, or is left out"),
        ("tcp = 1\nsuccess_threshold = 0", "`success_threshold` takes a number"),
        ("tcp = 1\nstart_interval = \"1ms\"", "at least 10ms"),
        ("httpGet = 1", "`httpGet` is another tool's word: write http ="),
        ("tcp = 1\nperiodSeconds = 5", "write interval ="),
        ("tcp = 1\nfailureThreshold = 5", "write retries ="),
        ("tcp = 1\nretrys = 5", "unknown key `retrys` in [healthcheck]"),
    ] {
        let view = with(text, "");
        let found = view.diagnostics.iter().any(|found| found.is_error() && found.message.contains(said));
        assert!(found, "{text}: {:?}", view.diagnostics);
        assert!(view.services[&name("a")].is_err(), "{text}: it is taken");
    }
}

#[test]
fn how_long_before_the_switch_and_how_much_after_it() {
    let deploy =
        |text: &str| view(&[("services/a.toml", &format!("{IMAGE}[deploy]\n{text}\n"))], &Policy::default());
    let taken = deploy("min_healthy_time = \"30s\"\nmax_error_rate = \"5%\"");
    let deploy_of = &spec(&taken).deploy;
    assert_eq!((deploy_of.min_healthy_time, deploy_of.max_error_rate), (Duration::from_secs(30), Some(5)));
    for (text, said) in [
        ("min_healthy_time = \"5m\"", "has to be shorter than `timeout`"),
        ("max_error_rate = \"0%\"", "takes a share from 1% to 100%"),
        ("max_error_rate = \"5\"", "takes a share from 1% to 100%"),
        ("max_error_rate = \"101%\"", "takes a share from 1% to 100%"),
    ] {
        let view = deploy(text);
        assert!(
            view.diagnostics.iter().any(|found| found.message.contains(said)),
            "{text}: {:?}",
            view.diagnostics
        );
        assert!(view.services[&name("a")].is_err(), "{text}");
    }
}
