//! What services take out of files of the config repo: `env_file`, `configs`; and `volumes` in its long syntax.

use gitopsd::reconcile::changes::{self, How};
use std::path::Path;

use gitopsd::config::Diagnostic;
use gitopsd::types::{Declared, VolumeMount, VolumeSource};

use super::*;

const IMAGE: &str = "image = \"r.io/a:1\"\n";

fn everything() -> Policy {
    Policy { host_mounts: vec!["*".to_owned()], ..Policy::default() }
}

/// A repo of one service with these lines, and other files.
fn with(lines: &str, files: &[(&str, &str)]) -> RepoView {
    let text = format!("{IMAGE}{lines}\n");
    let all: Vec<_> = [("services/a.toml", text.as_str())].into_iter().chain(files.iter().copied()).collect();
    view(&all, &everything())
}

fn spec(view: &RepoView) -> &Declared {
    assert!(view.diagnostics.is_empty(), "{:?}", view.diagnostics);
    view.services[&name("a")].as_ref().unwrap()
}

/// What is wrong with it, which has to stop it.
fn errors(view: &RepoView) -> Vec<&Diagnostic> {
    assert!(view.services[&name("a")].is_err(), "it is taken");
    view.diagnostics.iter().filter(|found| found.is_error()).collect()
}

