//! `load`: sends requests at a fixed rate and reports what failed, how long answers took and which version gave them.
//!
//! `cargo run --example load -- --url http://127.0.0.1:8080/ --rate 1000 --seconds 10 --mode new --json`

#[path = "load/mod.rs"]
mod load;
#[cfg(test)]
#[path = "load/tests.rs"]
mod tests;
#[cfg(test)]
#[path = "load/wires.rs"]
mod wires;

use std::process::ExitCode;
use std::time::Duration;

use load::client::Target;
use load::{Mode, Options, run};

const USAGE: &str = "\
usage: load --url http://HOST[:PORT]/PATH [options]

  --url URL           a host's name is looked up for each connection
  --rate N            requests a second, all together (default 100)
  --seconds N         how long at most (default 10)
  --mode new|keepalive|http2|websocket|udp    a new connection for each request (default), or kept ones that speak this;
                      websocket and udp: a message and its echo
  --connections N     workers, each with one connection at a time (default 8)
  --until-file PATH   end as soon as this file exists
  --retry-stale       repeat a request once when a kept connection was dead before the first byte of an answer
  --max-age SECONDS   a kept connection that is older is not used again
  --timeout SECONDS   for a connection attempt and for each wait (default 5)
  --json              one JSON object instead of text

Exit code: 0 when every request was answered with 200, 1 when one was not, 64 for a wrong option.
";

fn main() -> ExitCode {
    let (options, json) = match parse(std::env::args().skip(1)) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return say(&mut std::io::stdout(), USAGE, ExitCode::SUCCESS),
        Err(message) => {
            return say(&mut std::io::stderr(), &format!("load: {message}\n{USAGE}"), ExitCode::from(64));
        }
    };
    let report = run(&options);
    let text = if json { format!("{}\n", report.to_json()) } else { report.to_text() };
    let good = report.failed() == 0 && report.requests() > 0;
    say(&mut std::io::stdout(), &text, if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(out: &mut impl std::io::Write, text: &str, code: ExitCode) -> ExitCode {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// `None` = help was asked for.
fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<(Options, bool)>, String> {
    let mut url = None;
    let (mut rate, mut seconds, mut workers, mut timeout) = (100, 10.0, 8, 5.0);
    let (mut mode, mut until_file, mut retry_stale, mut json) = (Mode::New, None, false, false);
    let mut max_age = None;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--url" => url = Some(value()?),
            "--rate" => rate = number(&word, &value()?)?,
            "--seconds" => seconds = number(&word, &value()?)?,
            "--connections" => workers = number(&word, &value()?)?,
            "--max-age" => max_age = Some(duration(&word, number(&word, &value()?)?)?),
            "--timeout" => timeout = number(&word, &value()?)?,
            "--until-file" => until_file = Some(value()?.into()),
            "--retry-stale" => retry_stale = true,
            "--json" => json = true,
            "--help" | "-h" => return Ok(None),
            "--mode" => {
                mode = match value()?.as_str() {
                    "new" => Mode::New,
                    "keepalive" => Mode::KeepAlive,
                    "http2" => Mode::Http2,
                    "websocket" => Mode::WebSocket,
                    "udp" => Mode::Udp,
                    other => {
                        return Err(format!("--mode {other}: not new, keepalive, http2, websocket or udp"));
                    }
                }
            }
            other => return Err(format!("{other}: no such option")),
        }
    }
    if rate == 0 || workers == 0 {
        return Err("--rate and --connections must be at least 1".to_owned());
    }
    let options = Options {
        target: Target::parse(&url.ok_or("--url is missing")?)?,
        rate,
        workers,
        mode,
        duration: duration("--seconds", seconds)?,
        until_file,
        retry_stale,
        max_age,
        timeout: duration("--timeout", timeout)?,
    };
    Ok(Some((options, json)))
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option} {text}: not a number"))
}

fn duration(option: &str, seconds: f64) -> Result<Duration, String> {
    let bad = || format!("{option} {seconds}: not a time above zero");
    Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).ok_or_else(bad)
}
