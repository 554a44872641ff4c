//! The end of a connection whose client is still sending.
//!
//! A refusal may be written while its request's body is under way, such as 413 in the middle of an upload. If the socket
//! were closed at once, the kernel would answer what still comes with a reset, and the client might lose the answer that
//! it has not read yet. So what comes after the end is read and dropped, for a moment: until the client closes too, or
//! says nothing for a while.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// How long what still comes is dropped.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may be silent meanwhile, as one is that has not had its turn on the processor.
const SILENCE: Duration = Duration::from_secs(1);

/// Whether a connection's last request had a body, which may be under way still.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sending(Arc<AtomicBool>);

impl Sending {
    pub(crate) fn set(&self, sending: bool) {
        self.0.store(sending, Ordering::Relaxed);
    }
}

/// A stream that reads on for a moment after it was shut down, if its client may be sending.
#[derive(Debug)]
pub(crate) struct Parting {
    stream: TcpStream,
    sending: Sending,
    /// Set when it was shut down while its client may have been sending.
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    latest: Pin<Box<Sleep>>,
    silent: Pin<Box<Sleep>>,
}

impl Parting {
    pub(crate) fn new(stream: TcpStream, sending: Sending) -> Self {
        Self {
            stream,
            sending,
            end: None,
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
        let Self { stream, sending, end } = &mut *self;
        let end = if let Some(end) = end {
            end
        } else {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
            if !sending.0.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            end.insert(End {
                latest: Box::pin(tokio::time::sleep(PATIENCE)),
                silent: Box::pin(tokio::time::sleep(SILENCE)),
            })
        };
        if end.latest.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut dropped = [0; 16 << 10];
        // Not all at once: others have their turn on this thread.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut dropped);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    end.silent.as_mut().reset(Instant::now() + SILENCE);
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return end.silent.as_mut().poll(cx).map(Ok),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
