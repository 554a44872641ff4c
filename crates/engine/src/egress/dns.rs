//! The resolver that instances ask. It answers for the names of Homerun itself (`names`), and passes each other question
//! on to the machine's own resolvers, read from `/etc/resolv.conf` each time, and the answer back, unread but for its
//! number. An answer may name any address; the rules and the relay decide what can be called. Where nothing leads to the
//! internet every other question fails at once.
//!
//! Questions come by UDP and by TCP (RFC 7766) and go out the way they came.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{sleep, timeout},
};

use super::{
    guest::{Guest, Guests},
    names,
    outside::Outside,
    router::RESOLVER,
};

const PORT: u16 = 53;
/// How long one resolver may take before the next is asked. Programs wait for 5 s in all.
const PATIENCE: Duration = Duration::from_secs(2);
/// All are asked so often.
const ROUNDS: usize = 2;
/// As many as libc asks (resolv.conf(5)).
const MOST_RESOLVERS: usize = 3;
/// How long a connection may be without a question.
const IDLE: Duration = Duration::from_secs(10);
pub(crate) const HEADER: usize = 12;
/// With the extension for longer answers; without it 512 bytes.
const LONGEST: usize = 65_535;

/// How a question came, and is passed on.
#[derive(Debug, Clone, Copy)]
enum By {
    Udp,
    Tcp,
}

#[derive(Debug)]
pub(crate) struct Dns {
    guests: Arc<Guests>,
    outside: Option<Arc<Outside>>,
    /// Every name below it is the ingress's. None: nothing of Homerun is reached here.
    domain: Option<String>,
    /// `/etc/resolv.conf`, or the file that stands for it.
    configuration: std::path::PathBuf,
}

/// Made in the router.
#[derive(Debug)]
pub(crate) struct Door {
    socket: Arc<UdpSocket>,
    listener: TcpListener,
}

impl Door {
    pub(crate) async fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Arc::new(UdpSocket::bind((RESOLVER, PORT)).await?),
            listener: TcpListener::bind((RESOLVER, PORT)).await?,
        })
    }
}

impl Dns {
    pub(crate) fn new(guests: Arc<Guests>, outside: Option<Arc<Outside>>, domain: Option<String>) -> Self {
        Self {
            guests,
            outside,
            domain,
            configuration: "/etc/resolv.conf".into(),
        }
    }

    /// Serves its door for ever.
    pub(crate) async fn serve(self: Arc<Self>, door: Door) -> io::Error {
        tokio::select! {
            error = self.datagrams(&door.socket) => error,
            error = self.connections(&door.listener) => error,
        }
    }

    async fn datagrams(self: &Arc<Self>, socket: &Arc<UdpSocket>) -> io::Error {
        let mut buffer = vec![0; LONGEST];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            let Some(guest) = self.guests.of(from.ip()) else {
                continue;
            };
            // As in a full network: lost.
            let Some(place) = self.guests.question(&guest) else {
                continue;
            };
            let (dns, socket, question) = (Arc::clone(self), Arc::clone(socket), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(answer) = dns.answer(&question, By::Udp).await {
                    let _ = socket.send_to(&answer, from).await;
                }
                drop(place);
            });
        }
    }

    async fn connections(self: &Arc<Self>, listener: &TcpListener) -> io::Error {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Some(guest) = self.guests.of(from.ip()) else {
                continue;
            };
            let Some(place) = self.guests.question(&guest) else {
                continue;
            };
            let dns = Arc::clone(self);
            tokio::spawn(async move {
                tokio::select! {
                    // Ends with the instance's last question, or when it says something else.
                    _ = dns.converse(stream) => {}
                    () = guest.gone() => {}
                }
                drop::<(_, Arc<Guest>)>((place, guest));
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let question = timeout(IDLE, framed(&mut stream)).await??;
            let Some(answer) = self.answer(&question, By::Tcp).await else {
                return Ok(());
            };
            timeout(IDLE, send_framed(&mut stream, &answer)).await??;
        }
    }

    /// None: it is no question.
    async fn answer(&self, question: &[u8], by: By) -> Option<Vec<u8>> {
        if question.len() < HEADER || is_answer(question) {
            return None;
        }
        if let Some(domain) = &self.domain
            && let Some(answer) = names::answer(question, domain)
        {
            return Some(answer);
        }
        let Some(outside) = &self.outside else {
            return Some(failure(question));
        };
        let text = fs::read_to_string(&self.configuration).unwrap_or_default();
        let resolvers = resolvers(&text);
        for _ in 0..ROUNDS {
            for resolver in &resolvers {
                match timeout(PATIENCE, ask(outside, *resolver, question, by)).await {
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver did not answer"),
                    Err(_) => tracing::debug!(%resolver, "a resolver did not answer in time"),
                }
            }
        }
        Some(failure(question))
    }
}

async fn ask(outside: &Outside, resolver: SocketAddr, question: &[u8], by: By) -> io::Result<Vec<u8>> {
    let answer = match by {
        By::Udp => {
            let socket = outside.udp(resolver)?;
            socket.send(question).await?;
            let mut buffer = vec![0; LONGEST];
            loop {
                let length = socket.recv(&mut buffer).await?;
                if answers(&buffer[..length], question) {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
            }
        }
        By::Tcp => {
            let mut stream = outside.tcp(resolver).await?;
            send_framed(&mut stream, question).await?;
            framed(&mut stream).await?
        }
    };
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an answer to something else",
        ))
    }
}

async fn framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn send_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one packet where it fits.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// The bit of a message that says so (RFC 1035, 4.1.1).
fn is_answer(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

fn answers(message: &[u8], question: &[u8]) -> bool {
    message.len() >= HEADER && is_answer(message) && message[..2] == question[..2]
}

/// "Server failure", with the question.
fn failure(question: &[u8]) -> Vec<u8> {
    const SERVER_FAILURE: u8 = 2;
    const RECURSION_AVAILABLE: u8 = 0x80;
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[3] = RECURSION_AVAILABLE | SERVER_FAILURE;
    // Whatever came behind the question stays there, and is not counted.
    answer[6..HEADER].fill(0);
    let end = end_of_question(question).unwrap_or(question.len());
    answer.truncate(end);
    answer
}

/// Where the first question of a message ends. None: it does not.
pub(crate) fn end_of_question(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length @ 1..=63 => at += 1 + length,
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}

/// The resolvers that a text of resolv.conf(5) names.
fn resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, PORT))
        .take(MOST_RESOLVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_a_configuration() {
        let text = "# nameserver 9.9.9.9\nsearch example.com\nnameserver 127.0.0.53\n nameserver\t2606:4700::1111 x\n\
                    nameserver1.1.1.1\nnameserver fe80::1%eth0\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[2606:4700::1111]:53", "8.8.8.8:53"]);
        assert!(resolvers("").is_empty());
    }

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x03www\x04test\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\0";

    #[test]
    fn a_failure_repeats_the_question() {
        let answer = failure(QUESTION);
        assert_eq!(
            answer,
            b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\0\x03www\x04test\0\0\x01\0\x01"
        );
        assert!(answers(&answer, QUESTION));
        // Broken ones too, of whatever length.
        for length in HEADER..QUESTION.len() {
            assert!(answers(&failure(&QUESTION[..length]), QUESTION), "{length}");
        }
    }

    #[test]
    fn what_answers_what() {
        assert!(!answers(QUESTION, QUESTION), "a question");
        let mut other = failure(QUESTION);
        other[1] ^= 1;
        assert!(!answers(&other, QUESTION), "another number");
        assert!(!answers(b"\x12\x34\x81", QUESTION), "half a header");
    }
}
