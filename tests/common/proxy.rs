//! A TCP proxy that can be silent, be cut, and drop single messages of an HTTP/2 stream.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: Mutex<Vec<TcpStream>>,
    /// Nothing passes, nothing is closed.
    silent: AtomicBool,
    /// New connections are refused.
    refuse: AtomicBool,
    /// Messages of the server that contain these bytes are lost.
    drop_marked: Mutex<Option<Vec<u8>>>,
    dropped: AtomicUsize,
}

impl Proxy {
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let state = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if state.refuse.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let ends = [client, server];
                state.connections.lock().unwrap().extend(ends.iter().map(|end| end.try_clone().unwrap()));
                let [client, server] = ends;
                let (to_server, from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (up, down) = (state.clone(), state.clone());
                std::thread::spawn(move || up.pass(from_client, to_server));
                std::thread::spawn(move || down.pass_frames(server, client));
            }
        });
        Self { port, shared }
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends all connections; with `refuse`, no new ones are taken.
    pub fn cut(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::Relaxed);
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    pub fn silence(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// From now on messages of the server that contain these bytes are lost.
    pub fn drop_containing(&self, marker: Option<&str>) {
        *self.shared.drop_marked.lock().unwrap() = marker.map(|text| text.as_bytes().to_vec());
    }

    pub fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn wait_while_silent(&self) {
        while self.silent.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.wait_while_silent();
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Passes HTTP/2 frames of the server, except marked DATA frames.
    fn pass_frames(&self, mut from: TcpStream, mut to: TcpStream) {
        let _ = self.try_pass_frames(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn try_pass_frames(&self, from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
        loop {
            let mut header = [0; 9];
            from.read_exact(&mut header)?;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let mut payload = vec![0; length];
            from.read_exact(&mut payload)?;
            self.wait_while_silent();
            let is_data = header[3] == 0;
            let marker = self.drop_marked.lock().unwrap().clone();
            if let Some(marker) = marker
                && is_data
                && payload.windows(marker.len()).any(|window| window == marker)
            {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            to.write_all(&header)?;
            to.write_all(&payload)?;
        }
    }
}
