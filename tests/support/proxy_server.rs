//! A proxy of http that writes down what it was asked for, and makes tunnels (CONNECT: RFC 9110, section 9.3.6).

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// It ends with the test's process.
pub struct ProxyServer {
    pub port: u16,
    lines: Arc<Mutex<Vec<String>>>,
}

impl ProxyServer {
    /// Whatever name it is asked for, it goes to this port of this machine.
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = lines.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let written = written.clone();
                std::thread::spawn(move || relay(&client, to, &written));
            }
        });
        Self { port, lines }
    }

    /// The request lines so far, and what it was shown that is for the server.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

fn relay(client: &TcpStream, to: u16, written: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    written.lock().unwrap().push(line.trim_end().to_owned());
    if !line.starts_with("CONNECT ") {
        return (&*client).write_all(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n").ok();
    }
    let mut server = TcpStream::connect(("127.0.0.1", to)).ok()?;
    let mut field = String::new();
    while field != "\r\n" {
        field.clear();
        reader.read_line(&mut field).ok()?;
        // What is for the server is none of its business.
        if field.to_ascii_lowercase().starts_with("authorization") {
            written.lock().unwrap().push(field.trim_end().to_owned());
        }
    }
    (&*client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    let (mut answers, mut back) = (server.try_clone().ok()?, client.try_clone().ok()?);
    let answering = std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Write);
    answering.join().ok()
}
