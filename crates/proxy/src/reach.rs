//! Connections to the service: to one address, whatever the name, and with TLS where the URL is https.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::target::Target;

/// Why nobody can vouch for the service.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot read the certificate authority {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{} holds no certificate of an authority", path.display())]
    Empty { path: PathBuf },
    #[error("{0} is no name that a certificate can have")]
    Name(String),
    #[error("no TLS with this library")]
    Tls(#[source] rustls::Error),
}

/// Opens connections to one target.
#[derive(Clone)]
pub(crate) struct Reach {
    to: std::net::SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Reach {
    /// `authority` is read for an https target only.
    pub(crate) fn new(target: &Target, authority: &Path, http2: bool) -> Result<Self, AuthorityError> {
        let tls = target.is_secure().then(|| tls(target, authority, http2)).transpose()?;
        Ok(Self { to: target.to(), tls })
    }

    async fn open(self) -> io::Result<TokioIo<Link>> {
        let socket = TcpStream::connect(self.to)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("no connection to {}: {error}", self.to)))?;
        socket.set_nodelay(true)?;
        Ok(TokioIo::new(match self.tls {
            None => Link::Plain(socket),
            Some((connector, name)) => Link::Tls(Box::new(connector.connect(name, socket).await?)),
        }))
    }
}

fn tls(target: &Target, authority: &Path, http2: bool) -> Result<(TlsConnector, ServerName<'static>), AuthorityError> {
    let unread = |source| AuthorityError::Read {
        path: authority.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).map_err(unread)? {
        let certificate = certificate.map_err(unread)?;
        // one that is not understood vouches for nobody
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(AuthorityError::Empty {
            path: authority.to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(AuthorityError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let protocol: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![protocol.to_vec()];
    let host = target.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| AuthorityError::Name(host))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

impl tower_service::Service<Uri> for Reach {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Link>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().open())
    }
}

/// A connection to the service.
pub(crate) enum Link {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        let is_h2 = match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        };
        if is_h2 {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
