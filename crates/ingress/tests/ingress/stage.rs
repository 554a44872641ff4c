//! What the cases play on: one ingress on real ports, real servers as instances, real clients.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use capacity::{Endpoint, Endpoints, RevisionEndpoints};
use homerun_ingress::{
    Ingress, Inputs, Instances, Invokers,
    listen::{self, Limits, Listening, Ports},
};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::{
    Activity, Binding, Concurrency, Container, Fate, INVOKER_ROLE, InstanceId, Member, Percent, Policy, Port,
    ProjectId, Protocol, Region, RequestRecord, RequestTimeout, Resources, Revision, RevisionKey, RevisionName,
    RevisionState, RevisionTemplate, Role, RouteTable, Routed, RoutedTarget, Scaling, Scheme, Service, ServiceKey,
    ServiceName, Site, Tag, Timestamp, Traffic,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::ServerName};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type TestBody = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) const OWNER: &str = "owner@example.com";
pub(crate) const VIAS: [Via; 4] = [Via::Http1, Via::H2c, Via::Tls1, Via::Tls2];

pub(crate) fn full(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> TestBody {
    full(Bytes::new())
}

pub(crate) fn id(number: u8) -> InstanceId {
    InstanceId::new([number; 12])
}

/// Of every revision of the stage's one service.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) concurrency: u32,
    pub(crate) timeout: u32,
    pub(crate) protocol: Protocol,
    pub(crate) invokers: Vec<Member>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 80,
            timeout: 30,
            protocol: Protocol::Http1,
            invokers: vec![Member::AllUsers],
        }
    }
}

#[derive(Default)]
struct Seen {
    records: Mutex<Vec<RequestRecord>>,
    activity: Mutex<Vec<(InstanceId, Activity)>>,
    servers: Mutex<HashMap<InstanceId, SocketAddr>>,
    fates: Mutex<HashMap<InstanceId, Fate>>,
    wakes: AtomicUsize,
}

pub(crate) struct Stage {
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) site: Site,
    listening: Option<Listening>,
    routes: watch::Sender<Arc<RouteTable>>,
    endpoints: watch::Sender<Arc<Endpoints>>,
    seen: Arc<Seen>,
    roots: RootCertStore,
    _follower: tokio::task::JoinHandle<()>,
}

fn certificate() -> (RootCertStore, ServerConfig) {
    let names = vec!["*.a.run.localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a key that fits");
    (roots, config)
}

fn key() -> ServiceKey {
    ServiceKey {
        region: Region::parse("us-central1").expect("a region"),
        name: ServiceName::parse("hello").expect("a name"),
    }
}

pub(crate) fn revision_key(name: &str) -> RevisionKey {
    RevisionKey {
        service: key(),
        name: RevisionName::parse(name).expect("a name"),
    }
}

impl Stage {
    pub(crate) fn set() -> Self {
        Self::set_with(Limits::default())
    }

