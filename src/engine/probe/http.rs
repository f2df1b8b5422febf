//! A health check over HTTP/1.1, with or without TLS (RFC 9112): the status, and what the body contains.

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::dial::{Driver, Target, connect, told};
use crate::types::HttpProbe;

/// What is read of a body. Health pages are short; one that is not is looked at no further.
pub(super) const MAX_BODY: usize = 64 << 10;
/// What is read of an answer's head.
const MAX_HEAD: usize = 64 << 10;
/// Sent by all requests that name none.
const AGENT: &str = concat!("gitopsd/", env!("CARGO_PKG_VERSION"));

/// As it is named in messages: `GET /healthz on port 8080`.
pub fn named(probe: &HttpProbe) -> String {
    let scheme = if probe.tls.is_some() { " over TLS" } else { "" };
    format!("{} {} on port {}{scheme}", probe.method.word(), probe.path, probe.port)
}

/// Asks once. Redirects are not followed: 3xx is an answer.
pub async fn ask(probe: &HttpProbe, target: &Target<'_>) -> Result<(), String> {
    let request = request(probe, target)?;
    let stream = connect(target, probe.tls.as_ref(), b"http/1.1").await?;
    let told = |error: hyper::Error| told(&error, "HTTP/1");
    let mut builder = http1::Builder::new();
    // As browsers write them: there are servers that know no other spelling.
    builder.max_buf_size(MAX_HEAD).title_case_headers(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(told)?;
    let _driver = Driver::of(connection);
    let answer = sender.send_request(request).await.map_err(told)?;
    let status = answer.status().as_u16();
    let well = match probe.status.as_slice() {
        [] => (200..=399).contains(&status),
        ranges => ranges.iter().any(|range| range.contains(status)),
    };
    if !well {
        return Err(format!("status {status}"));
    }
    match &probe.contains {
        None => Ok(()),
        Some(wanted) => match contains(answer, wanted.as_bytes()).await {
            true => Ok(()),
            false => Err(format!("status {status}, and the body does not contain `{wanted}`")),
        },
    }
}

/// A path with a line break could smuggle in headers; the configuration refuses it, and so does this.
fn request(probe: &HttpProbe, target: &Target<'_>) -> Result<Request<Empty<Bytes>>, String> {
    let wrong = "the path is not one that HTTP can carry";
    if !probe.path.starts_with('/') || probe.path.chars().any(|c| c.is_control() || c == ' ') {
        return Err(wrong.to_owned());
    }
    let mut request = Request::builder()
        .method(probe.method.word())
        .uri(probe.path.as_str())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|_| wrong.to_owned())?;
    let host = HeaderValue::from_str(&target.authority(probe.tls.as_ref()));
    request.headers_mut().insert(HOST, host.map_err(|error| error.to_string())?);
    for (name, value) in &probe.headers {
        let header = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
        let (name, value) =
            header.ok_or_else(|| format!("header `{name}` is not one that HTTP can carry"))?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

/// Whether the body's beginning contains `wanted`. It need not end: what streams is answered as soon as it is there.
async fn contains(answer: Response<Incoming>, wanted: &[u8]) -> bool {
    let mut body = answer.into_body();
    let mut seen: Vec<u8> = Vec::new();
    while seen.len() < MAX_BODY {
        // What ends without a goodbye (TLS servers do) has ended all the same.
        let Some(Ok(frame)) = body.frame().await else { break };
        let Ok(data) = frame.into_data() else { continue };
        let from = seen.len().saturating_sub(wanted.len());
        let room = MAX_BODY.saturating_sub(seen.len());
        seen.extend_from_slice(data.get(..room).unwrap_or(&data));
        let fresh = seen.get(from..).unwrap_or_default();
        if fresh.windows(wanted.len().max(1)).any(|part| part == wanted) {
            return true;
        }
    }
    wanted.is_empty()
}
