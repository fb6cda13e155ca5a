//! The load generator: one request, or several in turn, from many connections, each sending the next as soon as its answer
//! is there. One thread, so that the service has the rest of the machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http1::Head;

/// Stands for the status of an answer that did not come.
const NO_ANSWER: u16 = 0;

/// How long to load a service.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Connections at once.
    pub connections: usize,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub run: Duration,
}

/// What came back in the time that counts.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Answers a second with the wanted status.
    pub per_second: f64,
    /// Half of them came within so many milliseconds.
    pub median_ms: f64,
    /// 99 of 100 did.
    pub p99_ms: f64,
    /// Answers with another status; 0: none.
    pub others: BTreeMap<u16, usize>,
}

/// Loads a service with the requests in turn; `wanted` is the status that counts.
///
/// # Errors
/// If no connection can be made or no wanted answer comes at all.
pub fn drive(
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    wanted: u16,
    load: Load,
) -> Result<Measured> {
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(all(address, requests, wanted, load))
    });
    match thread.join() {
        Ok(measured) => measured,
        Err(_) => anyhow::bail!("the load generator broke off"),
    }
}

async fn all(
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    wanted: u16,
    load: Load,
) -> Result<Measured> {
    let requests = Arc::new(requests);
    let from = Instant::now() + load.warm_up;
    let until = from + load.run;
    let tasks: Vec<_> = (0..load.connections)
        .map(|at| tokio::spawn(one(address, Arc::clone(&requests), at, from, until)))
        .collect();
    let mut times = Vec::new();
    let mut others = BTreeMap::new();
    for task in tasks {
        for (status, time) in task.await?? {
            if status == wanted {
                times.push(time);
            } else {
                *others.entry(status).or_default() += 1;
            }
        }
    }
    ensure!(!times.is_empty(), "no answer with {wanted}: {others:?}");
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)].as_secs_f64() * 1000.0
    };
    // A slow service is still answering at the end: its last answers are counted, and so is their time.
    let whole = from.elapsed().max(load.run);
    Ok(Measured {
        per_second: times.len() as f64 / whole.as_secs_f64(),
        median_ms: at(0.5),
        p99_ms: at(0.99),
        others,
    })
}

async fn one(
    address: SocketAddr,
    requests: Arc<Vec<Vec<u8>>>,
    mut at: usize,
    from: Instant,
    until: Instant,
) -> Result<Vec<(u16, Duration)>> {
    let mut times = Vec::new();
    let mut connection: Option<TcpStream> = None;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        let start = Instant::now();
        if start >= until {
            return Ok(times);
        }
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(address).await.context("connect")?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        let request = &requests[at % requests.len()];
        at += 1;
        let answered = match stream.write_all(request).await {
            Ok(()) => answer(&mut stream, &mut buffer).await,
            Err(error) => Err(error.into()),
        };
        // uWSGI resets a connection now and then when it closes it; such a request counts as not answered.
        let status = answered.as_ref().map_or(NO_ANSWER, |head| head.status);
        if start >= from {
            times.push((status, start.elapsed()));
        }
        if answered.is_ok_and(|head| !head.close) {
            connection = Some(stream);
        }
    }
}

/// Takes an answer; its body is not kept.
pub(super) async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Head> {
    buffer.clear();
    let head = loop {
        ensure!(stream.read_buf(buffer).await? > 0, "no answer");
        if let Some(head) = Head::parse(buffer)? {
            break head;
        }
    };
    let mut got = buffer.len() - head.len;
    let whole = head.body.unwrap_or(usize::MAX);
    while got < whole {
        // Long bodies are not kept.
        buffer.clear();
        let more = stream.read_buf(buffer).await?;
        if more == 0 {
            ensure!(head.body.is_none(), "an answer that was cut off");
            break;
        }
        got += more;
    }
    Ok(head)
}
