//! nginx as the peer: a reverse proxy before the very container that Homerun serves. It runs inside that instance's
//! network namespace, since the container can be reached nowhere else, and so does its load: both ways are loopback.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Of the namespace, in which nobody else listens.
const PORT: u16 = 9101;

#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    /// A process of the instance, whose network namespace it is in.
    pub(crate) inside: u32,
}

impl Nginx {
    pub(crate) fn before(inside: u32, container_port: u16, dir: &Path) -> Result<Self> {
        let config = dir.join("nginx.conf");
        let dir = dir.display();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("    {kind}_temp_path {dir}/nginx-{kind};\n"))
            .concat();
        fs::write(
            &config,
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
    server {{
        listen 127.0.0.1:{PORT} backlog=4096;
        location / {{ proxy_pass http://container; }}
    }}
}}
"
            ),
        )?;
        let child = Command::new("nsenter")
            .args(["-t", &inside.to_string(), "-n", "nginx", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nginx")?;
        let mut nginx = Self { child, inside };
        nginx.wait_until_up()?;
        Ok(nginx)
    }

    pub(crate) fn url() -> String {
        format!("http://127.0.0.1:{PORT}/")
    }

    /// The process itself: `nsenter -n` becomes it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("nginx ended with {status}");
            }
            let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{PORT}");
            let answers = Command::new("nsenter")
                .args(["-t", &self.inside.to_string(), "-n", "bash", "-c", &probe])
                .stderr(Stdio::null())
                .status()?;
            if answers.success() {
                // Inside the namespace and nowhere else, or the comparison would be with something else.
                ensure!(
                    TcpStream::connect(("127.0.0.1", PORT)).is_err(),
                    "port {PORT} of the machine itself answers"
                );
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "nginx does not answer after 10 s");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        let _ = self.child.wait();
    }
}
