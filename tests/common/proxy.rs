//! A TCP proxy that can be silent, be cut, and drop single messages of an HTTP/2 stream.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::chance::Chance;

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: Mutex<Vec<TcpStream>>,
    /// Nothing passes, nothing is closed.
    silent: AtomicBool,
    /// How late the answers of the server are, in milliseconds.
    late: AtomicUsize,
    /// How many bytes of the server pass in a second on each connection; 0: all that come.
    pace: AtomicUsize,
    /// After so many more bytes of the server, nothing passes any more; 0: never.
    stop_after: AtomicUsize,
    /// New connections are refused.
    refuse: AtomicBool,
    /// Messages of the server that contain these bytes are lost.
    drop_marked: Mutex<Option<Vec<u8>>>,
    dropped: AtomicUsize,
    /// What stands in the place of some bytes in messages of the server, as long as they are.
    forged: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// So many of a hundred events of a ZooKeeper's watches are lost.
    lost_events: AtomicUsize,
    /// The server is a ZooKeeper: its messages are passed one by one.
    is_zookeeper: bool,
    /// How often each of these stands in what the client has sent, or the server has answered.
    counted: Mutex<Vec<(Vec<u8>, isize)>>,
    count: AtomicIsize,
    /// Bytes passed, in both directions.
    bytes: AtomicUsize,
    /// The server speaks HTTP/1: bytes are passed as they come.
    plain: bool,
    /// What happens to the next request that contains these bytes.
    trap: Mutex<Option<Trap>>,
}

struct Trap {
    marker: Vec<u8>,
    /// Whether the server gets it.
    deliver: bool,
    /// What is done then, before the connection ends without an answer.
    then: Box<dyn FnOnce() + Send>,
}

impl Proxy {
    /// In front of an HTTP/2 server.
    pub fn start(target: u16) -> Self {
        Self::with(target, Shared::default())
    }

    /// In front of an HTTP/1 server. Adds up a number for each time that a text passes, in either direction.
    pub fn counting(target: u16, texts: &[(&str, isize)]) -> Self {
        let counted = texts.iter().map(|(text, number)| (text.as_bytes().to_vec(), *number)).collect();
        Self::with(target, Shared { counted: Mutex::new(counted), plain: true, ..Shared::default() })
    }

    /// In front of a ZooKeeper.
    pub fn zookeeper(target: u16) -> Self {
        Self::with(target, Shared { is_zookeeper: true, ..Shared::default() })
    }

    /// In front of any server.
    pub fn plain(target: u16) -> Self {
        Self::with(target, Shared { plain: true, ..Shared::default() })
    }

