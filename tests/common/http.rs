//! A server of HTTP/1 that answers what a test tells it to: by itself, or as a real server behind it does.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a client has sent.
pub struct Request {
    /// `GET /v1/...`
    pub line: String,
    pub head: String,
    pub body: Vec<u8>,
}

pub enum Reply {
    /// As the server behind answers.
    Pass,
    /// The same, with one more header.
    PassWith(&'static str),
    /// The line of the status, headers, and the body.
    Answer(&'static str, String, Vec<u8>),
}

pub struct Http {
    pub port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Http {
    /// In front of a server.
    pub fn before(target: u16, decide: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (decide, requests) = (Arc::new(decide), Arc::new(Mutex::new(Vec::new())));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (decide, seen) = (decide.clone(), seen.clone());
                std::thread::spawn(move || serve(client, target, &*decide, &seen));
            }
        });
        Self { port, requests }
    }

    /// Without one.
    pub fn alone(decide: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::before(0, decide)
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The first line and the headers of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// One connection: requests one after the other, until one is passed on.
fn serve(
    mut client: TcpStream,
    target: u16,
    decide: &(impl Fn(&Request) -> Reply + ?Sized),
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    loop {
        let request = read(&mut client)?;
        seen.lock().unwrap().push(request.head.clone());
        let more = match decide(&request) {
            Reply::Answer(status, headers, body) => {
                let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
                client.write_all(head.as_bytes()).ok()?;
                client.write_all(&body).ok()?;
                continue;
            }
            Reply::Pass => String::new(),
            Reply::PassWith(header) => format!("{header}\r\n"),
        };
        let mut server = TcpStream::connect(("127.0.0.1", target)).ok()?;
        let (line, rest) = request.head.split_once("\r\n")?;
        server.write_all(format!("{line}\r\nConnection: close\r\n{rest}").as_bytes()).ok()?;
        server.write_all(&request.body).ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        let end = answer.windows(2).position(|bytes| bytes == b"\r\n")? + 2;
        client.write_all(&[&answer[..end], more.as_bytes(), &answer[end..]].concat()).ok()?;
        client.shutdown(Shutdown::Both).ok()?;
        return Some(());
    }
}

fn read(client: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    let line = head.lines().next()?.trim_end_matches(" HTTP/1.1").to_owned();
    Some(Request { line, head, body })
}

/// A port where somebody listens, says nothing, and notes what comes.
pub struct Listener {
    pub port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Listener {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = heard.clone();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let all = all.clone();
                all.lock().unwrap().extend(b"connected: ");
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = client.read(&mut buffer) {
                        all.lock().unwrap().extend(&buffer[..count]);
                    }
                });
            }
        });
        Self { port, heard }
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Everything that has come, by whatever connections; empty if there were none.
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }
}
