//! The node agent; see the library for what it does.

use std::process::ExitCode;

use clap::Parser;
use cryptvol_node_agent::{cli::Cli, run};

/// Wipes memory when it is freed. HTTP and TLS libraries keep what they decrypted in buffers of their own; this way none of
/// it outlives them.
#[global_allocator]
static WIPING: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    // Fails only when there is one already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run::run(Cli::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("cryptvol-node-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
