//! `cryptvol-operator`.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let cli = cryptvol_operator::cli::Cli::parse();
    // Two threads are plenty for what waits for others most of the time, and keep memory down.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(cryptvol_operator::run::main(cli))
}
