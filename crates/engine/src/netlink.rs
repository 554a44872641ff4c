//! Questions to the kernel in the format of netlink(7): several in one packet, each answered.
//!
//! What enters: messages in order. What leaves: the first refusal, with the words of the message that was refused.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_ACK: u16 = 0x1 | 0x4;
/// `NLM_F_CREATE | NLM_F_EXCL`: make it, and fail where it is already.
pub(crate) const CREATE: u16 = 0x400 | 0x200;
/// `NLM_F_CREATE | NLM_F_REPLACE`: make it, or make it so.
pub(crate) const REPLACE: u16 = 0x400 | 0x100;

const HEADER: usize = 16;
const ERROR: u16 = 2;

/// A socket for links, addresses, routes and neighbours of the calling thread's network namespace.
pub(crate) fn route_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE, which is 0.
        None,
    )?)
}

/// A non-blocking socket that hears what changes in the groups of `bits`, of the calling thread's network namespace.
pub(crate) fn listening_socket(protocol: Option<rustix::net::Protocol>, bits: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, bits))?;
    Ok(socket)
}

/// Messages that are sent in one packet and carried out in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What each message is to do, for its refusal.
    words: Vec<&'static str>,
}

/// The attributes of one message, or of one attribute.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn length(bytes: &[u8], begin: usize) -> usize {
    bytes.len() - begin
}

impl Attributes<'_> {
    pub(crate) fn add(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let whole = u16::try_from(4 + value.len()).expect("values of a few bytes");
        self.0.extend(whole.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        pad(self.0);
        self
    }

    /// An attribute that holds `body` and attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: &[u8], inner: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let begin = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(body);
        pad(self.0);
        inner(&mut Attributes(self.0));
        let whole = u16::try_from(length(self.0, begin)).expect("values of a few bytes");
        self.0[begin..begin + 2].copy_from_slice(&whole.to_ne_bytes());
        self.0[begin + 2..begin + 4].copy_from_slice(&kind.to_ne_bytes());
        self
    }
}

impl Batch {
    /// Adds a message of `kind`; `words` say what it does, after "cannot".
    pub(crate) fn add(
        &mut self,
        words: &'static str,
        kind: u16,
        flags: u16,
        body: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let begin = self.bytes.len();
        let sequence = u32::try_from(self.words.len()).expect("a few messages");
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST_ACK | flags).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        pad(&mut self.bytes);
        attributes(&mut Attributes(&mut self.bytes));
        let whole = u32::try_from(length(&self.bytes, begin)).expect("a few hundred bytes");
        self.bytes[begin..begin + 4].copy_from_slice(&whole.to_ne_bytes());
        self.words.push(words);
        self
    }

    /// Sends all and hears each answer. Of several refusals the first is returned; what came after it was tried too.
    pub(crate) fn send(&self, socket: impl AsFd) -> Result<(), Refusal> {
        let broken = |source: io::Error| Refusal {
            words: "speak to the kernel",
            source,
        };
        send(&socket, &self.bytes, SendFlags::empty()).map_err(|error| broken(error.into()))?;
        let mut first = None;
        for (words, _) in self.words.iter().zip(1..) {
            let mut answer = [0; 4096];
            let (length, _) =
                recv(&socket, &mut answer[..], RecvFlags::empty()).map_err(|error| broken(error.into()))?;
            match error_of(&answer[..length]) {
                Some(0) => {}
                Some(errno) => {
                    first.get_or_insert(Refusal {
                        words,
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
                None => {
                    let why = "the kernel's answer has no result";
                    return Err(broken(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// What the kernel did not want.
#[derive(Debug, thiserror::Error)]
#[error("cannot {words}")]
pub(crate) struct Refusal {
    words: &'static str,
    #[source]
    source: io::Error,
}

impl Refusal {
    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.source.kind(), format!("{refusal}: {}", refusal.source))
    }
}

/// The type of a message.
pub(crate) fn kind_of(message: &[u8]) -> Option<u16> {
    let kind = message.get(4..6)?;
    Some(u16::from_ne_bytes([kind[0], kind[1]]))
}

/// What follows the header of a message.
pub(crate) fn body_of(message: &[u8]) -> &[u8] {
    message.get(HEADER..).unwrap_or_default()
}

/// The messages of one packet.
pub(crate) fn messages(mut packet: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = packet.get(..4)?;
        let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]);
        let length = usize::try_from(length).ok().filter(|l| *l >= HEADER)?;
        let message = packet.get(..length)?;
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The error number of an `NLMSG_ERROR` answer; 0 is success.
pub(crate) fn error_of(answer: &[u8]) -> Option<i32> {
    let code = answer.get(HEADER..HEADER + 4)?;
    (kind_of(answer)? == ERROR).then(|| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_lengths_they_say() {
        let mut batch = Batch::default();
        batch
            .add("one", 20, CREATE, &[2, 32, 0, 0, 1, 0, 0, 0], |with| {
                with.add(1, &[169, 254, 8, 1]).add(2, b"odd");
            })
            .add("two", 16, 0, &[0; 16], |with| {
                with.nest(18, &[], |inner| {
                    inner.add(1, b"veth");
                });
            });
        let all: Vec<&[u8]> = messages(&batch.bytes).collect();
        assert_eq!(all.iter().map(|m| m.len()).collect::<Vec<_>>(), [40, 44]);
        assert_eq!(kind_of(all[1]), Some(16));
        assert_eq!(body_of(all[0])[8..16], [8, 0, 1, 0, 169, 254, 8, 1]);
        assert_eq!(
            body_of(all[1])[16..],
            [12, 0, 18, 0, 8, 0, 1, 0, b'v', b'e', b't', b'h']
        );
    }

    #[test]
    fn an_answer_is_read() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(error_of(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(error_of(&answer), Some(17));
        assert_eq!(error_of(&answer[..10]), None);
        answer[4] = 3;
        assert_eq!(error_of(&answer), None);
    }

    #[test]
    fn broken_packets_end() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[200; 64]).count(), 0);
    }
}
