//! The standard health check of gRPC: one unary call of `grpc.health.v1.Health/Check`, over HTTP/2 in the clear (with
//! prior knowledge) or over TLS.
//!
//! Source: grpc/doc/health-checking.md, grpc/doc/PROTOCOL-HTTP2.md; the two messages have one field each.

use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::dial::{Driver, Target, connect, told};
use crate::types::GrpcProbe;

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// The answer is two bytes and a prefix of five; a longer one is not one.
const MAX_ANSWER: usize = 4 << 10;
/// Shown of what a server says.
const MAX_MESSAGE: usize = 200;

/// As it is named in messages.
pub fn named(probe: &GrpcProbe) -> String {
    let service = if probe.service.is_empty() { String::new() } else { format!(" of {}", probe.service) };
    let scheme = if probe.tls.is_some() { " over TLS" } else { "" };
    format!("gRPC health{service} on port {}{scheme}", probe.port)
}

/// Runs what a connection of HTTP/2 consists of, and ends it: hyper hands its parts to an executor of its own.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

/// Ends them with the question: a server that reads nothing would keep them, and their descriptor, for ever.
struct Ends(Tasks);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// Asks once.
pub async fn ask(probe: &GrpcProbe, target: &Target<'_>) -> Result<(), String> {
    let scheme = if probe.tls.is_some() { "https" } else { "http" };
    let request = Request::builder()
        .method("POST")
        .uri(format!("{scheme}://{}{METHOD}", target.authority(probe.tls.as_ref())))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, concat!("gitopsd/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(question(&probe.service)))
        .map_err(|error| error.to_string())?;
    let stream = connect(target, probe.tls.as_ref(), b"h2").await?;
    let told = |error: hyper::Error| told(&error, "HTTP/2");
    let tasks = Tasks::default();
    let _ends = Ends(tasks.clone());
    let (mut sender, connection) = http2::handshake(tasks, TokioIo::new(stream)).await.map_err(told)?;
    let _driver = Driver::of(connection);
    let answer = sender.send_request(request).await.map_err(told)?;
    if answer.status() != 200 {
        return Err(format!("status {}: it does not speak gRPC", answer.status().as_u16()));
    }
    judge(answer).await.map_err(|error| error.map_or_else(|text| text, told))
}

/// Either what the server says, or what went wrong on the way.
type Trouble = Result<hyper::Error, String>;

async fn judge(answer: Response<hyper::body::Incoming>) -> Result<(), Trouble> {
    let (head, mut body) = answer.into_parts();
    // A server that refuses a call at once says so in the head.
    outcome(&head.headers).map_err(Err)?;
    let mut message: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(Ok)?.into_data() {
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => outcome(&frame.into_trailers().unwrap_or_default()).map_err(Err)?,
        }
        if message.len() > MAX_ANSWER {
            return Err(Err("the answer is not one of grpc.health.v1.Health".to_owned()));
        }
    }
    match serving_status(&message) {
        Some(1) => Ok(()),
        Some(2) => Err(Err("NOT_SERVING".to_owned())),
        Some(3) => Err(Err("SERVICE_UNKNOWN".to_owned())),
        Some(0) => Err(Err("UNKNOWN".to_owned())),
        _ => Err(Err("the answer is not one of grpc.health.v1.Health".to_owned())),
    }
}

/// The error of a call that is over; a head or trailers without a status are none.
fn outcome(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status").filter(|status| *status != "0") else { return Ok(()) };
    let name = match status {
        "1" => "CANCELLED",
        "4" => "DEADLINE_EXCEEDED",
        "5" => "NOT_FOUND: the server does not know this service",
        "7" => "PERMISSION_DENIED",
        "8" => "RESOURCE_EXHAUSTED",
        "12" => "UNIMPLEMENTED: the server has no grpc.health.v1.Health",
        "13" => "INTERNAL",
        "14" => "UNAVAILABLE",
        "16" => "UNAUTHENTICATED",
        _ => "",
    };
    let said = text("grpc-message").map(percent_encoding::percent_decode_str);
    let said = said.map(|said| said.decode_utf8_lossy().into_owned()).unwrap_or_default();
    let said: String = said.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
    let parts = [format!("grpc-status {status}"), name.to_owned(), said];
    Err(parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(": "))
}

/// `HealthCheckRequest { string service = 1; }`, uncompressed and with its length before it.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

/// The field of `HealthCheckResponse { ServingStatus status = 1; }`: 0 where it is left out. `None`: it is not one.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix.get(1..5)?.try_into().ok()?);
    if prefix.first() != Some(&0) || message.len() != usize::try_from(length).ok()? {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            // Fields of a later version.
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("shop")[..], b"\0\0\0\0\x06\x0a\x04shop");
        let long = question(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02], "300 takes two bytes");
    }

    #[test]
    fn answers() {
        for (bytes, status) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], Some(1)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            (b"\0\0\0\0\0", Some(0)),
            // A later version's fields are passed over.
            (b"\0\0\0\0\x07\x12\x03abc\x08\x01", Some(1)),
            // Compressed, cut short, too long, no protobuf, none at all.
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"\0\0\0\0\x03\x08\x01", None),
            (b"\0\0\0\0\x01\x08\x01", None),
            (b"\0\0\0\0\x02\x0f\x01", None),
            (b"\0\0\0\0\x02\x12\x7f", None),
            (b"\0\0\0\0\x02\x08\xff", None),
            (b"", None),
        ] {
            assert_eq!(serving_status(bytes), status, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_read_without_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = serving_status(&bytes);
        }
    }
}
