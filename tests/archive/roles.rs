//! Roles that a profile takes by other credentials: by a real STS that looks at who signed, and by ones that say what they
//! were asked.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::credentials::{URL, assert_signed, credentials, pull, s3, signers, text};
use super::s3::{Moto, moto};
use super::server::{Answer, Server};

/// A service of moto's, before it looks at who asks.
fn ask(moto: &Moto, service: &str, form: &[(&str, &str)]) -> String {
    let who = format!(
        "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=x"
    );
    let mut command = Command::new("curl");
    command.args(["-fsS", "-H", &who]);
    for (key, value) in form {
        command.args(["--data-urlencode", &format!("{key}={value}")]);
    }
    let output = command.arg(format!("http://127.0.0.1:{}/", moto.port)).output().unwrap();
    assert!(output.status.success(), "{form:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn element(text: &str, name: &str) -> String {
    let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
    rest.split_once("</").unwrap().0.to_owned()
}

/// A user that may take the role `jump`, which may take `reader`: the user's keys.
fn iam(moto: &Moto) -> (String, String) {
    let iam = |form: &[(&str, &str)]| ask(moto, "iam", &[&[("Version", "2010-05-08")], form].concat());
    iam(&[("Action", "CreateUser"), ("UserName", "host")]);
    let keys = iam(&[("Action", "CreateAccessKey"), ("UserName", "host")]);
    let may = |role: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"arn:aws:iam::123456789012:role/{role}"}}]}}"#
        )
    };
    let by = |who: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":"{who}"}},"Action":"sts:AssumeRole"}}]}}"#
        )
    };
    let any = by("*");
    for role in ["jump", "reader"] {
        iam(&[("Action", "CreateRole"), ("RoleName", role), ("AssumeRolePolicyDocument", &any)]);
    }
    let (first, second) = (may("jump"), may("reader"));
    iam(&[
        ("Action", "PutUserPolicy"),
        ("UserName", "host"),
        ("PolicyName", "p"),
        ("PolicyDocument", &first),
    ]);
    iam(&[
        ("Action", "PutRolePolicy"),
        ("RoleName", "jump"),
        ("PolicyName", "p"),
        ("PolicyDocument", &second),
    ]);
    // From here on it looks.
    let url = format!("http://127.0.0.1:{}/moto-api/reset-auth", moto.port);
    assert!(
        Command::new("curl")
            .args(["-fsS", "-o", "/dev/null", "-H", "Content-Type: text/plain", "-d", "0", &url])
            .status()
            .unwrap()
            .success()
    );
    (element(&keys, "AccessKeyId"), element(&keys, "SecretAccessKey"))
}

/// Each request to STS is signed by who may take the role: moto works every signature out anew.
#[test]
fn by_a_real_sts() {
    let moto = moto();
    let (id, secret) = iam(&moto);
    let dir = tempfile::tempdir().unwrap();
    let sts = format!("http://127.0.0.1:{}", moto.port);
    let config = |keys: &str| {
        let text = format!(
            "[profile app]\nrole_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = jump\nrole_session_name = web-1\n\
             [profile jump]\nrole_arn = arn:aws:iam::123456789012:role/jump\nsource_profile = base\nduration_seconds = 900\n\
             [profile straight]\nrole_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = base\n\
             [profile base]\n{keys}"
        );
        credentials(dir.path(), "config", &text)
    };
    let good = format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    for profile in ["jump", "app"] {
        let server = s3();
        let config = config(&good);
        let variables =
            [("AWS_CONFIG_FILE", &*config), ("AWS_PROFILE", profile), ("AWS_ENDPOINT_URL_STS", &sts)];
        let (_, output) = pull(&server.url(""), "region = \"eu-west-1\"\n", &variables, &[URL]);
        assert!(output.status.success(), "{profile}: {}", text(&output));
        let found = signers(&server);
        assert!(found.len() == 1 && found[0].0.starts_with("ASIA") && found[0].2.is_some(), "{found:?}");
    }
    let wrong = format!("aws_access_key_id = {id}\naws_secret_access_key = not-the-secret\n");
    for (profile, keys, said) in [
        // The user may not take it, only the role in between.
        (
            "straight",
            &good,
            "taking the role arn:aws:iam::123456789012:role/reader: STS answers 403 AccessDenied",
        ),
        (
            "jump",
            &wrong,
            "taking the role arn:aws:iam::123456789012:role/jump: STS answers 403 SignatureDoesNotMatch",
        ),
    ] {
        let server = s3();
        let config = config(keys);
        let variables =
            [("AWS_CONFIG_FILE", &*config), ("AWS_PROFILE", profile), ("AWS_ENDPOINT_URL_STS", &sts)];
        let (_, output) = pull(&server.url(""), "", &variables, &[URL]);
        let text = text(&output);
        assert!(text.contains(said) && text.contains("(auth)"), "{profile}: {text}");
        assert!(!text.contains(&secret) && !text.contains("not-the-secret"), "{text}");
        assert_eq!(server.log().len(), 0, "nobody is asked as somebody else");
    }
}

