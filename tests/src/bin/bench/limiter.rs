//! A way to a registry that limits each connection, as many a registry does.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What the registry sends over one connection, in bytes a second.
const MOST: f64 = 16e6;

/// How much is passed on at once.
const PIECE: usize = 64 << 10;

/// Listens, and leads to `registry`, for as long as the process lives. Returns where.
pub(crate) fn start(registry: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
    let address = listener.local_addr().context("see where it listens")?;
    thread::spawn(move || {
        for client in listener.incoming().map_while(io::Result::ok) {
            thread::spawn(move || {
                let _ = connect(client, registry); // the client hears of it
            });
        }
    });
    Ok(address)
}

fn connect(mut client: TcpStream, registry: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(registry)?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = limited(&mut from, &mut to); // either may be gone
        let _ = to.shutdown(Shutdown::Both);
    });
    io::copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Write)
}

fn limited(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut free_at = Instant::now();
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..length).unwrap_or_default())?;
        // Who was silent may not send the more for it.
        free_at = free_at.max(Instant::now()) + Duration::from_secs_f64(length as f64 / MOST);
        thread::sleep(free_at.saturating_duration_since(Instant::now()));
    }
}