    pub(crate) fn set_with(limits: Limits) -> Self {
        let (routes, routes_receiver) = watch::channel(Arc::new(RouteTable::default()));
        let (endpoints, endpoints_receiver) = watch::channel(Arc::new(Endpoints::default()));
        let seen = Arc::new(Seen::default());
        let (connecting, told, asked) = (seen.clone(), seen.clone(), seen.clone());
        let (recorded, woken) = (seen.clone(), seen.clone());
        let ingress = Ingress::new(Inputs {
            routes: routes_receiver,
            endpoints: endpoints_receiver,
            instances: Instances {
                connect: Box::new(move |id| {
                    let addr = connecting.servers.lock().expect("lock")[id];
                    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
                    match socket.connect(&addr.into()) {
                        Err(error) if error.raw_os_error() != Some(115) => Err(error),
                        _ => Ok(socket.into()),
                    }
                }),
                activity: Box::new(move |id, activity| {
                    let mut list = told.activity.lock().expect("lock");
                    list.push((id.clone(), activity));
                }),
                fate: Box::new(move |id| {
                    let fates = asked.fates.lock().expect("lock");
                    fates.get(id).copied().unwrap_or(Fate::Alive)
                }),
            },
            invokers: Invokers {
                check: Box::new(|token, audiences| {
                    // `head.EMAIL.signature`, for the one audience that the route must name.
                    assert!(audiences.iter().any(|a| a.contains("hello-")), "{audiences:?}");
                    match token.split('.').collect::<Vec<_>>().as_slice() {
                        ["head", email, "signature"] => Ok(email.replace('~', ".")),
                        _ => Err("the signature does not fit".to_owned()),
                    }
                }),
                owner: OWNER.to_owned(),
            },
            record: Box::new(move |record| recorded.records.lock().expect("lock").push(record)),
            wake: Box::new(move || {
                woken.wakes.fetch_add(1, Ordering::SeqCst);
            }),
            now: || Timestamp::from_micros(1_700_000_000_000_000),
            seed: 7,
        });
        let (roots, config) = certificate();
        let local: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let ports = Ports {
            http: Some(local),
            https: Some((local, Arc::new(config))),
        };
        let threads = NonZeroUsize::new(2).expect("two");
        let listening = listen::open(&ingress, ports, limits, threads).expect("free ports");
        let following = ingress.clone();
        Self {
            http: listening.http().expect("it listens"),
            https: listening.https().expect("it listens"),
            site: Site {
                project: ProjectId::parse("my-project").expect("an id"),
                region: key().region,
                domain: "a.run.localhost".to_owned(),
                scheme: Scheme::Https,
                port: 443,
            },
            listening: Some(listening),
            routes,
            endpoints,
            seen,
            roots,
            _follower: tokio::spawn(async move { following.follow().await }),
            ingress,
        }
    }

    /// Routes the service: revision, percent, tag.
    pub(crate) async fn route(&self, targets: &[(&str, u8, Option<&str>)], settings: &Settings) {
        let template = RevisionTemplate {
            name: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            container: Container {
                name: String::new(),
                image: "hello".to_owned(),
                command: Vec::new(),
                args: Vec::new(),
                working_dir: None,
                env: Vec::new(),
                port: Port {
                    protocol: settings.protocol,
                    ..Port::default()
                },
                resources: Resources::default(),
                startup_probe: None,
            },
            concurrency: Concurrency::new(settings.concurrency).expect("in range"),
            timeout: RequestTimeout::new(settings.timeout).expect("in range"),
            service_account: None,
            scaling: Scaling::default(),
            cpu_allocation: None,
            sandbox: None,
            startup_cpu_boost: None,
        };
        let zero = Timestamp::default();
        let revisions: Vec<Revision> = targets
            .iter()
            .map(|(name, _, _)| Revision {
                key: revision_key(name),
                uid: String::new(),
                service_uid: String::new(),
                template_generation: 1,
                created: zero,
                creator: String::new(),
                template: template.clone(),
                state: RevisionState::Ready { digest: "d".to_owned() },
                since: zero,
            })
            .collect();
        let service = Service {
            key: key(),
            uid: String::new(),
            generation: 1,
            template_generation: 1,
            resource_version: 1,
            created: zero,
            updated: zero,
            creator: String::new(),
            modifier: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            template,
            traffic: Traffic::latest(),
            policy: Policy {
                bindings: vec![Binding {
                    role: Role::parse(INVOKER_ROLE).expect("a role"),
                    members: settings.invokers.clone(),
                }],
                version: 1,
            },
            routed: Routed {
                generation: 1,
                since: zero,
                targets: targets
                    .iter()
                    .map(|(name, percent, tag)| RoutedTarget {
                        revision: RevisionName::parse(name).expect("a name"),
                        latest: false,
                        percent: Percent::new(*percent),
                        tag: tag.map(|tag| Tag::parse(tag).expect("a tag")),
                    })
                    .collect(),
            },
        };
        let table = RouteTable::build(1, &self.site, std::iter::once(&service), |_, name| {
            revisions.iter().find(|revision| revision.key.name == *name)
        });
        self.routes.send_replace(Arc::new(table));
        self.settled().await;
    }

    /// Publishes these endpoints and no others.
    pub(crate) async fn publish(&self, revisions: &[(&str, RevisionEndpoints)]) {
        let version = self.endpoints.borrow().version + 1;
        let revisions = revisions
            .iter()
            .map(|(name, endpoints)| (revision_key(name), endpoints.clone()))
            .collect();
        self.endpoints.send_replace(Arc::new(Endpoints { version, revisions }));
        self.until("endpoints to be applied", || self.ingress.demand().applied == version)
            .await;
    }

