//! The HTTP endpoint of `--metrics-address`. Must never show anything but the page that it is given, and never let its
//! clients take more than its bounds, whatever they do: a request that is late, large or unknown is answered briefly or
//! not at all.
//!
//! One request is one connection. If too many are open, the oldest is closed: who scrapes is done long before, and who
//! holds connections open keeps nobody else out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};

use crate::alive;
use crate::error::Result;

/// The most open connections: each takes a descriptor, and a buffer for its head.
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a connection lasts, however slowly the client reads. Prometheus waits for ten seconds.
const WHOLE_TIME: Duration = Duration::from_secs(20);
/// The largest head of a request, in bytes: what browsers and proxies send is less.
const HEAD_BYTES: usize = 16 << 10;
/// The most headers.
const HEADERS: usize = 64;
/// Pause after an accept that has failed: no descriptors are left, for example.
const PAUSE: Duration = Duration::from_millis(100);
/// Making the page takes at most one part in so many of the time, however many clients ask.
const SHARE: u32 = 4;
/// What the server shows.
const PATH: &str = "/metrics";

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsAddress(SocketAddr);

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    /// Without an address the port is one of this host alone.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
        if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            let port = port.parse().map_err(|_| format!("{port} is no port: they end at {}", u16::MAX))?;
            return Ok(Self((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self).map_err(|_| "must be PORT, ADDRESS:PORT or [IPV6-ADDRESS]:PORT".to_owned())
    }
}

/// Makes the page. Asks no service.
pub type Page = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Bytes>> + Send>> + Send + Sync>;

/// A server that answers nobody yet.
#[derive(Debug)]
pub struct Listening {
    listener: std::net::TcpListener,
    address: SocketAddr,
}

/// A server that answers until this is dropped.
#[derive(Debug)]
pub struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Listening {
    /// Takes the address.
    pub fn at(MetricsAddress(wanted): MetricsAddress) -> io::Result<Self> {
        let taken = std::net::TcpListener::bind(wanted).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(Self { address: listener.local_addr()?, listener })
        });
        taken.map_err(|error| io::Error::new(error.kind(), format!("--metrics-address {wanted}: {error}")))
    }

    /// Answers from now on. The page has this media type.
    pub fn serve(self, page: Page, media_type: &'static str) -> io::Result<Serving> {
        let listener = Arc::new(TcpListener::from_std(self.listener)?);
        tracing::info!("the metrics are at http://{}{PATH}", self.address);
        let is_for_us = self.address.ip().to_canonical().is_loopback();
        let server = Arc::new(Server { page, media_type, is_for_us, made: Mutex::default() });
        // After a panic the connections are gone, and new ones are answered.
        let serving = alive::restarted("the endpoint of the metrics", move || accept(listener.clone(), server.clone()));
        Ok(Serving(tokio::spawn(serving).abort_handle()))
    }
}

/// Takes connections for ever. They end with this.
async fn accept(listener: Arc<TcpListener>, server: Arc<Server>) {
    let (mut tasks, mut open) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a client of the metrics cannot be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS {
            open.pop_front().iter().for_each(AbortHandle::abort);
        }
        // Only a task that has ended has given its descriptor back: a burst of clients comes faster than tasks end.
        while tasks.len() >= CONNECTIONS {
            tasks.join_next().await;
        }
        open.push_back(tasks.spawn(server.clone().connection(stream)));
    }
}

/// What all connections share.
struct Server {
    page: Page,
    media_type: &'static str,
    /// Whether only this host comes here.
    is_for_us: bool,
    /// The page, and until when it counts.
    made: Mutex<Option<(Instant, Bytes)>>,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let answer = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(&request).await) }
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), answer);
        // Whatever goes wrong is the client's.
        let _ = tokio::time::timeout(WHOLE_TIME, connection).await;
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if self.is_for_us && !names_this_host(request) {
            return brief(StatusCode::MISDIRECTED_REQUEST, "not for another host\n");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let refused = brief(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            return with(refused, ALLOW, "GET, HEAD");
        }
        if request.uri().path() != PATH {
            return brief(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
        }
        match self.page().await {
            Ok(page) => with(Response::new(Full::new(page)), CONTENT_TYPE, self.media_type),
            Err(error) => {
                tracing::warn!(%error, "the metrics cannot be shown");
                brief(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be shown: see the log\n")
            }
        }
    }

    async fn page(&self) -> Result<Bytes> {
        let mut made = self.made.lock().await;
        if let Some((_, page)) = made.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return Ok(page.clone());
        }
        let begun = Instant::now();
        let page = (self.page)().await?;
        *made = Some((Instant::now() + begun.elapsed() * (SHARE - 1), page.clone()));
        Ok(page)
    }
}

