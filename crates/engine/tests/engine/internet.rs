//! An internet of one machine: a network namespace that has every address, behind a link to the test's own, which has
//! no other way out. It answers, and remembers who was called; what nobody may call it answers as well.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The machine's own addresses towards its internet: one that looks public and one that does not.
pub(crate) const MACHINE: [&str; 3] = ["11.0.0.2", "10.9.9.2", "2a01:9::2"];
/// Where it answers: each line with the address that was called, a space, and the line.
pub(crate) const ECHO: u16 = 7;
/// Sends everything back as it came.
pub(crate) const BULK: u16 = 8;
/// Breaks every connection that says something.
pub(crate) const BREAK: u16 = 10;
/// The port of the relay itself, in case something comes by it.
const RELAY: u16 = 1;

pub(crate) struct Internet {
    holder: Child,
    called: Arc<Mutex<BTreeSet<SocketAddr>>>,
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("a shell");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

impl Internet {
    /// The calling process is in a network namespace of its own with nothing in it.
    pub(crate) fn build() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let pid = holder.id();
        let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
        let begin = Instant::now();
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == own) {
            assert!(begin.elapsed() < Duration::from_secs(30), "no namespace");
            thread::sleep(Duration::from_millis(2));
        }
        let [public, private, six] = MACHINE;
        run(&format!(
            "ip link set lo up
             ip link add world type veth peer name below netns {pid}
             ip link set world up
             ip addr add {public}/24 dev world
             ip addr add {private}/24 dev world
             ip addr add {six}/64 dev world nodad
             nsenter --net=/proc/{pid}/ns/net sh -ec '
                 ip link set lo up
                 ip link set below up
                 ip addr add 11.0.0.1/24 dev below
                 ip addr add 10.9.9.1/24 dev below
                 ip addr add 2a01:9::1/64 dev below nodad
                 for own in 8.8.8.8 169.254.1.1 11.0.0.53; do ip addr add $own/32 dev lo; done
                 for own in 2600::8 2600::9 fd00::1; do ip addr add $own/128 dev lo nodad; done
                 ip route add local 0.0.0.0/0 dev lo
                 ip -6 route add local ::/0 dev lo table main'
             ip route add default via 11.0.0.1
             ip -6 route add default via 2a01:9::1
             ip route add unreachable 12.0.0.0/8"
        ));
        let mut internet = Self {
            holder,
            called: Arc::default(),
        };
        internet.open();
        internet
    }

    fn open(&mut self) {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("its namespace");
        let called = Arc::clone(&self.called);
        // Sockets belong to the namespace in which they were made.
        let opened = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter");
            for port in [ECHO, BULK, BREAK, RELAY, 80, 443, 53] {
                let listener = TcpListener::bind(("::", port)).expect("a listener");
                let called = Arc::clone(&called);
                thread::spawn(move || accept(&listener, port, &called));
            }
            for port in [ECHO, RELAY, 53] {
                // One for each address that is called, since an answer must come from it.
                for address in [
                    "8.8.8.8",
                    "10.9.9.1",
                    "169.254.1.1",
                    "11.0.0.53",
                    "2600::8",
                    "fd00::1",
                    "2600::9",
                ] {
                    let address: IpAddr = address.parse().expect("an address");
                    let socket = UdpSocket::bind((address, port)).unwrap_or_else(|error| panic!("{address}: {error}"));
                    let called = Arc::clone(&called);
                    thread::spawn(move || datagrams(&socket, &called));
                }
            }
        });
        opened.join().expect("opened");
    }

    /// The addresses that were called until now.
    pub(crate) fn called(&self) -> BTreeSet<IpAddr> {
        self.called.lock().expect("whole").iter().map(SocketAddr::ip).collect()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn accept(listener: &TcpListener, port: u16, called: &Arc<Mutex<BTreeSet<SocketAddr>>>) {
    for stream in listener.incoming().flatten() {
        let to = plain(stream.local_addr().expect("an address"));
        called.lock().expect("whole").insert(to);
        thread::spawn(move || {
            let _ = match port {
                BULK => std::io::copy(&mut &stream, &mut &stream).map(|_| ()),
                BREAK => broken(&stream),
                53 => names(&stream),
                _ => echo(&stream, to),
            };
        });
    }
}

fn echo(stream: &TcpStream, to: SocketAddr) -> std::io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let mut stream = stream;
        // At once, so that one read gets it.
        stream.write_all(format!("{} {}\n", to.ip(), line?).as_bytes())?;
    }
    let mut stream = stream;
    stream.write_all(b"end\n")
}

/// Closed with something unread, a connection is reset.
fn broken(stream: &TcpStream) -> std::io::Result<()> {
    stream.peek(&mut [0]).map(|_| ())
}

fn names(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    let answer = answer(&question);
    stream.write_all(&u16::try_from(answer.len()).expect("short").to_be_bytes())?;
    stream.write_all(&answer)
}

fn datagrams(socket: &UdpSocket, called: &Arc<Mutex<BTreeSet<SocketAddr>>>) {
    let to = socket.local_addr().expect("an address");
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        called.lock().expect("whole").insert(to);
        let said = &buffer[..length];
        let back = if to.port() == 53 {
            answer(said)
        } else {
            format!("{} {}", to.ip(), String::from_utf8_lossy(said)).into_bytes()
        };
        let _ = socket.send_to(&back, from);
    }
}

/// Every name has the address 8.8.8.8, those that begin with "home" have 10.9.9.1. There is nothing else to ask for.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while question[end] != 0 {
        end += 1 + usize::from(question[end]);
    }
    end += 5;
    let wants_address = question[end - 4..end] == [0, 1, 0, 1];
    let mut answer = question[..end].to_vec();
    answer[2] |= 0x80;
    answer[3] |= 0x80;
    answer[6..12].copy_from_slice(&[0, u8::from(wants_address), 0, 0, 0, 0]);
    if wants_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(if question[13..].starts_with(b"home") {
            [10, 9, 9, 1]
        } else {
            [8, 8, 8, 8]
        });
    }
    answer
}
