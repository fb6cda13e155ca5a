//! A TCP port that leads to another one, as a portal of an array does whose addresses are translated on the way.

use std::net::SocketAddr;
use std::thread;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::sandbox::BRIDGE_IP;

/// Takes connections for as long as it lives, in a thread of its own: whoever waits for the test does not wait for its other work.
#[derive(Debug)]
pub struct TcpFront {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TcpFront {
    /// On a port of the bridge that all nodes are on, for `to`.
    pub fn start(to: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener =
            std::net::TcpListener::bind((BRIDGE_IP, 0)).context("a port of the bridge")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = forward(listener, to) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `10.77.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for TcpFront {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn forward(listener: std::net::TcpListener, to: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        connections.spawn(async move {
            if let Ok(mut service) = TcpStream::connect(to).await {
                let _ = copy_bidirectional(&mut client, &mut service).await;
            }
        });
    }
}