    async fn settled(&self) {
        // The follower is a task of this thread: it has run when others got their turn.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..500 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited 5 s for {what}");
    }

    /// One instance is this server from now on.
    pub(crate) fn place(&self, id: InstanceId, server: &Server) {
        self.place_at(id, server.addr);
    }

    pub(crate) fn place_at(&self, id: InstanceId, addr: SocketAddr) {
        self.seen.servers.lock().expect("lock").insert(id, addr);
    }

    pub(crate) fn fate(&self, id: InstanceId, fate: Fate) {
        self.seen.fates.lock().expect("lock").insert(id, fate);
    }

    pub(crate) fn wakes(&self) -> usize {
        self.seen.wakes.load(Ordering::SeqCst)
    }

    pub(crate) fn activity(&self) -> Vec<(InstanceId, Activity)> {
        self.seen.activity.lock().expect("lock").clone()
    }

    /// The records, once there are so many; then a little later, to see that there are not more.
    pub(crate) async fn records(&self, count: usize) -> Vec<RequestRecord> {
        self.until("records", || self.seen.records.lock().expect("lock").len() >= count)
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let records = self.seen.records.lock().expect("lock").clone();
        assert_eq!(records.len(), count, "{records:#?}");
        records
    }

    pub(crate) async fn queued(&self, count: u32) {
        self.until("the queue", || {
            let demand = self.ingress.demand();
            demand.revisions.values().map(|r| r.queued).sum::<u32>() == count
        })
        .await;
    }

    pub(crate) async fn in_flight(&self, count: u32) {
        self.until("requests in flight", || {
            let demand = self.ingress.demand();
            demand.revisions.values().map(|r| r.in_flight).sum::<u32>() == count
        })
        .await;
    }

    pub(crate) fn host(&self) -> String {
        self.site.host(&key())
    }

    pub(crate) fn drain(&mut self, limit: Duration) -> impl Future<Output = usize> + use<> {
        self.listening.take().expect("it listens").drain(limit)
    }

    /// One GET by a new connection.
    pub(crate) async fn get(&self, via: Via, path: &str) -> Answer {
        let mut client = Client::open(self, via).await;
        client.get(path).await
    }
}

pub(crate) fn ready(instances: &[u8]) -> RevisionEndpoints {
    RevisionEndpoints {
        instances: instances
            .iter()
            .map(|number| Endpoint {
                instance: id(*number),
                draining: false,
            })
            .collect(),
        patience: Duration::from_secs(10),
        ..RevisionEndpoints::default()
    }
}

/// A server in the place of an instance.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) now: Arc<AtomicUsize>,
    pub(crate) most: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Server {
    pub(crate) async fn start<F, R>(protocol: Protocol, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<TestBody>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (count, inside, peak) = (connections.clone(), now.clone(), most.clone());
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                count.fetch_add(1, Ordering::SeqCst);
                let (answer, inside, peak) = (answer.clone(), inside.clone(), peak.clone());
                let service = service_fn(move |request| {
                    let at_once = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    peak.fetch_max(at_once, Ordering::SeqCst);
                    let guard = Inside(inside.clone());
                    let answering = answer(request);
                    async move {
                        let response = answering.await;
                        drop(guard);
                        Ok::<_, Infallible>(response)
                    }
                });
                let io = TokioIo::new(stream);
                match protocol {
                    Protocol::Http1 => {
                        let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
                        tasks.spawn(async move { connection.await.ok() });
                    }
                    Protocol::H2c => {
                        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service);
                        tasks.spawn(async move { connection.await.ok() });
                    }
                }
            }
        });
        Self {
            addr,
            connections,
            now,
            most,
            task,
        }
    }

    /// Answers with `text` at once.
    pub(crate) async fn saying(text: &'static str) -> Self {
        Self::start(Protocol::Http1, move |_| async move { Response::new(full(text)) }).await
    }

    /// Answers after `pause`.
    pub(crate) async fn slow(pause: Duration) -> Self {
        Self::start(Protocol::Http1, move |_| async move {
            tokio::time::sleep(pause).await;
            Response::new(full("slow"))
        })
        .await
    }

    /// Answers with the request's own head, one field a line.
    pub(crate) async fn mirror(protocol: Protocol) -> Self {
        Self::start(protocol, |request| async move {
            let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                let value = String::from_utf8_lossy(value.as_bytes());
                writeln!(text, "{name}: {value}").expect("a string takes any write");
            }
            Response::new(full(text))
        })
        .await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Http1,
    H2c,
    Tls1,
    Tls2,
}

