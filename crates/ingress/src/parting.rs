//! The end of a connection whose client is still sending.
//!
//! A refusal may be written while its request's body is under way, such as 413 in the middle of an upload. If the socket
//! were closed at once, the kernel would answer what still comes with a reset, and the client might lose the answer that
//! it has not read yet. So what comes after the end is read and dropped, for a moment.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

/// How long what still comes is dropped.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stream that reads on for a moment after it was shut down, if anything comes.
#[derive(Debug)]
pub(crate) struct Parting {
    stream: TcpStream,
    /// Set once something came after the end.
    until: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Parting {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            until: None,
            ended: false,
        }
    }
}

impl AsyncRead for Parting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Parting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let parting = &mut *self;
        if !parting.ended {
            ready!(Pin::new(&mut parting.stream).poll_shutdown(cx))?;
            parting.ended = true;
        }
        let mut dropped = [0; 16 << 10];
        // Not all at once: others have their turn on this thread.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut dropped);
            match Pin::new(&mut parting.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let until = parting
                        .until
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                    if until.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                // Nothing came at all: there is nobody to wait for.
                Poll::Pending => {
                    return match &mut parting.until {
                        None => Poll::Ready(Ok(())),
                        Some(until) => until.as_mut().poll(cx).map(Ok),
                    };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
