//! Real clients, by each protocol that the ingress answers.

use std::sync::Arc;

use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;

use crate::{
    body::{TestBody, empty},
    stage::Stage,
};

pub(crate) const VIAS: [Via; 4] = [Via::Http1, Via::H2c, Via::Tls1, Via::Tls2];

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
