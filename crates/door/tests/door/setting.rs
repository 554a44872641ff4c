//! A door on a free loopback port with two answers that tell what reached them, and a client to go through it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use door::{Answer, Arrival, Authority, Body, BoxError, Door, Drained, Limits, ServicePorts, Side, SideOf};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const RUN: &str = "us-central1-run.googleapis.com";
pub(crate) const SERVICE: &str = "my-api-abcdefghij-uc.a.run.localhost";

/// No step of a test takes longer than this, or the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_secs()
}

pub(crate) fn side() -> SideOf {
    Arc::new(|host: &str| host.ends_with(".a.run.localhost").then_some(Side::Ingress))
}

/// What the answers share with the test.
#[derive(Default)]
pub(crate) struct Hooks {
    /// Lets one request to `/wait` go.
    pub(crate) release: Notify,
    /// Requests to `/wait` that came.
    pub(crate) arrived: Notify,
    /// Requests to `/wait` that were dropped before they were answered.
    pub(crate) abandoned: AtomicUsize,
}

struct Abandoned(Option<Arc<Hooks>>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(hooks) = &self.0 {
            hooks.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn answer(name: &'static str, hooks: &Arc<Hooks>) -> Answer {
    let hooks = Arc::clone(hooks);
    Arc::new(move |arrival, request| {
        let hooks = Arc::clone(&hooks);
        Box::pin(async move { respond(name, &hooks, arrival, request).await })
    })
}

async fn respond(name: &str, hooks: &Arc<Hooks>, arrival: Arrival, request: Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        // each frame goes back as it comes
        "/echo" => {
            let body = request.into_body().map_err(BoxError::from);
            return Response::new(body.boxed_unsync());
        }
        "/count" => {
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                bytes += frame.map_or(0, |frame| frame.data_ref().map_or(0, Bytes::len));
            }
            return Response::new(text(bytes.to_string()));
        }
        "/wait" => {
            let mut guard = Abandoned(Some(Arc::clone(hooks)));
            hooks.arrived.notify_one();
            hooks.release.notified().await;
            guard.0 = None;
        }
        _ => {}
    }
    let lines = request.headers();
    let seen = json!({
        "answered_by": name,
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "host_line": lines.get("host").and_then(|line| line.to_str().ok()),
        "host": arrival.host,
        "secure": arrival.secure,
        "peer": arrival.peer.ip().to_string(),
        "proxy_line": lines.contains_key("proxy-connection"),
    });
    Response::new(text(seen.to_string()))
}

fn text(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) struct Setting {
    pub(crate) dir: TempDir,
    pub(crate) authority: Arc<Authority>,
    pub(crate) address: SocketAddr,
    pub(crate) hooks: Arc<Hooks>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Drained>,
}

impl Setting {
    pub(crate) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::open(&dir.path().join("tls"), now()).expect("an authority");
        let authority = Arc::new(authority);
        let hooks = Arc::new(Hooks::default());
        let door = Arc::new(Door {
            authority: Arc::clone(&authority),
            clock: now,
            side: side(),
            api: answer("api", &hooks),
            ingress: answer("ingress", &hooks),
            service_ports: ServicePorts {
                https: vec![443, 8443],
                http: vec![80, 8081],
            },
            limits,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(door::serve(listener, door, async {
            let _ = stopped.await;
        }));
        Self {
            dir,
            authority,
            address,
            hooks,
            stop,
            served,
        }
    }

    /// Gives the signal; the returned task ends when the door is closed.
    pub(crate) fn stop(self) -> JoinHandle<Drained> {
        self.stop.send(()).expect("the door is serving");
        self.served
    }

    pub(crate) fn proxy(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// Sends `CONNECT` and reads the answer's head: its status and the socket behind it.
    pub(crate) async fn connect(&self, target: &str) -> (u16, TcpStream) {
        let mut socket = self.dial().await;
        let ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        socket.write_all(ask.as_bytes()).await.expect("writes");
        let head = read_head(&mut socket).await;
        let status = head.split(' ').nth(1).expect("a status line");
        (status.parse().expect("a number"), socket)
    }

    /// A tunnel to `host`, with TLS for `name` in it that trusts this door's authority alone.
    pub(crate) async fn tls(&self, host: &str, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let (status, socket) = self.connect(&format!("{host}:443")).await;
        assert_eq!(status, 200);
        let pem = std::fs::read(self.authority.certificate_file()).expect("ca.pem is readable");
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(&pem).expect("pem");
        roots.add(certificate).expect("a trust anchor");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).expect("a DNS name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, socket);
        timeout(PATIENCE, connecting).await.expect("the handshake ends")
    }

    /// An HTTP client inside a tunnel to `host`.
    pub(crate) async fn client(&self, host: &str, version: Version) -> Client {
        let tls = self
            .tls(host, host, &[version.alpn()])
            .await
            .expect("the handshake succeeds");
        let chosen = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(chosen.as_deref(), Some(version.alpn().as_bytes()));
        match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("h1");
                Client::Http1(sender, tokio::spawn(connection))
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
                    .await
                    .expect("h2");
                Client::Http2(sender, tokio::spawn(connection))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Version {
    pub(crate) const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    fn alpn(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

type Running = JoinHandle<hyper::Result<()>>;

pub(crate) enum Client {
    Http1(http1::SendRequest<Body>, Running),
    Http2(http2::SendRequest<Body>, Running),
}

impl Client {
    pub(crate) async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender, _) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender, _) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// `path` of `host` by the form of request that the version has.
    pub(crate) fn request(&self, host: &str, path: &str, body: Body) -> Request<Body> {
        let request = match self {
            Self::Http1(..) => Request::post(path).header("host", host),
            Self::Http2(..) => Request::post(format!("https://{host}{path}")),
        };
        request.body(body).expect("a request")
    }

    pub(crate) async fn ask(&mut self, host: &str, path: &str) -> hyper::Result<(u16, Value)> {
        let request = self.request(host, path, text(String::new()));
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&body).expect("json")))
    }

    /// Drops the connection on the floor.
    pub(crate) fn leave(self) {
        let (Self::Http1(_, running) | Self::Http2(_, running)) = self;
        running.abort();
    }

    /// Waits until the connection has ended.
    pub(crate) async fn ended(self) {
        let (Self::Http1(_, running) | Self::Http2(_, running)) = self;
        let ended = timeout(PATIENCE, running).await;
        let _ = ended.expect("the connection ends").expect("no panic");
    }
}

/// Reads up to the empty line.
pub(crate) async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("the head is whole"));
        }
    };
    timeout(PATIENCE, reading).await.expect("an answer comes");
    String::from_utf8(head).expect("ascii")
}

/// Sends `ask` and reads until the door closes.
pub(crate) async fn exchange(socket: &mut TcpStream, ask: &str) -> String {
    socket.write_all(ask.as_bytes()).await.expect("writes");
    let mut all = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut all))
        .await
        .expect("the door closes")
        .expect("reads");
    String::from_utf8(all).expect("ascii")
}