/// Whether a request asks for this host by an address, or as localhost. A name that leads here is perhaps one that
/// somebody else has pointed here, to read this page by the browser of a user of this host.
fn names_this_host(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    host.or_else(|| request.uri().authority().map(|authority| authority.as_str())).is_none_or(is_this_host)
}

fn is_this_host(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn brief(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn with(mut response: Response<Full<Bytes>>, name: HeaderName, value: &'static str) -> Response<Full<Bytes>> {
    let headers = response.headers_mut();
    headers.insert(name, HeaderValue::from_static(value));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many connections to a port have been accepted and not been closed: those that wait have no inode.
    fn accepted(port: u16) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let of_port = format!("0100007F:{port:04X} ");
        let established = |line: &&str| line.contains(&format!(": {of_port}")) && line.contains(" 01 ");
        table.lines().filter(established).filter(|line| line.split_whitespace().nth(9) != Some("0")).count()
    }

    #[tokio::test]
    async fn a_burst_of_clients_does_not_open_more_connections_than_there_may_be() {
        let Listening { listener, address } = Listening::at("0".parse().unwrap()).unwrap();
        let listener = Arc::new(TcpListener::from_std(listener).unwrap());
        let page: Page = Arc::new(|| Box::pin(async { Ok(Bytes::new()) }));
        let server = Server { page, media_type: "text/plain", is_for_us: true, made: Mutex::default() };
        // They wait to be accepted, all at once.
        let clients: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let mut accepting = Box::pin(accept(listener, Arc::new(server)));
        let (begun, mut most) = (Instant::now(), 0);
        while most < CONNECTIONS {
            assert!(begun.elapsed() < Duration::from_secs(30), "{most} of {} are open", clients.len());
            // Tasks run between two polls, never within one.
            std::future::poll_fn(|context| {
                assert!(accepting.as_mut().poll(context).is_pending(), "connections are taken for ever");
                std::task::Poll::Ready(())
            })
            .await;
            most = most.max(accepted(address.port()));
            tokio::task::yield_now().await;
        }
        assert!(most <= CONNECTIONS + 1, "{most} are open at once");
    }

    #[test]
    fn a_port_alone_is_one_of_this_host() {
        let address = |text: &str| text.parse::<MetricsAddress>().map(|address| address.to_string());
        for (text, expected) in [
            ("9177", "127.0.0.1:9177"),
            (":9177", "127.0.0.1:9177"),
            ("localhost:9177", "127.0.0.1:9177"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:9177", "0.0.0.0:9177"),
            ("[::]:9177", "[::]:9177"),
            ("[::1]:9177", "[::1]:9177"),
            ("192.0.2.1:9177", "192.0.2.1:9177"),
        ] {
            assert_eq!(address(text), Ok(expected.to_owned()), "{text}");
        }
        for wrong in
            ["", ":", "65536", ":x", "127.0.0.1", "::1", "::1:9177", "example.com:9177", "9177/metrics", "-1", "*:9177"]
        {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_addresses_and_localhost_are_this_host() {
        for ours in ["127.0.0.1:9177", "127.0.0.1", "localhost:9177", "LOCALHOST", "[::1]:9177", "192.0.2.1:80"] {
            assert!(is_this_host(ours), "{ours}");
        }
        for theirs in ["example.com:9177", "localhost.example.com", "", ":9177", "127.0.0.1.example.com", "[x]:1"] {
            assert!(!is_this_host(theirs), "{theirs}");
        }
    }
}