    fn with(target: u16, shared: Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(shared);
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
                std::thread::spawn(move || up.pass(from_client, to_server, true));
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

    /// From now on the answers of the server come so late, if it is any server.
    pub fn delay(&self, delay: Duration) {
        self.shared.late.store(delay.as_millis() as usize, Ordering::Relaxed);
    }

    /// From now on so many bytes of the server pass in a second on each connection; 0: all that come.
    pub fn slow_down(&self, bytes: usize) {
        self.shared.pace.store(bytes, Ordering::Relaxed);
    }

    /// Becomes silent when so many more bytes of the server have passed.
    pub fn silence_after(&self, bytes: usize) {
        self.shared.stop_after.store(bytes, Ordering::Relaxed);
    }

    pub fn silence(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// From now on messages of the server that contain these bytes are lost: of a ZooKeeper, events only.
    pub fn drop_containing(&self, marker: Option<&str>) {
        *self.shared.drop_marked.lock().unwrap() = marker.map(|text| text.as_bytes().to_vec());
    }

    /// From now on other bytes stand in the place of these in messages of the server. They must be as many.
    pub fn forge(&self, bytes: &[u8], others: &[u8]) {
        assert_eq!(bytes.len(), others.len());
        *self.shared.forged.lock().unwrap() = Some((bytes.to_vec(), others.to_vec()));
    }

    /// From now on the server's messages are its own again.
    pub fn be_honest(&self) {
        *self.shared.forged.lock().unwrap() = None;
    }

    /// From now on so many of a hundred events of watches are lost, chosen by chance.
    pub fn lose_events(&self, percent: usize) {
        self.shared.lost_events.store(percent, Ordering::Relaxed);
    }

    /// The next request that contains these bytes gets no answer: the connection ends. The server gets it or not, and
    /// then something is done before the end.
    pub fn lose_request(&self, marker: &str, deliver: bool, then: impl FnOnce() + Send + 'static) {
        let trap = Trap { marker: marker.as_bytes().to_vec(), deliver, then: Box::new(then) };
        *self.shared.trap.lock().unwrap() = Some(trap);
    }

    /// Whether the request that was to be lost has come.
    pub fn has_lost(&self) -> bool {
        self.shared.trap.lock().unwrap().is_none()
    }

    pub fn count(&self) -> isize {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Bytes passed so far, in both directions.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::SeqCst)
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

    /// Bytes of the server are about to pass.
    fn slow(&self, bytes: usize) {
        let pace = self.pace.load(Ordering::Relaxed);
        if pace > 0 {
            std::thread::sleep(Duration::from_secs_f64(bytes as f64 / pace as f64));
        }
        let left = self.stop_after.load(Ordering::Relaxed);
        if left > 0 {
            let after = left.saturating_sub(bytes);
            self.stop_after.store(after, Ordering::Relaxed);
            if after == 0 {
                self.silent.store(true, Ordering::Relaxed);
            }
        }
        self.wait_while_silent();
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, up: bool) {
        let mut buffer = vec![0; 64 << 10];
        let mut seen: Vec<u8> = Vec::new();
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.wait_while_silent();
            if !up {
                std::thread::sleep(Duration::from_millis(self.late.load(Ordering::Relaxed) as u64));
                self.slow(count);
            }
            if up && self.is_lost(&buffer[..count], &mut to) {
                break;
            }
            self.bytes.fetch_add(count, Ordering::SeqCst);
            self.add_up(&mut seen, &buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Whether these bytes get no answer.
    fn is_lost(&self, bytes: &[u8], to: &mut TcpStream) -> bool {
        let mut trap = self.trap.lock().unwrap();
        let Some(Trap { deliver, then, .. }) =
            trap.take_if(|trap| bytes.windows(trap.marker.len()).any(|window| window == trap.marker))
        else {
            return false;
        };
        drop(trap);
        self.silent.store(true, Ordering::Relaxed);
        if deliver {
            let _ = to.write_all(bytes);
        }
        then();
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.silent.store(false, Ordering::Relaxed);
        true
    }

    /// Counts texts that end in the new bytes; they may have begun in earlier ones.
    fn add_up(&self, seen: &mut Vec<u8>, new: &[u8]) {
        let before = seen.len();
        seen.extend_from_slice(new);
        let counted = self.counted.lock().unwrap();
        for (text, number) in counted.iter() {
            let ends =
                seen.windows(text.len()).enumerate().filter(|(at, window)| window == text && at + text.len() > before);
            self.count.fetch_add(number * ends.count() as isize, Ordering::SeqCst);
        }
        let longest = counted.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
        seen.drain(..seen.len().saturating_sub(longest));
    }

    /// Passes HTTP/2 frames of the server, except marked DATA frames.
    fn pass_frames(&self, mut from: TcpStream, mut to: TcpStream) {
        if self.plain {
            return self.pass(from, to, false);
        }
        let _ = match self.is_zookeeper {
            true => self.try_pass_messages(&mut from, &mut to),
            false => self.try_pass_frames(&mut from, &mut to),
        };
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Passes messages of a ZooKeeper, except lost events of watches.
    fn try_pass_messages(&self, from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
        /// The number of the request that an event answers: none.
        const EVENT: [u8; 4] = (-1_i32).to_be_bytes();
        // The answer to the first request has no number.
        let (mut is_first, mut chance) = (true, Chance(1));
        loop {
            let mut length = [0; 4];
            from.read_exact(&mut length)?;
            let mut message = vec![0; u32::from_be_bytes(length) as usize];
            from.read_exact(&mut message)?;
            self.slow(length.len() + message.len());
            let is_event = !std::mem::take(&mut is_first) && message.starts_with(&EVENT);
            let is_unlucky = chance.below(100) < self.lost_events.load(Ordering::Relaxed);
            if is_event && (is_unlucky || self.is_marked(&message)) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            to.write_all(&[&length[..], &message].concat())?;
            self.bytes.fetch_add(length.len() + message.len(), Ordering::SeqCst);
        }
    }

    fn is_marked(&self, message: &[u8]) -> bool {
        let marker = self.drop_marked.lock().unwrap();
        marker.as_ref().is_some_and(|marker| message.windows(marker.len()).any(|window| window == marker))
    }

    fn forge(&self, message: &mut [u8]) {
        if let Some((bytes, others)) = &*self.forged.lock().unwrap()
            && let Some(place) = message.windows(bytes.len()).position(|window| window == bytes)
        {
            message[place..place + others.len()].copy_from_slice(others);
            self.count.fetch_add(1, Ordering::SeqCst);
        }
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
            if is_data {
                self.forge(&mut payload);
            }
            if is_data && self.is_marked(&payload) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.slow(header.len() + payload.len());
            to.write_all(&header)?;
            to.write_all(&payload)?;
            self.bytes.fetch_add(header.len() + payload.len(), Ordering::SeqCst);
        }
    }
}
