//! A forge's API as far as commit statuses go: it takes requests down, and answers as it is told.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    pub line: String,
    /// `name: value`, the name in lower case.
    pub fields: Vec<String>,
    pub body: Value,
}

impl Request {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|field| field.strip_prefix(&format!("{name}: ")))
    }
}

/// It ends with the test's process.
pub struct ForgeServer {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    answers: Arc<Mutex<VecDeque<String>>>,
}

impl ForgeServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::new()));
        let (taken, told) = (requests.clone(), answers.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    continue;
                }
                let mut fields = Vec::new();
                loop {
                    let mut field = String::new();
                    reader.read_line(&mut field).unwrap();
                    let Some((name, value)) = field.trim_end().split_once(": ") else { break };
                    fields.push(format!("{}: {value}", name.to_ascii_lowercase()));
                }
                let length = fields.iter().find_map(|field| field.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                reader.read_exact(&mut body).unwrap();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                taken.lock().unwrap().push(Request { line: line.trim_end().to_owned(), fields, body });
                let answer: String =
                    told.lock().unwrap().pop_front().unwrap_or_else(|| "201 Created\r\n|{}".to_owned());
                let (head, body) = answer.split_once('|').unwrap();
                let length = body.len();
                let text =
                    format!("HTTP/1.1 {head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = (&stream).write_all(text.as_bytes());
            }
        });
        Self { port, requests, answers }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The next answer: status line and fields, each with its line end, then `|` and the body.
    pub fn answer(&self, text: &str) {
        self.answers.lock().unwrap().push_back(text.to_owned());
    }
}
