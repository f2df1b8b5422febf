//! References as a service file names images.

use gitopsd::types::ImageRef;

pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    text: &'static str,
}

pub fn rows() -> Vec<Row> {
    let row = |name, source, text| Row { name, source, text };
    vec![
        row("a name that leads upwards", "CVE-2014-9358", "r.io/../../v2/other/app:1"),
        row("a name of `..` behind a good part", "CVE-2014-9358", "r.io/a/../b:1"),
        row("a tag that is a path", "CVE-2024-3727", "r.io/a:../../x"),
        row("a tag that is another request", "request smuggling", "r.io/a:1?x=y"),
        row("a line break", "request smuggling", "r.io/a:1\r\nHost: evil"),
        row("a digest that is a path", "CVE-2024-3727", "r.io/a@sha256:../../../etc/passwd"),
        row("a digest of another kind", "CVE-2024-3727", "r.io/a@md5:d41d8cd98f00b204e9800998ecf8427e"),
        row("user info in the registry", "CVE-2020-15157 class", "https://r.io@evil.example/a.tar"),
        row("user info in a reference", "CVE-2020-15157 class", "r.io@evil.example/a:1"),
        row("a fragment", "URL confusion", "https://r.io/a.tar#@evil.example"),
        row("a backslash", "URL confusion", "r.io\\@evil.example/a:1"),
        row("a percent sign", "URL confusion", "r.io/%2e%2e/a:1"),
        row("a port that is none", "URL confusion", "r.io:0/a:1"),
        row("a port beyond all", "URL confusion", "r.io:65536/a:1"),
        row("a registry that is an option", "CVE-2017-1000117 class", "-oProxyCommand=x.io/a:1"),
        row("letters that look like others", "homographs", "r\u{435}gistry.io/a:1"),
        row("a name in upper case", "confusion", "r.io/App:1"),
        row("no tag", "CVE-2026-50195", "r.io/app"),
        row("an address of http", "downgrade", "http://r.io/a.tar"),
        row("an address of a kind that nobody knows", "CVE-2026-53488 class", "binary:///bin/sh"),
        row("a NUL", "C strings", "r.io/a:1\0"),
    ]
}

#[test]
fn each_name_is_refused() {
    for row in rows() {
        assert!(row.text.parse::<ImageRef>().is_err(), "{}: {:?}", row.name, row.text);
    }
    assert!("r.io:5000/team/app:1.2-rc_3".parse::<ImageRef>().is_ok());
}
