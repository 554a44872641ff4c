//! Sockets that have no form in a library: one that sees the first packets of TCP connections and sends packets as they
//! are, and one for UDP that tells where each datagram was sent to.
#![expect(
    unsafe_code,
    reason = "packet sockets and the ancillary data of datagrams have no safe form"
)]

use std::{
    io,
    mem::{MaybeUninit, size_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use socket2::{Domain, Socket, Type};

/// A version of the internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }

    pub(crate) fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The number of the protocol on a link, as the network writes it.
    fn on_link(self) -> u16 {
        let number: u16 = match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        };
        number.to_be()
    }
}

/// The number of `lo`.
pub(crate) const LO: u32 = 1;

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a small structure")
}

/// A socket for addresses that are not ours, as the rules hand them over.
pub(crate) fn transparent(family: Family, kind: Type, at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(family.domain(), kind.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true)?,
        Family::V6 => {
            socket.set_only_v6(true)?;
            socket.set_ip_transparent_v6(true)?;
        }
    }
    socket.bind(&at.into())?;
    Ok(socket)
}

const RETURN: u16 = 0x06;
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_BYTE_AFTER_X: u16 = 0x50;
const LOAD_X_OF_HEADER: u16 = 0xb1;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_SET: u16 = 0x45;
/// `SKF_AD_OFF + SKF_AD_IFINDEX`: the number of the link that a packet came by.
const LINK: u32 = 0xffff_f000 + 8;
const WHOLE: u32 = 0xffff;

/// The kernel's own small programs (bpf(4)): code, jump if true, jump if false, number.
type Step = (u16, u8, u8, u32);

/// SYN without ACK, in the first fragment, not from `lo`.
const FIRST_V4: [Step; 12] = [
    (LOAD_WORD, 0, 0, LINK),
    (JUMP_IF_EQUAL, 9, 0, LO),
    (LOAD_BYTE, 0, 0, 9),
    (JUMP_IF_EQUAL, 0, 7, 6),
    (LOAD_HALF, 0, 0, 6),
    (JUMP_IF_SET, 5, 0, 0x1fff),
    (LOAD_X_OF_HEADER, 0, 0, 0),
    (LOAD_BYTE_AFTER_X, 0, 0, 13),
    (AND, 0, 0, 0x12),
    (JUMP_IF_EQUAL, 0, 1, 0x02),
    (RETURN, 0, 0, WHOLE),
    (RETURN, 0, 0, 0),
];
const FIRST_V6: [Step; 9] = [
    (LOAD_WORD, 0, 0, LINK),
    (JUMP_IF_EQUAL, 6, 0, LO),
    (LOAD_BYTE, 0, 0, 6),
    (JUMP_IF_EQUAL, 0, 4, 6),
    (LOAD_BYTE, 0, 0, 53),
    (AND, 0, 0, 0x12),
    (JUMP_IF_EQUAL, 0, 1, 0x02),
    (RETURN, 0, 0, WHOLE),
    (RETURN, 0, 0, 0),
];

/// Sends packets as they are, and receives none.
pub(crate) fn sender() -> io::Result<OwnedFd> {
    // SAFETY: the call makes a file and touches no memory.
    let number = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the file was opened just now and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sees the first packet of every TCP connection that comes in by a link, and sends packets as they are.
pub(crate) fn first_packets(family: Family) -> io::Result<OwnedFd> {
    // It hears nothing until it is bound, and then its filter is there.
    let socket = sender()?;
    let steps: &[Step] = match family {
        Family::V4 => &FIRST_V4,
        Family::V6 => &FIRST_V6,
    };
    let mut program: Vec<libc::sock_filter> = steps
        .iter()
        .map(|(code, jt, jf, k)| libc::sock_filter {
            code: *code,
            jt: *jt,
            jf: *jf,
            k: *k,
        })
        .collect();
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a dozen"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives as long as the call and has the length given.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size::<libc::sock_fprog>(),
        )
    })?;
    let address = on_link(family, 0, [0; 6]);
    // SAFETY: the address lives as long as the call and has the size given.
    done(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size::<libc::sockaddr_ll>(),
        )
    })?;
    Ok(socket)
}

/// `link` 0 means every one.
fn on_link(family: Family, link: u32, mac: [u8; 6]) -> libc::sockaddr_ll {
    // SAFETY: all zero is a valid value of this structure of numbers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_protocol = family.on_link();
    address.sll_ifindex = i32::try_from(link).expect("a number of the kernel's");
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac);
    address
}

/// Receives one packet; its length, and the link that it came by. Longer ones are cut.
pub(crate) fn receive_packet(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, u32)> {
    // SAFETY: all zero is a valid value of this structure of numbers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = size::<libc::sockaddr_ll>();
    // SAFETY: buffer and address are ours, and the kernel writes no more than the lengths given.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    Ok((received, u32::try_from(address.sll_ifindex).unwrap_or(0)))
}

/// Sends a packet by `link` to whoever has `mac` there. By [`LO`] it arrives here.
pub(crate) fn send_packet(socket: &OwnedFd, family: Family, link: u32, mac: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let address = on_link(family, link, mac);
    // SAFETY: packet and address live as long as the call and have the sizes given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            size::<libc::sockaddr_ll>(),
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a UDP socket tell where each datagram was sent to.
pub(crate) fn tell_destinations(socket: &Socket, family: Family) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::SOL_IP, libc::IP_RECVORIGDSTADDR),
        Family::V6 => (libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR),
    };
    let yes: libc::c_int = 1;
    // SAFETY: the option is a number that lives as long as the call.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const yes).cast(),
            size::<libc::c_int>(),
        )
    })
}

/// Receives one datagram: its length, who sent it, and to whom. Needs [`tell_destinations`].
pub(crate) fn receive_datagram(
    socket: &impl std::os::fd::AsRawFd,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    // Aligned for what the kernel writes into it.
    let mut beside = [MaybeUninit::<u64>::uninit(); 16];
    // SAFETY: all zero is a valid value of these structures of numbers and pointers.
    let (mut from, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size::<libc::sockaddr_storage>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = beside.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&beside) as _;
    // SAFETY: everything that the message points to is ours, lives as long as the call, and has the length given.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "a datagram without its addresses");
    let mut to = None;
    // SAFETY: the kernel filled in the header and what it points to, and both are still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: not null, so the macros say that a whole header is there, in aligned memory of ours.
        let header = unsafe { *next };
        if matches!(
            (header.cmsg_level, header.cmsg_type),
            (libc::SOL_IP, libc::IP_ORIGDSTADDR) | (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)
        ) {
            // SAFETY: data of this kind is a socket address; it is copied by its length, at most the storage's.
            let address = unsafe {
                let data = libc::CMSG_DATA(next);
                let length = (header.cmsg_len as usize)
                    .saturating_sub(libc::CMSG_LEN(0) as usize)
                    .min(size_of::<libc::sockaddr_storage>());
                let mut storage: libc::sockaddr_storage = zeroed();
                std::ptr::copy_nonoverlapping(data, (&raw mut storage).cast::<u8>(), length);
                storage
            };
            to = socket_address(&address);
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    let from = socket_address(&from).ok_or_else(broken)?;
    Ok((received, from, to.ok_or_else(broken)?))
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is, and the storage is large enough for each.
            let address = unsafe { *(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which structure it is, and the storage is large enough for each.
            let address = unsafe { *(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)))
        }
        _ => None,
    }
}