impl Via {
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::Tls2)
    }

    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::Http1 | Self::H2c => "http",
            Self::Tls1 | Self::Tls2 => "https",
        }
    }
}

pub(crate) struct Client {
    via: Via,
    pub(crate) host: String,
    sender: Sender,
    /// Ends with the client, so that dropping it is leaving.
    _connection: tokio::task::JoinSet<()>,
}

enum Sender {
    Http1(http1::SendRequest<TestBody>),
    Http2(http2::SendRequest<TestBody>),
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Client {
    pub(crate) async fn open(stage: &Stage, via: Via) -> Self {
        let host = stage.host();
        match via {
            Via::Http1 | Via::H2c => {
                let stream = TcpStream::connect(stage.http).await.expect("connects");
                Self::speak(via, host, stream).await
            }
            Via::Tls1 | Via::Tls2 => {
                let mut config = ClientConfig::builder()
                    .with_root_certificates(stage.roots.clone())
                    .with_no_client_auth();
                config.alpn_protocols = match via {
                    Via::Tls2 => vec![b"h2".to_vec()],
                    Via::Http1 | Via::H2c | Via::Tls1 => vec![b"http/1.1".to_vec()],
                };
                let name = ServerName::try_from(host.clone()).expect("a name");
                let stream = TcpStream::connect(stage.https).await.expect("connects");
                let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
                    .connect(name, stream)
                    .await
                    .expect("a TLS session");
                Self::speak(via, host, stream).await
            }
        }
    }

    async fn speak<S>(via: Via, host: String, stream: S) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let mut tasks = tokio::task::JoinSet::new();
        let sender = if via.is_http2() {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
            tasks.spawn(async move { drop(connection.await) });
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.expect("a handshake");
            tasks.spawn(async move { drop(connection.await) });
            Sender::Http1(sender)
        };
        Self {
            via,
            host,
            sender,
            _connection: tasks,
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> http::request::Builder {
        let builder = Request::builder().method(method);
        if self.via.is_http2() {
            builder.uri(format!("{}://{}{path}", self.via.scheme(), self.host))
        } else {
            builder.uri(path).header(header::HOST, &self.host)
        }
    }

    pub(crate) fn begin(
        &mut self,
        request: Request<TestBody>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        let (one, two) = match &mut self.sender {
            Sender::Http1(sender) => (Some(sender.send_request(request)), None),
            Sender::Http2(sender) => (None, Some(sender.send_request(request))),
        };
        async move {
            match (one, two) {
                (Some(sent), _) => sent.await,
                (_, Some(sent)) => sent.await,
                (None, None) => unreachable!("one of both is sent"),
            }
        }
    }

    pub(crate) async fn send(&mut self, request: Request<TestBody>) -> Answer {
        if let Sender::Http1(sender) = &mut self.sender {
            sender.ready().await.expect("the connection is open");
        }
        let response = self.begin(request).await.expect("an answer");
        whole(response).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        let request = self.request("GET", path).body(empty()).expect("a request");
        self.send(request).await
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        text: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// A body whose frames come from the other end of a channel; it ends when that is dropped.
pub(crate) struct Piped(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

pub(crate) fn piped() -> (tokio::sync::mpsc::Sender<Frame<Bytes>>, TestBody) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    (sender, Piped(receiver).boxed_unsync())
}

pub(crate) fn chunk(text: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(text.into())
}

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// The next piece of a body, as text; None at its end.
pub(crate) async fn next(body: &mut Incoming) -> Option<String> {
    loop {
        let wait = tokio::time::timeout(Duration::from_secs(5), body.frame());
        let frame = wait.await.expect("a frame within 5 s")?;
        let data = frame.expect("no error").into_data().expect("data");
        // HTTP/2 may end with an empty frame.
        if !data.is_empty() {
            return Some(String::from_utf8_lossy(&data).into_owned());
        }
    }
}