fn pairs(spec: &Declared) -> Vec<(&str, &str)> {
    spec.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn env_files_lie_below_the_environment_and_later_ones_win() {
    let lines =
        "env_file = [\"one.env\", { path = \"../env/two.env\" }, { path = \"none.env\", required = false }]
                 environment = { C = \"environment\" }";
    let files = [
        ("services/one.env", "A=one\nB=one\nC=one\n"),
        ("env/two.env", "# second\nB='two'\nC=two\nD=\"two\\nlines\"\n"),
    ];
    let view = with(lines, &files);
    let expected = [("A", "one"), ("B", "two"), ("C", "environment"), ("D", "two\nlines")];
    assert_eq!(pairs(spec(&view)), expected);
    // One alone needs no array.
    assert_eq!(pairs(spec(&with("env_file = \"one.env\"", &files))).len(), 3);
}

#[test]
fn what_a_nearer_layer_says_of_env_files_counts_and_paths_are_its_own() {
    let all: RepoFiles = [
        (
            "gitopsd.toml",
            "format = 1\n[defaults]\nenv_file = \"top.env\"\nenvironment = { X = \"defaults\" }\n",
        ),
        ("top.env", "X=top\nY=top\n"),
        ("services/a.toml", IMAGE),
        ("services/b.toml", "image = \"r.io/b:1\"\nenv_file = \"b.env\"\n"),
        ("services/b.env", "X=b\nZ=b\n"),
        ("hosts/web-1.toml", "[services.b]\nenv_file = \"b.env\"\n"),
        ("hosts/b.env", "Z=host\n"),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .collect();
    assert_eq!(all.named().into_iter().collect::<Vec<_>>(), ["hosts/b.env", "services/b.env", "top.env"]);
    let of = |host_name: &str, service: &str| {
        let view = read(&all, &host(host_name, &[]), &Policy::default());
        let spec = view.services[&name(service)].clone().unwrap();
        pairs(&spec).iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("other", "a"), "X=defaults Y=top");
    assert_eq!(of("other", "b"), "X=defaults Z=b");
    assert_eq!(of("web-1", "b"), "X=defaults Z=host");
}

#[test]
fn an_error_in_an_env_file_has_its_place_there_and_shows_no_value() {
    let view = with("env_file = \"a.env\"", &[("services/a.env", "A=1\nPASSWORD=pa$$word\n")]);
    let found = errors(&view);
    let [error] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((error.file.as_str(), error.line), ("services/a.env", 2));
    assert!(!error.to_string().contains("word="), "{error}");
    assert!(!format!("{error}{:?}", view.services).contains("pa$$"), "{error}");
}

/// Many services may name one file: what is wrong with it is told once, and stops all of them.
#[test]
fn an_env_file_of_many_services_is_read_once() {
    let bad = "wrong line\n".repeat(500);
    let other = ("services/b.toml", "image = \"r.io/b:1\"\nenv_file = \"a.env\"\n");
    let view = with("env_file = \"a.env\"", &[other, ("services/a.env", &bad)]);
    assert!(view.services.values().all(Result::is_err));
    let inside = view.diagnostics.iter().filter(|found| found.file == "services/a.env").count();
    assert_eq!(inside, 20);
    let outside: Vec<_> = view.diagnostics.iter().filter(|found| found.file != "services/a.env").collect();
    let [error] = outside.as_slice() else { panic!("{outside:?}") };
    assert_eq!((error.file.as_str(), error.line), ("services/b.toml", 2));
    assert_eq!(error.message, "`env_file`: services/a.env has errors");
    let good = with("env_file = \"a.env\"", &[other, ("services/a.env", "A=1\n")]);
    assert!(good.services.values().all(|spec| spec.as_ref().is_ok_and(|spec| spec.environment["A"] == "1")));
}

#[test]
fn files_that_cannot_be_used_stop_their_own_service_only() {
    for (lines, message) in [
        ("env_file = \"none.env\"", "there is no services/none.env"),
        ("env_file = \"/etc/environment\"", "not a path relative"),
        ("env_file = \"../../up.env\"", "leads out of the config repo"),
        ("env_file = 1", "takes strings"),
        ("env_file = [{ required = true }]", "`path` is missing"),
        ("env_file = [{ path = \"a\", required = false, format = \"raw\" }]", "`format` is not supported"),
        ("env_file = [{ path = \"a\", required = false, name = \"x\" }]", "unknown key `name`"),
        ("configs = [{ file = \"none\", target = \"/x\" }]", "there is no services/none"),
        ("configs = [{ file = \"../../x\", target = \"/x\" }]", "leads out of the config repo"),
        ("configs = [\"none\"]", "defines no [configs.none]"),
        ("configs = [\"a/b\"]", "is not the name of a config"),
        ("configs = \"x\"", "takes an array"),
        ("configs = [{ target = \"/x\" }]", "one of `source`, `file`, `content`"),
        (
            "configs = [{ file = \"a\", content = \"b\", target = \"/x\" }]",
            "one of `source`, `file`, `content`",
        ),
        ("configs = [{ content = \"b\" }]", "`target` is missing"),
        ("configs = [{ content = \"b\", target = \"/a/../b\" }]", "`target` is missing, or is not"),
        ("configs = [{ content = \"b\", target = \"/proc/x\" }]", "belongs to the kernel"),
        ("configs = [{ content = \"b\", target = \"/\" }]", "own root"),
        ("configs = [{ content = \"b\", target = \"/x\", mode = 440 }]", "in octal"),
        ("configs = [{ content = \"b\", target = \"/x\", mode = 0o4755 }]", "in octal"),
        ("configs = [{ content = \"b\", target = \"/x\", mode = \"9\" }]", "in octal"),
        ("configs = [{ content = \"b\", target = \"/x\", uid = \"app\" }]", "number of a user"),
        ("configs = [{ content = \"b\", target = \"/x\", gid = 4294967295 }]", "number of a user"),
        ("configs = [{ content = \"b\", target = \"/x\", labels = [] }]", "unknown key `labels`"),
        (
            "configs = [{ content = \"a\", target = \"/x\" }, { content = \"b\", target = \"/x/\" }]",
            "is there twice",
        ),
        ("configs = [{ content = \"a\", target = \"/x\" }]\nvolumes = [\"x:/x\"]", "go to /x"),
        ("tmpfs = [\"/x\"]\nvolumes = [\"x:/x\"]", "go to /x"),
    ] {
        let other = ("services/b.toml", "image = \"r.io/b:1\"\n");
        let view = with(lines, &[other]);
        let found = errors(&view);
        let [error] = found.as_slice() else { panic!("{lines}: {found:?}") };
        assert!(error.message.contains(message), "{lines}: {error}");
        assert!(view.services[&name("b")].is_ok() && view.fatal.is_none(), "{lines}");
    }
    let mut files = repo(&[("services/a.toml", &format!("{IMAGE}env_file = \"l\"\n"))]);
    files.refuse("services/l", "is a symbolic link");
    let view = read(&files, &host("h", &[]), &Policy::default());
    assert!(errors(&view)[0].message.contains("services/l is a symbolic link"));
}

#[test]
fn configs_in_every_form() {
    let lines = "[[configs]]\nfile = \"../nginx/nginx.conf\"\ntarget = \"/etc/nginx/nginx.conf\"
                 [[configs]]\nsource = \"motd\"\nuid = \"1000\"\ngid = 1001\nmode = 0o440
                 [[configs]]\nsource = \"motd\"\ntarget = \"/etc/motd\"\nmode = \"0400\"
                 [[configs]]\ncontent = \"a = 1\"\ntarget = \"/run.sh\"\nmode = 0o755\n";
    let top =
        "format = 1\n[configs.motd]\ncontent = \"hello\"\n[configs.page]\nfile = \"pages/index.html\"\n";
    let files = [
        ("gitopsd.toml", top),
        ("nginx/nginx.conf", "events {}\n"),
        ("pages/index.html", "<p>"),
        ("services/c.toml", "image = \"r.io/c:1\"\nconfigs = [\"page\"]\n"),
    ];
    let view = with(lines, &files);
    let seen: Vec<String> = spec(&view)
        .configs
        .iter()
        .map(|config| {
            let content = String::from_utf8(view.contents[&config.content].clone()).unwrap();
            assert_eq!(content.len() as u64, config.size);
            let target = config.target.display();
            format!("{target} {content:?} {:?}:{:?} {:o}", config.uid, config.gid, config.mode)
        })
        .collect();
    let expected = [
        "/etc/nginx/nginx.conf \"events {}\\n\" None:None 444",
        "/motd \"hello\" Some(1000):Some(1001) 440",
        "/etc/motd \"hello\" None:None 400",
        "/run.sh \"a = 1\" None:None 755",
    ];
    assert_eq!(seen, expected);
    let other = &view.services[&name("c")].as_ref().unwrap().configs[0];
    assert_eq!((other.target.as_path(), other.size), (Path::new("/page"), 3));

    // Another content, and nothing else, is another spec.
    let changed = with(lines, &[files[0], ("nginx/nginx.conf", "events { }\n"), files[2], files[3]]);
    let found = changes::between_declared(spec(&view), spec(&changed));
    assert_eq!(
        found.iter().map(|it| (it.key, it.how)).collect::<Vec<_>>(),
        [("configs", How::NewGeneration)]
    );
    assert_eq!(changes::between_declared(spec(&view), spec(&with(lines, &files))), []);
}

#[test]
fn what_definitions_may_not_say_is_refused_by_name() {
    for (definition, message) in [
        ("[configs.x]\nenvironment = \"HOME\"", "`environment` is not supported"),
        ("[configs.x]\nexternal = true", "`external` is not supported"),
        ("[configs.x]\ncontent = \"a\"\ntemplate_driver = \"golang\"", "`template_driver` is not supported"),
        ("[configs.x]\ncontent = \"a\"\nfile = \"b\"", "one of `file`, `content`"),
        ("[configs.x]", "one of `file`, `content`"),
        ("[configs]\nx = 1", "`x` takes a table"),
        ("[configs.\"a/b\"]\ncontent = \"a\"", "is not a name of a config"),
        ("[volumes.data]", "`volumes` is not supported"),
        ("[secrets.x]\nfile = \"x\"", "`secrets` is not supported"),
    ] {
        let view = with("", &[("gitopsd.toml", &format!("format = 1\n{definition}\n"))]);
        let fatal = view.fatal.unwrap().message;
        assert!(fatal.contains(message), "{definition}: {fatal}");
    }
    // A file that a definition names is looked at by those who use it.
    let top = ("gitopsd.toml", "format = 1\n[configs.x]\nfile = \"none\"\n");
    assert!(with("", &[top]).fatal.is_none());
    assert!(errors(&with("configs = [\"x\"]", &[top]))[0].message.contains("there is no none"));
}

#[test]
fn sizes_have_limits_that_are_told() {
    let big = "x".repeat(1 << 20);
    let entries: Vec<String> =
        (0..5).map(|number| format!("{{ file = \"{number}\", target = \"/{number}\" }}")).collect();
    let paths: Vec<String> = (0..5).map(|number| format!("services/{number}")).collect();
    let files: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), big.as_str())).collect();
    let list = |count: usize| format!("configs = [{}]", entries[..count].join(", "));
    assert_eq!(spec(&with(&list(4), &files)).configs.len(), 4);
    let view = with(&list(5), &files);
    assert!(errors(&view)[0].message.contains("5242880 bytes; all of a service together have up to 4 MiB"));
    let many: Vec<String> = (0..101).map(|n| format!("{{ content = \"\", target = \"/{n}\" }}")).collect();
    let view = with(&format!("configs = [{}]", many.join(", ")), &[]);
    assert!(errors(&view)[0].message.contains("`configs`: 101 files"));
    let view = with(&format!("env_file = [{}]", vec!["\"e\""; 101].join(", ")), &[("services/e", "")]);
    assert!(errors(&view)[0].message.contains("`env_file`: 101 files"));
    let long = format!("LONG={}\n", "x".repeat((128 << 10) - 6));
    assert_eq!(spec(&with("env_file = \"e\"", &[("services/e", &long)])).environment.len(), 1);
    let longer = format!("LONG={}\n", "x".repeat((128 << 10) - 5));
    let view = with("env_file = \"e\"", &[("services/e", &longer)]);
    assert!(errors(&view)[0].message.contains("`LONG` is longer than the 128 KiB"));
    let all: String = (0..2).map(|n| format!("V{n}={}\n", "x".repeat(100 << 10))).collect();
    let two = all.replace('V', "W");
    let view = with("env_file = [\"e\", \"f\"]", &[("services/e", &all), ("services/f", &two)]);
    assert!(errors(&view)[0].message.contains("up to 256 KiB"));
    let view = with("env_file = \"e\"", &[("services/e", &"#".repeat((256 << 10) + 1))]);
    assert!(errors(&view)[0].message.contains("services/e is larger than 256 KiB"));
}

