//! Real servers in the place of instances.

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::Protocol;
use tokio::net::TcpListener;

use crate::body::{TestBody, full};

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
