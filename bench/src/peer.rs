//! The peers: nginx and HAProxy, reverse proxies before the very container that Homerun serves. They run inside that
//! instance's network namespace, since the container can be reached nowhere else, and so does their load: both ways are
//! loopback. One worker each; TLS with a P-256 certificate as ours has.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    HaProxy,
}

#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    kind: Kind,
    /// A process of the instance, whose network namespace it is in.
    pub(crate) inside: u32,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "haproxy",
        }
    }

    /// Of the namespace, in which nobody else listens: without and with TLS.
    fn ports(self) -> [u16; 2] {
        match self {
            Self::Nginx => [9101, 9102],
            Self::HaProxy => [9103, 9104],
        }
    }
}

impl Peer {
    pub(crate) fn before(kind: Kind, inside: u32, container_port: u16, dir: &Path) -> Result<Self> {
        let certificate = dir.join("peer.pem");
        if !certificate.exists() {
            make_certificate(&certificate)?;
        }
        let config = dir.join(format!("{}.conf", kind.program()));
        let text = match kind {
            Kind::Nginx => nginx(container_port, dir, &certificate),
            Kind::HaProxy => haproxy(container_port, &certificate),
        };
        fs::write(&config, text)?;
        let arguments: &[&str] = match kind {
            Kind::Nginx => &["-c"],
            Kind::HaProxy => &["-db", "-q", "-f"],
        };
        let child = Command::new("nsenter")
            .args(["-t", &inside.to_string(), "-n", kind.program()])
            .args(arguments)
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", kind.program()))?;
        let mut peer = Self { child, kind, inside };
        peer.wait_until_up()?;
        Ok(peer)
    }

    pub(crate) fn port(&self) -> u16 {
        self.kind.ports()[0]
    }

    pub(crate) fn tls_port(&self) -> u16 {
        self.kind.ports()[1]
    }

    /// The process itself: `nsenter -n` becomes it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let name = self.kind.program();
        let port = self.port();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{name} ended with {status}");
            }
            let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
            let answers = Command::new("nsenter")
                .args(["-t", &self.inside.to_string(), "-n", "bash", "-c", &probe])
                .stderr(Stdio::null())
                .status()?;
            if answers.success() {
                // Inside the namespace and nowhere else, or the comparison would be with something else.
                ensure!(
                    TcpStream::connect(("127.0.0.1", port)).is_err(),
                    "port {port} of the machine itself answers"
                );
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} does not answer after 10 s");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        let _ = self.child.wait();
    }
}

fn nginx(container_port: u16, dir: &Path, certificate: &Path) -> String {
    let [plain, tls] = Kind::Nginx.ports();
    let (dir, certificate) = (dir.display(), certificate.display());
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {dir}/nginx-{kind};\n"))
        .concat();
    format!(
        "daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log /dev/null;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 100000000;
{temp}    upstream container {{
        server 127.0.0.1:{container_port};
        keepalive 1024;
        keepalive_requests 100000000;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection \"\";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        listen 127.0.0.1:{tls} ssl http2 backlog=4096;
        location / {{ proxy_pass http://container; }}
    }}
}}
"
    )
}

fn haproxy(container_port: u16, certificate: &Path) -> String {
    let [plain, tls] = Kind::HaProxy.ports();
    let certificate = certificate.display();
    format!(
        "global
    nbthread 1
    maxconn 8192
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
    option forwardfor
frontend in
    bind 127.0.0.1:{plain} backlog 4096
    bind 127.0.0.1:{tls} backlog 4096 ssl crt {certificate} alpn h2,http/1.1
    default_backend container
backend container
    http-reuse always
    server container 127.0.0.1:{container_port} pool-max-conn 1024
"
    )
}

/// Key and certificate in one file, as HAProxy wants them.
fn make_certificate(file: &Path) -> Result<()> {
    let key = file.with_extension("key");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=peer", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(file)
        .stderr(Stdio::null())
        .status()
        .context("cannot run openssl")?;
    ensure!(made.success(), "openssl makes no certificate");
    let both = [fs::read(file)?, fs::read(key)?].concat();
    fs::write(file, both)?;
    Ok(())
}