/// An STS that gives a role, until then.
fn sts(ends: &str) -> Server {
    let body = format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ROLE</AccessKeyId><SecretAccessKey>x</SecretAccessKey>\
         <SessionToken>T</SessionToken><Expiration>{ends}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    );
    Server::new(move |_| Answer::new(200, body.as_bytes()))
}

const ROLE: &str = "role_arn = arn:aws:iam::1:role/r\n";

const LATER: &str = "2099-01-01T00:00:00Z";

#[test]
fn what_a_profile_says_of_a_role_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!(
        "[default]\n{ROLE}source_profile = default\nexternal_id = a b&c\nrole_session_name = web-1\nduration_seconds = 3600\n\
         aws_access_key_id = KEY\naws_secret_access_key = the-secret\n"
    );
    let file = credentials(dir.path(), "config", &file);
    // Asked once for many requests, and again when what it gave is over.
    for (ends, once) in [(LATER, true), ("2020-01-01T00:00:00Z", false)] {
        let (server, sts) = (s3(), sts(ends));
        let url = sts.url("");
        let variables = [("AWS_CONFIG_FILE", &*file), ("AWS_ENDPOINT_URL_STS", &*url)];
        let urls = [URL, "s3://images/b.tar", "s3://images/c.tar"];
        let (_, output) = pull(&server.url(""), "region = \"eu-west-3\"\n", &variables, &urls);
        assert_signed(&server, &output, "ROLE", "eu-west-3", Some("T"));
        let asked = sts.log();
        assert_eq!(asked.len() == 1, once, "{}", asked.len());
        let request = &asked[0];
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/"));
        assert_eq!(
            request.body,
            "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&RoleSessionName=web-1\
             &ExternalId=a+b%26c&DurationSeconds=3600"
        );
        let signature = request.header("authorization").unwrap();
        assert!(signature.starts_with("AWS4-HMAC-SHA256 Credential=KEY/"), "{signature}");
        assert!(
            signature.contains("/eu-west-3/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date,")
        );
        assert!(!format!("{} {}", request.body, text(&output)).contains("the-secret"));
    }
}

