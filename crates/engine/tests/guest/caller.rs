//! A program for the inside of test instances that calls others. Built by the tests with plain rustc, static, without
//! any crate. What enters: requests on `PORT` such as `/tcp/8.8.8.8:7`; what leaves: what became of the call, with the
//! kind of its error.

use std::{
    fs,
    io::{ErrorKind, Read, Result, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    os::fd::{AsRawFd, FromRawFd},
    thread,
    time::{Duration, Instant},
};

unsafe extern "C" {
    fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    fn setsockopt(socket: i32, level: i32, name: i32, value: *const i32, length: u32) -> i32;
    fn bind(socket: i32, address: *const u8, length: u32) -> i32;
    fn connect(socket: i32, address: *const u8, length: u32) -> i32;
}

/// How long a call may take before it counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() {
    let early = std::env::args().nth(1).map(|address| {
        let begin = Instant::now();
        let called = tcp(&address);
        format!("{} ms, {}", begin.elapsed().as_millis(), shown(called))
    });
    let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let early = early.clone();
        thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0; 1024];
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(0) | Err(_) => return,
                    Ok(length) => head.extend(&byte[..length]),
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
            let (word, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
            let body = match word {
                "early" => early.unwrap_or_default(),
                "read" => shown(fs::read_to_string(format!("/{rest}"))),
                "tcp" => shown(tcp(rest)),
                "udp" => shown(udp(rest)),
                "half" => shown(half(rest)),
                "bulk" => shown(bulk(rest)),
                "hold" => shown(hold(rest)),
                "many" => shown(many(rest)),
                "ask" => shown(ask(rest)),
                "resolve" => shown((rest, 80).to_socket_addrs().map(|all| {
                    let mut all: Vec<String> = all.map(|a| a.ip().to_string()).collect();
                    all.sort();
                    all.dedup();
                    all.join(" ")
                })),
                "spoof" => shown(spoof(rest)),
                "as" => shown(call_as(rest)),
                _ => "what?".to_owned(),
            };
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        });
    }
}

fn shown(result: Result<String>) -> String {
    result.unwrap_or_else(|error| match error.kind() {
        ErrorKind::WouldBlock => "TimedOut".to_owned(),
        kind => format!("{kind:?}"),
    })
}

fn connected(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One line there and one back.
fn tcp(address: &str) -> Result<String> {
    let mut stream = connected(address)?;
    stream.write_all(b"hello\n")?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

/// Everything there, its end, and then everything back.
fn half(address: &str) -> Result<String> {
    let mut stream = connected(address)?;
    stream.write_all(b"first\nsecond\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().map(|line| line.rsplit(' ').next().unwrap_or("")).collect::<Vec<_>>().join(" "))
}

/// 8 MiB there and back; how many of the bytes are right.
fn bulk(address: &str) -> Result<String> {
    const SIZE: usize = 8 << 20;
    let mut stream = connected(address)?;
    let mut writer = stream.try_clone()?;
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n * 7 + n / 1000) as u8).collect();
    let sent = bytes.clone();
    let sending = thread::spawn(move || writer.write_all(&sent).and_then(|()| writer.shutdown(std::net::Shutdown::Write)));
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    sending.join().unwrap()?;
    Ok((back == bytes).to_string())
}

/// A connection of which the other side is to break: how the next read ends.
fn hold(address: &str) -> Result<String> {
    let mut stream = connected(address)?;
    stream.write_all(b"x")?;
    match stream.read(&mut [0; 16]) {
        Ok(length) => Ok(format!("read {length}")),
        Err(error) => Err(error),
    }
}

/// `N/address`: so many connections open at once; how many of them answer.
fn many(rest: &str) -> Result<String> {
    let (count, address) = rest.split_once('/').unwrap();
    let count: usize = count.parse().unwrap();
    let open: Vec<TcpStream> = (0..count).map_while(|_| connected(address).ok()).collect();
    let answered = open.iter().filter(|stream| {
        let mut stream: &TcpStream = stream;
        let mut answer = [0; 64];
        stream.write_all(b"hello\n").is_ok() && stream.read(&mut answer).is_ok_and(|length| length > 0)
    });
    Ok(format!("{} {}", open.len(), answered.count()))
}

fn any(to: &SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => "0.0.0.0:0".parse().unwrap(),
        SocketAddr::V6(_) => "[::]:0".parse().unwrap(),
    }
}

