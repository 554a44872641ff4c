//! What instances reach of Homerun from inside: their calls, as the engine hands them over, to the metadata server of `api`
//! or to the ingress.

use std::{convert::Infallible, sync::Arc, time::Duration};

use engine::{Call, Door};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ingress::listen::Bringing;
use model::{Observed, Scheme};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
};

/// Connections to the metadata server, of all instances.
const MOST: usize = 1024;
/// How long a client may take for the head of a request, the next one of its connection among them.
const HEAD: Duration = Duration::from_mins(1);
/// How long a question that waits for a change may keep us when we end.
const PARTING: Duration = Duration::from_secs(1);

/// What serves instances from inside.
pub(crate) struct Serving {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Serving {
    /// `observed` says which revision an instance is of.
    pub(crate) fn start(
        calls: mpsc::Receiver<Call>,
        observed: watch::Receiver<Arc<Observed>>,
        metadata: Arc<api::Metadata>,
        ingress: Bringing,
    ) -> Self {
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(serve(calls, observed, metadata, ingress, stopping));
        Self { stop, task }
    }

    /// Answers what was asked, and ends.
    pub(crate) async fn end(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the metadata server broke off");
        }
    }
}

/// Serves calls until nobody hands over any, and then the connections that are there, until `stop` says true or is gone.
async fn serve(
    mut calls: mpsc::Receiver<Call>,
    observed: watch::Receiver<Arc<Observed>>,
    metadata: Arc<api::Metadata>,
    ingress: Bringing,
    mut stop: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    let mut stopping = stop.clone();
    loop {
        tokio::select! {
            call = calls.recv() => {
                let Some(call) = call else { break };
                let scheme = match call.door {
                    Door::Metadata => {
                        // Without room it is closed, as by any server that is overrun.
                        if let Ok(room) = Arc::clone(&room).try_acquire_owned() {
                            let of = observed.borrow().instances.get(&call.instance).map(|seen| seen.of.clone());
                            let (metadata, stop) = (metadata.clone(), stop.clone());
                            connections.spawn(async move {
                                if let Some(of) = of {
                                    let asker = api::Asker { instance: call.instance, of };
                                    converse(call.stream, &asker, &metadata, stop).await;
                                }
                                drop((room, call.place));
                            });
                        }
                        continue;
                    }
                    Door::Http => Scheme::Http,
                    Door::Https => Scheme::Https,
                };
                ingress.bring(call.stream, scheme, call.place);
            }
            Some(_) = connections.join_next() => {}
            () = told(&mut stopping) => break,
        }
    }
    told(&mut stop).await;
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(PARTING, ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// Until we are told to stop, or nobody is there to tell us.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Answers the requests of one connection.
async fn converse(
    stream: std::net::TcpStream,
    asker: &api::Asker,
    metadata: &api::Metadata,
    mut stop: watch::Receiver<bool>,
) {
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| async move { Ok::<_, Infallible>(metadata.answer(asker, &request).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // How it ended concerns its client alone.
        _ = connection.as_mut() => {}
        () = told(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