/// What the machine itself gives takes a role.
#[test]
fn by_what_the_machine_holds() {
    let dir = tempfile::tempdir().unwrap();
    let file = |source: &str| {
        credentials(dir.path(), "config", &format!("[profile r]\n{ROLE}credential_source = {source}\n"))
    };
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let container = Server::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Answer::new(200, br#"{"AccessKeyId":"ECS","SecretAccessKey":"x","Token":"ECST","Expiration":"2099-01-01T00:00:00Z"}"#)
    });
    let instance = Server::new(|request| {
        match (request.method.as_str(), request.path.as_str()) {
        ("PUT", _) => Answer::new(200, b"session"),
        (_, path) if path.ends_with("security-credentials/") => Answer::new(200, b"own"),
        _ => Answer::new(200, br#"{"AccessKeyId":"EC2","SecretAccessKey":"x","Token":"EC2T","Expiration":"2099-01-01T00:00:00Z"}"#),
    }
    });
    let (container_url, instance_url) = (container.url("/v2/credentials"), instance.url(""));
    for (source, variables, key, token) in [
        ("EcsContainer", vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*container_url)], "ECS", Some("ECST")),
        (
            "Ec2InstanceMetadata",
            vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*instance_url)],
            "EC2",
            Some("EC2T"),
        ),
        ("Environment", vec![("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "x")], "ENV", None),
    ] {
        let (server, sts, file) = (s3(), sts(LATER), file(source));
        let url = sts.url("");
        let own = [("AWS_CONFIG_FILE", &*file), ("AWS_PROFILE", "r"), ("AWS_ENDPOINT_URL_STS", &*url)];
        let (_, output) = pull(&server.url(""), "", &[&own[..], &variables].concat(), &[URL]);
        assert_signed(&server, &output, "ROLE", "us-east-1", Some("T"));
        let asked = sts.log();
        let signature = asked[0].header("authorization").unwrap();
        assert!(asked.len() == 1 && signature.contains(&format!("Credential={key}/")), "{signature}");
        assert_eq!(asked[0].header("x-amz-security-token"), token);
        assert_eq!(signature.contains(";x-amz-security-token,"), token.is_some(), "{signature}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Keys of the environment are who this host is, unless the profile that is named wants them for its role.
    let (server, file) = (s3(), file("EcsContainer"));
    let keys = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "x")];
    let own = [("AWS_CONFIG_FILE", &*file), ("AWS_PROFILE", "r")];
    let (_, output) = pull(&server.url(""), "", &[keys, own].concat(), &[URL]);
    assert_signed(&server, &output, "ENV", "us-east-1", None);
}

#[test]
fn what_cannot_be_taken_is_told_and_nobody_else_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let keys = "aws_access_key_id = KEY\naws_secret_access_key = the-secret\n";
    for (lines, said) in [
        (
            "source_profile = other\nmfa_serial = arn:mfa\n",
            "`mfa_serial` is a way to credentials that this version does not know",
        ),
        ("source_profile = none\n", "source_profile names `none`, which is in neither of AWS's shared files"),
        ("source_profile = round\n", "source_profile leads in a circle: r -> round -> r"),
        ("source_profile = empty\n", "profile `empty` of AWS's shared files: it holds no credentials"),
        ("credential_source = Environment\n", "which has no AWS_ACCESS_KEY_ID"),
        ("credential_source = EcsContainer\n", "the environment names no endpoint of a container"),
        ("credential_source = Ec2InstanceMetadata\n", "this is no instance with a role"),
        (
            "duration_seconds = 10\nsource_profile = other\n",
            "`duration_seconds` is a number from 900 to 43200",
        ),
        (keys, "`role_arn` takes source_profile, credential_source or web_identity_token_file beside it"),
    ] {
        let file = format!(
            "[profile r]\n{ROLE}{lines}[profile other]\n{keys}[profile round]\n{ROLE}source_profile = r\n[profile empty]\nregion = x\n"
        );
        let file = credentials(dir.path(), "config", &file);
        let (server, sts) = (s3(), sts(LATER));
        let url = sts.url("");
        let variables = [
            ("AWS_CONFIG_FILE", &*file),
            ("AWS_PROFILE", "r"),
            ("AWS_ENDPOINT_URL_STS", &*url),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let (_, output) = pull(&server.url(""), "", &variables, &[URL]);
        let text = text(&output);
        assert!(text.contains(said) && text.contains("(auth)"), "{lines}: {text}");
        assert!(!text.contains("the-secret"), "{text}");
        assert_eq!(server.log().len() + sts.log().len(), 0, "{lines}");
    }
}
