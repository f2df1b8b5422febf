//! A way to the registry that can be made to hang, or to break, for the bytes of images alone: their names are known.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const PASS: u8 = 0;
const HANG: u8 = 1;
const CUT: u8 = 2;

/// The line; it ends with the test's process.
pub struct Line {
    pub port: u16,
    mode: Arc<AtomicU8>,
}

impl Line {
    pub fn to(registry: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(PASS));
        let shared = mode.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mode = shared.clone();
                std::thread::spawn(move || relay(client, registry, &mode));
            }
        });
        Self { port, mode }
    }

    /// Everything goes through.
    pub fn pass(&self) {
        self.mode.store(PASS, Ordering::SeqCst);
    }

    /// Requests of blobs are not answered until it passes again.
    pub fn hang(&self) {
        self.mode.store(HANG, Ordering::SeqCst);
    }

    /// Requests of blobs break the connection.
    pub fn cut(&self) {
        self.mode.store(CUT, Ordering::SeqCst);
    }
}

fn relay(mut client: TcpStream, registry: u16, mode: &AtomicU8) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", registry)) else { return };
    let (mut back, mut answers) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut buffer = [0; 16 << 10];
    // A request of this client fits one read.
    while let Ok(count) = client.read(&mut buffer) {
        let request = &buffer[..count];
        let of_blob = request.windows(7).any(|bytes| bytes == b"/blobs/");
        while of_blob && mode.load(Ordering::SeqCst) == HANG {
            std::thread::sleep(Duration::from_millis(20));
        }
        if count == 0 || (of_blob && mode.load(Ordering::SeqCst) == CUT) || server.write_all(request).is_err()
        {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