#[test]
fn volumes_in_the_long_syntax() {
    let lines = "[[volumes]]\ntype = \"volume\"\nsource = \"data\"\ntarget = \"/data\"\nvolume = { nocopy = true, subpath = \"./a/b\" }
                 [[volumes]]\ntype = \"bind\"\nsource = \"/srv/x\"\ntarget = \"/x\"\nread_only = true\nbind = { create_host_path = true, propagation = \"rprivate\", recursive = \"enabled\" }
                 [[volumes]]\ntype = \"tmpfs\"\ntarget = \"/run\"\nread_only = true\ntmpfs = { size = \"64m\", mode = 0o700 }
                 [[volumes]]\ntype = \"tmpfs\"\ntarget = \"/scratch\"\n";
    let view = with(&format!("tmpfs = [\"/tmp\"]\n{lines}"), &[]);
    let spec = spec(&view);
    let expected = [
        VolumeMount {
            nocopy: true,
            subpath: Some("a/b".into()),
            ..VolumeMount::new(VolumeSource::Named("data".to_owned()), "/data", false)
        },
        VolumeMount {
            create_host_path: true,
            ..VolumeMount::new(VolumeSource::Bind("/srv/x".into()), "/x", true)
        },
    ];
    assert_eq!(spec.volumes, expected);
    let memory: Vec<_> = spec.options.tmpfs.iter().flatten().collect();
    let seen: Vec<_> = memory
        .iter()
        .map(|tmpfs| format!("{} {}", tmpfs.target.display(), tmpfs.options.join(",")))
        .collect();
    assert_eq!(seen, ["/tmp ", "/run size=67108864,mode=700,ro", "/scratch "]);
    // What is in memory is nobody else's: it makes no writer of a service.
    let alone = "volumes = [{ type = \"tmpfs\", target = \"/run\" }]";
    assert_eq!(self::spec(&with(alone, &[])).strategy(), Strategy::BlueGreen);
    // A bind is for the host's policy to allow, in whatever syntax.
    let all = [("services/a.toml", format!("{IMAGE}{lines}"))];
    let refused = super::view(&[(all[0].0, all[0].1.as_str())], &Policy::default());
    let refusal = refused.services[&name("a")].as_ref().unwrap_err();
    assert!(refusal.reason == Reason::Policy && refusal.message.contains("/srv/x"), "{refusal}");
}

