//! Free ports and this machine's own address.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};

/// Different ports that were free on `address` just now. Somebody else may take one before it is used: callers retry.
pub(super) fn free<const N: usize>(address: IpAddr) -> Result<[u16; N]> {
    // All are held until all are found, or the kernel may give one twice.
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("find a free port on {address}"))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Whether something listens there.
pub(super) fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

/// The address by which this machine reaches others, and they it; pods reach it too, which loopback is not.
pub(super) fn own_address() -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Connecting a datagram socket sends nothing: it only asks the routing table. The address is for documentation.
    socket
        .connect((Ipv4Addr::new(198, 51, 100, 1), 9))
        .context("this machine has no IPv4 route: a node needs one")?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Ok(address),
        other => {
            anyhow::bail!("this machine's own address is {other}: a node needs an IPv4 address that pods can reach")
        }
    }
}
