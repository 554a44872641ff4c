//! One HTTP/1.1 exchange on a plain socket: for requests that no client would send, and for those that must be sent
//! while the test watches something else.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// A connection's answer has this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Sends the bytes as they stand and reads to the end of the connection, so they had better say `connection: close`.
///
/// # Errors
/// When nobody listens, when the connection breaks, and when what comes is no HTTP/1.1 answer.
pub fn exchange(to: SocketAddr, request: impl AsRef<[u8]>) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("nobody listens at {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_ref())?;
    read_answer(&mut stream)
}

/// Reads one answer to the end of the connection.
///
/// # Errors
/// As [`exchange`].
pub fn read_answer(stream: &mut TcpStream) -> Result<Answer> {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    ended.with_context(|| format!("the connection broke after {text:?}"))?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("no answer but {text:?}");
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    if let Some(length) = length
        && body.len() < length
    {
        bail!("the answer broke off after {} of {length} bytes", body.len());
    }
    Ok(Answer {
        status: status.with_context(|| format!("no status in {head:?}"))?,
        body: body.to_owned(),
    })
}
