//! Debian's docker engine for one test: in namespaces of its own (network, processes, mounts), with its own directories,
//! without a bridge and without firewall rules. It changes nothing of the machine and ends with the test.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Homerun;

/// Until it answers.
const START: Duration = Duration::from_secs(30);

/// A running engine. It sees one port of the machine, the API of the Homerun it was started for, and goes there for
/// every registry that is not on loopback.
#[derive(Debug)]
pub struct Docker {
    unshare: Child,
    /// What docker's client calls `DOCKER_HOST`.
    pub host: String,
}

impl Docker {
    /// # Errors
    /// When it does not answer in time, with what it said.
    pub fn start(homerun: &Homerun) -> Result<Self> {
        let dir = homerun.root().join("docker");
        fs::create_dir(&dir)?;
        let place = |name: &str| dir.join(name).display().to_string();
        let socket = dir.join("sock");
        let log = dir.join("log");
        let said = File::create(&log)?;
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh", "dockerd"])
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false"])
            .args(["--ip-forward=false", "--bridge=none", "--storage-driver=vfs"])
            .args(["--data-root", &place("data"), "--exec-root", &place("exec")])
            .args(["--pidfile", &place("pid"), "--host"])
            .arg(format!("unix://{}", socket.display()))
            .env("HOME", &dir)
            .env("HTTPS_PROXY", format!("http://{}", homerun.api()))
            .env("SSL_CERT_FILE", homerun.addresses().data.join("ca/ca.pem"))
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said);
        let docker = Self {
            unshare: command.spawn().context("no unshare")?,
            host: format!("unix://{}", socket.display()),
        };
        let deadline = Instant::now() + START;
        while UnixStream::connect(&socket).is_err() {
            ensure!(
                Instant::now() < deadline,
                "dockerd does not answer:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(20));
        }
        docker.lead_to(homerun.api())?;
        Ok(docker)
    }

    /// Makes an address of the machine's loopback reachable on the engine's.
    fn lead_to(&self, address: SocketAddr) -> Result<()> {
        let network = PathBuf::from(format!("/proc/{}/ns/net", self.unshare.id()));
        ensure!(
            fs::read_link(&network)? != fs::read_link("/proc/self/ns/net")?,
            "the engine is in the machine's own network"
        );
        // A thread that ends there: a socket stays in the network it was opened in.
        let opened = thread::spawn(move || -> io::Result<TcpListener> {
            let network = File::open(network)?;
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, address.port()))
        });
        let listener = opened
            .join()
            .map_err(|_| anyhow!("the thread of the engine's network panicked"))?
            .context("no port in the engine's network")?;
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(address) else {
                    continue;
                };
                pass(&client, &server);
                pass(&server, &client);
            }
        });
        Ok(())
    }
}

fn pass(from: &TcpStream, to: &TcpStream) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

impl Drop for Docker {
    fn drop(&mut self) {
        // With it goes the first process of the namespace, and with that one all the others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
