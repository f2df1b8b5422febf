//! Credential helpers: programs that keep passwords for git.
//!
//! Source: gitcredentials(7); git-credential(1), "INPUT/OUTPUT FORMAT". Only `get` is ever asked: what a server refuses
//! once may be its own trouble, and no reason to have a password thrown away.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// One that asks somebody, or hangs, is ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest answer.
const MOST: u64 = 64 << 10;

/// Name and password of an http address; `None`: the helper knows of nothing. What it says is a secret, and shown to
/// nobody.
pub(super) fn ask(
    words: &[String],
    url: &str,
    user: Option<&str>,
) -> Result<Option<(String, String)>, String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(None) };
    let failed = |why: &str| format!("the credential helper {program}: {why}");
    let question =
        question(url, user).ok_or_else(|| failed("the address is none that it could be asked about"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        // A service has none; helpers look for their files there.
        .env("HOME", std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read what it is asked has its own answer.
        let _ = input.write_all(question.as_bytes());
    }
    let answer = read_answer(&mut child);
    if answer.is_err() {
        end(&child);
    }
    // Nothing of it is left to wait for: it has closed its output, or was killed.
    let status = child.wait().map_err(|error| failed(&error.to_string()))?;
    let text = answer.map_err(|why| failed(&why))?;
    if !status.success() {
        return Err(failed(&status.to_string()));
    }
    Ok(parse(&text))
}

/// Reads on a thread of its own: reading a pipe cannot be told to give up, and this can.
fn read_answer(child: &mut Child) -> Result<String, String> {
    let output = child.stdout.take().ok_or("it has no output")?;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("git-helper".to_owned())
        .spawn(move || {
            let mut text = String::new();
            let read = output.take(MOST).read_to_string(&mut text);
            // Nobody waits any more where it took too long.
            let _ = tell.send(read.map(|_| text).map_err(|error| error.to_string()));
        })
        .map_err(|error| error.to_string())?;
    let until = Instant::now() + PATIENCE;
    let text =
        told.recv_timeout(PATIENCE).map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
    // It has said what it has to say; one that stays all the same is ended too.
    while Instant::now() < until {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            _ => return Ok(text),
        }
    }
    Err(format!("it does not end within {} s", PATIENCE.as_secs()))
}

fn end(child: &Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // Its leader was not waited for: the number is still its own.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// What is asked: protocol and host, the name where one is known, and an empty line. Without the path, as git itself has it
/// (git-config(1), `credential.useHttpPath`).
fn question(url: &str, user: Option<&str>) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next().unwrap_or_default();
    let (in_url, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (user.split(':').next(), host),
        None => (None, authority),
    };
    let mut text = format!("protocol={scheme}\nhost={host}\n");
    if let Some(user) = user.or(in_url).filter(|user| !user.is_empty()) {
        text.push_str(&format!("username={user}\n"));
    }
    text.push('\n');
    // A line end in one of them would be a line of its own (CVE-2020-5260).
    (text.lines().count() <= 4 && !text.contains(['\r', '\0']) && !host.is_empty()).then_some(text)
}

fn parse(text: &str) -> Option<(String, String)> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
    };
    Some((value("username").unwrap_or_default(), value("password")?))
        .filter(|(_, password)| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers() {
        assert_eq!(
            question("https://git.example.org:8443/ops/config.git", None).unwrap(),
            "protocol=https\nhost=git.example.org:8443\n\n"
        );
        assert_eq!(question("https://ann@h/x", None).unwrap(), "protocol=https\nhost=h\nusername=ann\n\n");
        assert_eq!(question("https://h/x", Some("a\nhost=evil")), None);
        assert_eq!(parse("username=a\npassword=p=q\n"), Some(("a".to_owned(), "p=q".to_owned())));
        assert_eq!(parse("password=p\n"), Some((String::new(), "p".to_owned())));
        assert_eq!(parse("quit=1\n"), None);
        assert_eq!(parse("username=a\npassword=\n"), None);
    }
}
