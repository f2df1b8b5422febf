//! One request of HTTP/1.1 (RFC 9112): its head, and its body's bytes on their way through the signature. One request a
//! connection; no part of the body is kept.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::pace::Pace;
use super::signature::{Claims, Secret, Verifier};

/// Largest head. Forges send about 1 KiB.
const MAX_HEAD: usize = 16 << 10;

/// Most header fields.
const MAX_FIELDS: usize = 64;

/// Largest body: what GitHub's are capped at, the largest of all forges' (docs.github.com, "Webhook events and payloads").
pub(super) const MAX_BODY: u64 = 25 << 20;

/// What a request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its signature is right.
    Accepted,
    /// It is no HTTP.
    Malformed,
    /// It bears no signature.
    Unsigned,
    /// Its signature is not of this secret.
    Forged,
    /// It is no POST.
    NotPost,
    /// It does not say how long its body is.
    NoLength,
    /// Its body is too long.
    TooLarge,
    /// Its head is too long.
    LongHead,
    /// It took too long, or too many others came meanwhile.
    Slow,
    /// The host cannot read its own secret.
    NoSecret,
}

impl Answer {
    fn status(self) -> &'static str {
        match self {
            Self::Accepted => "202 Accepted",
            Self::Malformed => "400 Bad Request",
            Self::Unsigned => "401 Unauthorized",
            Self::Forged => "403 Forbidden",
            Self::NotPost => "405 Method Not Allowed\r\nAllow: POST",
            Self::NoLength => "411 Length Required",
            Self::TooLarge => "413 Content Too Large",
            Self::LongHead => "431 Request Header Fields Too Large",
            Self::Slow => "408 Request Timeout",
            Self::NoSecret => "503 Service Unavailable",
        }
    }

    /// For the log, and for the body of the answer.
    pub fn why(self) -> &'static str {
        match self {
            Self::Accepted => "looking",
            Self::Malformed => "it is no request of HTTP/1.1",
            Self::Unsigned => "it bears no signature (is a secret set where the webhook was made?)",
            Self::Forged => "its signature is not made with the secret of this host",
            Self::NotPost => "only POST is taken",
            Self::NoLength => "it has no Content-Length",
            Self::TooLarge => "its body is longer than 25 MiB",
            Self::LongHead => "its head is longer than 16 KiB, or has more than 64 fields",
            Self::Slow => "it took too long",
            Self::NoSecret => "this host cannot read the secret (webhook.secret_file)",
        }
    }
}

/// What the head says.
struct Head {
    claims: Claims,
    length: u64,
    /// The client waits for a word before it sends the body (RFC 9110, section 10.1.1).
    waits: bool,
}

/// Reads a request to its end, and judges it. What needs no body is judged without one.
///
/// # Errors
/// The client is gone.
pub(super) async fn judge(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    secrets: &[Secret],
    pace: &Pace,
) -> std::io::Result<Answer> {
    let mut buffer = Vec::with_capacity(2048);
    let end = loop {
        let seen = buffer.len().saturating_sub(3);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(Answer::Malformed);
        }
        if let Some(at) = buffer[seen..].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break seen + at + 4;
        }
        if buffer.len() > MAX_HEAD {
            return Ok(Answer::LongHead);
        }
    };
    let (head, first) = buffer.split_at(end);
    let head = match parse(head) {
        Ok(head) => head,
        Err(answer) => return Ok(answer),
    };
    let mut verifier = Verifier::new(&head.claims, secrets);
    if head.waits && first.is_empty() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let mut left = head.length;
    let first = &first[..first.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
    verifier.update(first);
    left -= first.len() as u64;
    let mut chunk = vec![0; 16 << 10];
    while left > 0 {
        let most = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = stream.read(&mut chunk[..most]).await?;
        if count == 0 {
            return Ok(Answer::Malformed);
        }
        pace.take(count as u64).await;
        verifier.update(&chunk[..count]);
        left -= count as u64;
    }
    Ok(if verifier.holds() { Answer::Accepted } else { Answer::Forged })
}