/// Three datagrams there and back, through one socket.
fn udp(address: &str) -> Result<String> {
    let to: SocketAddr = address.parse().unwrap();
    let socket = UdpSocket::bind(any(&to))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    let mut answer = [0; 2048];
    let mut last = String::new();
    for _ in 0..3 {
        socket.send(b"hello\n")?;
        let length = socket.recv(&mut answer)?;
        last = String::from_utf8_lossy(&answer[..length]).trim().to_owned();
    }
    Ok(last)
}

/// `udp/address/name`: a question for a name's address, and the address.
fn ask(rest: &str) -> Result<String> {
    let mut words = rest.splitn(3, '/');
    let (by, address, name) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let mut question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend(b"\0\0\x01\0\x01");
    let mut answer = vec![0; 1024];
    let length = if by == "udp" {
        let socket = UdpSocket::bind(any(&address.parse().unwrap()))?;
        // Longer than the resolver tries all of its own.
        socket.set_read_timeout(Some(3 * PATIENCE))?;
        socket.connect(address)?;
        socket.send(&question)?;
        socket.recv(&mut answer)?
    } else {
        let mut stream = connected(address)?;
        stream.write_all(&(question.len() as u16).to_be_bytes())?;
        stream.write_all(&question)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        stream.read_exact(&mut answer[..length])?;
        length
    };
    let code = answer[3] & 0xf;
    let last = &answer[length - 4..length];
    Ok(if code == 0 { format!("{}.{}.{}.{}", last[0], last[1], last[2], last[3]) } else { format!("code {code}") })
}

/// As `tcp`, by a socket that has taken an address of its choice: `FROM/TO`.
fn call_as(rest: &str) -> Result<String> {
    let (from, to) = rest.split_once('/').unwrap();
    let own = SocketAddr::new(from.parse().unwrap(), 0);
    let to: SocketAddr = to.parse().unwrap();
    let bytes = |at: SocketAddr| {
        let IpAddr::V4(address) = at.ip() else { panic!("an address of IPv4") };
        let mut bytes = 2_u16.to_ne_bytes().to_vec();
        bytes.extend(at.port().to_be_bytes());
        bytes.extend(address.octets());
        bytes.extend([0; 8]);
        bytes
    };
    let mut stream = unsafe { TcpStream::from_raw_fd(socket(2, 1, 0)) };
    let number = stream.as_raw_fd();
    // A connection that is not made in time is given up.
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let yes = 1;
    // IP_FREEBIND
    let done = unsafe {
        setsockopt(number, 0, 15, &yes, 4) == 0
            && bind(number, bytes(own).as_ptr(), 16) == 0
            && connect(number, bytes(to).as_ptr(), 16) == 0
    };
    if !done {
        return Err(std::io::Error::last_os_error());
    }
    stream.write_all(b"hello\n")?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

/// `from/to`: a datagram of IPv6 with somebody else's address as sender.
fn spoof(rest: &str) -> Result<String> {
    let (from, to) = rest.split_once('/').unwrap();
    let from: Ipv6Addr = from.parse().unwrap();
    let number = unsafe { socket(10, 2, 0) };
    let socket = unsafe { UdpSocket::from_raw_fd(number) };
    // IPV6_FREEBIND
    let yes = 1;
    if unsafe { setsockopt(socket.as_raw_fd(), 41, 78, &yes, 4) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut address = vec![10, 0, 0x12, 0x34, 0, 0, 0, 0];
    address.extend(from.octets());
    address.extend([0; 4]);
    if unsafe { bind(socket.as_raw_fd(), address.as_ptr(), 28) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let to: SocketAddr = to.parse().unwrap();
    assert!(matches!(to.ip(), IpAddr::V6(_)));
    socket.send_to(b"spoofed\n", to)?;
    Ok("sent".to_owned())
}
