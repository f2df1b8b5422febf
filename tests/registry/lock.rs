//! `gitopsd lock`: digests of a real registry, in the files of a checkout.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::image::{Blob, INDEX, Layer, architecture};
use crate::support::server::Server;

struct Checkout {
    dir: tempfile::TempDir,
    config: std::path::PathBuf,
}

impl Checkout {
    fn new(server: &Server) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-lock-").tempdir().unwrap();
        let config = dir.path().join("host.toml");
        let text =
            format!("[repo]\nurl = \"/nowhere\"\n[registry.\"{}\"]\nplain_http = true\n", server.address());
        fs::write(&config, text).unwrap();
        let checkout = Self { dir, config };
        checkout.write("gitopsd.toml", "format = 1\n");
        checkout
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join("repo").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("repo").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn lock(&self, more: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .arg("--config")
            .arg(&self.config)
            .arg("lock")
            .arg(self.dir.path().join("repo"))
            .args(more)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    }
}

fn layer(content: &str) -> Blob {
    Layer::default().file("version", content.as_bytes()).gzip()
}

fn digest(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_written_kept_and_moved_and_nothing_else_changes() {
    let server = Server::new();
    let address = server.address();
    let one = digest(&server.push("1", &[layer("one")]).await);
    let two = server.push("2", &[layer("two")]).await;
    // Of an image for several platforms it is the index that is written: every host finds its own in it.
    let mut entry = two.clone();
    entry["platform"] = json!({ "os": "linux", "architecture": architecture() });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let both = digest(&server.push_manifest("both", INDEX, &index).await);
    let checkout = Checkout::new(&server);
    let shop =
        format!("# the shop\r\nimage   =\t\"{address}/app:1\"   # bump me\r\n\r\n[deploy]\r\nbake = '1s'");
    checkout.write("services/shop.toml", &shop);
    checkout.write("services/web.toml", &format!("cpus = 1\nimage = '{address}/app:both'\n"));
    checkout.write("services/file.toml", "image = \"file:///srv/app.tar\"\n");
    let host = format!("# a host\n[services.shop]\nimage = \"{address}/app:2\"\n");
    checkout.write("hosts/web-1.toml", &host);
    fs::set_permissions(checkout.path("services/shop.toml"), fs::Permissions::from_mode(0o640)).unwrap();

    // CI finds out, and changes nothing.
    let (code, text) = checkout.lock(&["--check"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("services/shop.toml:2") && text.contains("has no digest"), "{text}");
    assert!(text.contains("4 images: 3 to be locked, 0 unknown"), "{text}");
    assert_eq!(checkout.read("services/shop.toml"), shop);

    let (code, text) = checkout.lock(&[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(checkout.read("services/shop.toml"), shop.replace("app:1\"", &format!("app:1@{one}\"")));
    assert_eq!(
        checkout.read("hosts/web-1.toml"),
        host.replace("app:2\"", &format!("app:2@{}\"", digest(&two)))
    );
    assert!(checkout.read("services/web.toml").contains(&format!("'{address}/app:both@{both}'")));
    assert_eq!(checkout.read("services/file.toml"), "image = \"file:///srv/app.tar\"\n");
    let mode = fs::metadata(checkout.path("services/shop.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(fs::read_dir(checkout.path("services")).unwrap().count(), 3);

    // Once more is nothing at all: not even a file is touched.
    let before = fs::metadata(checkout.path("services/shop.toml")).unwrap().modified().unwrap();
    assert_eq!(checkout.lock(&["--check"]).0, 0);
    assert_eq!(checkout.lock(&[]).0, 0);
    assert_eq!(fs::metadata(checkout.path("services/shop.toml")).unwrap().modified().unwrap(), before);

    // The tag is bumped, and the digest is forgotten: CI says no, and the next lock puts it right.
    let bumped = checkout.read("services/shop.toml").replace("app:1@", "app:2@");
    checkout.write("services/shop.toml", &bumped);
    let (code, text) = checkout.lock(&["--check"]);
    assert!(code == 1 && text.contains("its tag stands for another image now"), "{text}");
    let (code, text) = checkout.lock(&["--json"]);
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &plan["changed"], &plan["failed"]), (0, &1.into(), &0.into()), "{text}");
    let row =
        plan["images"].as_array().unwrap().iter().find(|row| row["file"] == "services/shop.toml").unwrap();
    assert_eq!(
        (&row["state"], &row["former"], &row["digest"]),
        (&"moved".into(), &one.into(), &two["digest"])
    );
    assert!(checkout.read("services/shop.toml").contains(&format!("app:2@{}", digest(&two))));

    // What nobody knows stays as it is, and the others are locked all the same.
    checkout.write("services/gone.toml", &format!("image = \"{address}/app:gone\"\n"));
    checkout.write("services/new.toml", &format!("image = \"{address}/app:1\"\n"));
    let (code, text) = checkout.lock(&[]);
    assert!(
        code == 1 && text.contains("services/gone.toml:1") && text.contains("(image-not-found)"),
        "{text}"
    );
    assert!(checkout.read("services/new.toml").contains("@sha256:"));
    assert_eq!(checkout.read("services/gone.toml"), format!("image = \"{address}/app:gone\"\n"));
}