fn parse(bytes: &[u8]) -> Result<Head, Answer> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Answer::LongHead),
        Ok(httparse::Status::Partial) | Err(_) => return Err(Answer::Malformed),
    }
    if request.method != Some("POST") {
        return Err(Answer::NotPost);
    }
    let values = |name: &str| -> Vec<&[u8]> {
        let named = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect()
    };
    // A body whose end two readers could see at two places is nobody's (RFC 9112, section 6.3).
    if !values("transfer-encoding").is_empty() {
        return Err(Answer::NoLength);
    }
    let length = match values("content-length").as_slice() {
        [] => return Err(Answer::NoLength),
        [one] => length(one).ok_or(Answer::Malformed)?,
        _ => return Err(Answer::Malformed),
    };
    if length > MAX_BODY {
        return Err(Answer::TooLarge);
    }
    let claims = Claims::read(|name| match values(name).as_slice() {
        [one] => Some(one),
        _ => None,
    });
    if claims.is_empty() {
        return Err(Answer::Unsigned);
    }
    let waits = values("expect").iter().any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    Ok(Head { claims, length, waits })
}

/// Digits alone: no sign, no spaces.
fn length(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    digits.then(|| text.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Answers, and ends the connection in a way that lets the answer arrive.
pub(super) async fn say(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: Answer,
) -> std::io::Result<()> {
    let (status, text) = (answer.status(), answer.why());
    let length = text.len() + 1;
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What the client still sends is thrown away: closing on unread bytes would reset the connection, and take the answer
    // along (RFC 9112, section 9.6). Not for long, and not much of it.
    let mut rest = vec![0; 4 << 10];
    let mut most = 64;
    while most > 0 && stream.read(&mut rest).await? > 0 {
        most -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &str) -> Result<u64, Answer> {
        let text = format!("POST /hook HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        parse(text.as_bytes()).map(|head| head.length)
    }

    #[test]
    fn heads() {
        let token = "X-Gitlab-Token: t\r\n";
        let with = |fields: &str| head(&format!("{token}{fields}"));
        assert_eq!(with("Content-Length: 12\r\n"), Ok(12));
        assert_eq!(with("content-length: 0\r\n"), Ok(0));
        assert_eq!(with(&format!("Content-Length: {MAX_BODY}\r\n")), Ok(MAX_BODY));
        assert_eq!(with(&format!("Content-Length: {}\r\n", MAX_BODY + 1)), Err(Answer::TooLarge));
        for bad in ["-1", "+1", "1 2", "", "0x10", "99999999999999999999", "1,1"] {
            assert_eq!(with(&format!("Content-Length: {bad}\r\n")), Err(Answer::Malformed), "{bad}");
        }
        assert_eq!(with("Content-Length: 1\r\nContent-Length: 1\r\n"), Err(Answer::Malformed));
        assert_eq!(with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), Err(Answer::NoLength));
        assert_eq!(with(""), Err(Answer::NoLength));
        assert_eq!(head("Content-Length: 1\r\n"), Err(Answer::Unsigned));
        // Two of a kind: which one counts would be anybody's guess.
        assert_eq!(with(&format!("{token}Content-Length: 1\r\n")), Err(Answer::Unsigned));
        assert_eq!(with(&"X-A: b\r\n".repeat(80)), Err(Answer::LongHead));
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(parse(get.as_bytes()).err(), Some(Answer::NotPost));
        for bad in ["\r\n\r\n", "POST\r\n\r\n", "POST / HTTP/2.0\r\n\r\n", "POST / HTTP/1.1\r\nA b\r\n\r\n"] {
            assert_eq!(parse(bad.as_bytes()).err(), Some(Answer::Malformed), "{bad:?}");
        }
    }
}