#[test]
fn what_volumes_cannot_do_is_refused_by_name() {
    for (entry, message) in [
        ("type = \"npipe\", source = \"a\", target = \"/x\"", "type `npipe` is not supported"),
        ("source = \"a\", target = \"/x\"", "`type` is"),
        ("type = \"volume\", target = \"/x\"", "without a name"),
        ("type = \"volume\", source = \"/srv\", target = \"/x\"", "name takes letters"),
        ("type = \"bind\", target = \"/x\"", "`source` is missing"),
        ("type = \"bind\", source = \"./x\", target = \"/x\"", "absolute path of the host"),
        ("type = \"tmpfs\", source = \"a\", target = \"/x\"", "has no `source`"),
        ("type = \"volume\", source = \"a\"", "`target` is missing"),
        ("type = \"volume\", source = \"a\", target = \"/proc\"", "belongs to the kernel"),
        ("type = \"volume\", source = \"a\", target = \"x\"", "not an absolute path"),
        ("type = \"volume\", source = \"a\", target = \"/x\", consistency = \"cached\"", "`consistency`"),
        ("type = \"volume\", source = \"a\", target = \"/x\", bind = { selinux = \"z\" }", "`bind` belongs"),
        ("type = \"bind\", source = \"/a\", target = \"/x\", bind = { selinux = \"z\" }", "`selinux`"),
        (
            "type = \"bind\", source = \"/a\", target = \"/x\", bind = { propagation = \"rshared\" }",
            "`rshared`",
        ),
        (
            "type = \"bind\", source = \"/a\", target = \"/x\", bind = { recursive = \"disabled\" }",
            "`recursive`",
        ),
        ("type = \"bind\", source = \"/a\", target = \"/x\", volume = { nocopy = true }", "`volume` belongs"),
        ("type = \"volume\", source = \"a\", target = \"/x\", volume = { labels = {} }", "`labels`"),
        ("type = \"volume\", source = \"a\", target = \"/x\", volume = { subpath = \"../b\" }", "`subpath`"),
        ("type = \"volume\", source = \"a\", target = \"/x\", volume = { subpath = \"/b\" }", "`subpath`"),
        ("type = \"volume\", source = \"a\", target = \"/x\", volume = { subpath = \".\" }", "`subpath`"),
        ("type = \"tmpfs\", target = \"/x\", tmpfs = { size = \"big\" }", "`size`"),
        ("type = \"tmpfs\", target = \"/x\", tmpfs = { mode = 700 }", "`mode`"),
        ("type = \"volume\", source = \"a\", target = \"/x\", readonly = true", "did you mean `read_only`"),
    ] {
        let view = with(&format!("volumes = [{{ {entry} }}]"), &[]);
        let found = errors(&view);
        assert!(found.iter().any(|error| error.to_string().contains(message)), "{entry}: {found:?}");
        assert!(found.iter().all(|error| error.line == 2), "{entry}: {found:?}");
    }
    for (short, message) in [
        ("data:/x:z", "SELinux"),
        ("/srv:/x:rslave", "propagation `rslave`"),
        ("/x", "without a name"),
        ("data:/x:consistent", "`consistent` is none of"),
    ] {
        let view = with(&format!("volumes = [\"{short}\"]"), &[]);
        assert!(errors(&view)[0].message.contains(message), "{short}");
    }
    let view = with("volumes = [\"a:/x\", \"b:/x\"]", &[]);
    assert!(errors(&view)[0].message.contains("two of them go to /x"));
}

/// `check` sees what the agent would see, and says where.
#[test]
fn check_reads_the_files_that_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("gitopsd.toml", "format = 1\n");
    write(
        "services/a.toml",
        &format!("{IMAGE}env_file = \"../a.env\"\nconfigs = [{{ file = \"a.d/x\", target = \"/x\" }}]\n"),
    );
    write("a.env", "A=1\n");
    write("services/a.d/x", "x");
    write("services/a.d/unused", &"x".repeat(2 << 20));
    let check = || {
        let output =
            Command::new(env!("CARGO_BIN_EXE_gitopsd")).arg("check").current_dir(&dir).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = check();
    assert_eq!((code, text.as_str()), (Some(0), "1 service, 0 errors, 0 warnings\n"));
    write("a.env", "A=$B\n");
    std::fs::remove_file(dir.path().join("services/a.d/x")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("services/a.d/x")).unwrap();
    let (code, text) = check();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("a.env:1:1: error: `A` names a variable"), "{text}");
    assert!(
        text.contains(
            "services/a.toml:3:12: error: `configs`: services/a.d/x is, or lies behind, a symbolic link"
        ),
        "{text}"
    );
}
