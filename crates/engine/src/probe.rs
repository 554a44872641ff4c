//! The startup probe: whether something accepts connections on the instance's own address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use model::Probe;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    network::{ADDRESS, Home},
    watched::watched,
};

/// Nobody listened in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotListening {
    pub(crate) loopback_only: bool,
}

/// Returns when a connection was accepted, or when the probe's patience is over. Tries far more often than the probe's
/// period says, as Cloud Run does: a period only says how long a failure is.
pub(crate) async fn until_listening(home: &Home, network: &OwnedFd, probe: &Probe) -> Result<(), NotListening> {
    let begin = Instant::now();
    let patience = probe.patience();
    sleep(Duration::from_secs(u64::from(probe.initial_delay))).await;
    let port = probe.check.port().get();
    let own = SocketAddr::new(IpAddr::V4(ADDRESS), port);
    let limit = Duration::from_secs(u64::from(probe.timeout));
    loop {
        if accepts(home, network, own, limit).await {
            return Ok(());
        }
        let waited = begin.elapsed();
        if waited >= patience {
            break;
        }
        sleep(pause(waited).min(patience.saturating_sub(waited))).await;
    }
    let mut loopback_only = false;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let at = SocketAddr::new(address, port);
        loopback_only |= accepts(home, network, at, Duration::from_millis(200)).await;
    }
    Err(NotListening { loopback_only })
}

/// How long to wait before the next attempt: a server that starts fast is found within a millisecond, a slow one costs
/// next to nothing.
fn pause(waited: Duration) -> Duration {
    (waited / 20).clamp(Duration::from_millis(1), Duration::from_millis(20))
}

async fn accepts(home: &Home, network: &OwnedFd, to: SocketAddr, limit: Duration) -> bool {
    let attempt = async {
        let socket = home.connect(network, to)?;
        // On a loopback it is decided before connect returns, nearly always.
        if !writable_now(&socket)? {
            let waiting = watched(socket.try_clone()?)?;
            waiting.writable().await?.retain_ready();
        }
        rustix::net::sockopt::socket_error(&socket)??;
        io::Result::Ok(())
    };
    matches!(timeout(limit, attempt).await, Ok(Ok(())))
}

fn writable_now(socket: &OwnedFd) -> io::Result<bool> {
    let mut files = [PollFd::new(socket, PollFlags::OUT)];
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut files, Some(&none))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer() {
        let after = |millis| pause(Duration::from_millis(millis)).as_millis();
        assert_eq!([after(0), after(100), after(10_000)], [1, 5, 20]);
    }
}
