//! `kubectl cryptvol`: what a volume is doing and what to do about it, in words.

mod attach;
mod check;
mod connect;
mod in_use;
mod orphans;
mod permit;
mod restore;
mod rotate;
mod status;
mod text;

use anyhow::Result;
use clap::{Parser, Subcommand};

use connect::{Connection, Target};

#[derive(Parser)]
#[command(
    name = "kubectl-cryptvol",
    bin_name = "kubectl cryptvol",
    version,
    about = "Encrypted volumes: how they fare, and what to do",
    after_help = "A volume is named NAME (with -n NAMESPACE, or in the namespace of the current context) or NAMESPACE/NAME."
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Explain a volume: its conditions with their next steps, its disk, its key, its history
    Status {
        #[command(flatten)]
        target: Target,
    },
    /// Show which nodes can hold encrypted volumes and whether the key services answer; fails when something does not
    Check,
    /// Show what of cryptvol's is on nodes and belongs to no volume there, whose it probably is, and what to do; removes nothing
    Orphans {
        /// Only of this node
        #[arg(long)]
        node: Option<String>,
    },
    /// Allow formatting once more, after a format that was interrupted
    #[command(
        long_about = "Allow formatting once more, after a format that was interrupted.\n\nA format permit is spent \
        before the first byte is written, so that no crash can lead to a second format of a disk that holds data. When the \
        node dies in between, only a person can say that the disk never held data. This asks for the volume's LUKS UUID as \
        a proof that its status was read. It is refused for a volume that was ever opened."
    )]
    PermitFormat {
        #[command(flatten)]
        target: Target,
        /// LUKS UUID of the volume; asked for on the terminal when absent
        #[arg(long, value_name = "UUID")]
        luks_uuid: Option<String>,
    },
    /// Take a volume's key out of its node's kernel; whoever has the device open waits
    Suspend {
        #[command(flatten)]
        target: Target,
    },
    /// Let a suspended volume go on; its key is asked for anew
    Resume {
        #[command(flatten)]
        target: Target,
    },
    /// Have the node look at the size of a volume's disk now, and make the device longer where it has grown
    Grow {
        #[command(flatten)]
        target: Target,
    },
    /// Write a volume's header anew from its backup, where it was overwritten
    #[command(
        long_about = "Write a volume's header anew from its backup, where it was overwritten.\n\nEach volume with a LUKS2 header \
        has a backup of it in its record, sealed under its key. The node that the volume is attached to writes the header where it \
        is missing or opens no more, and nothing where it opens; the data behind it is not touched. Size and WWID of the disk are \
        compared first. This asks for the volume's LUKS UUID as a proof that its status was read."
    )]
    RestoreHeader {
        #[command(flatten)]
        target: Target,
        /// LUKS UUID of the volume; asked for on the terminal when absent
        #[arg(long, value_name = "UUID")]
        luks_uuid: Option<String>,
    },
    /// Replace a volume's key by a new one; the data is not encrypted anew
    #[command(
        long_about = "Replace a volume's key by a new one; the data is not encrypted anew.\n\nThe key manager makes a new \
        key, the header gets a key slot for it, and only when it was shown to open the volume are the former key's slot \
        wiped and the former key destroyed. Guests go on meanwhile. A node that dies at any moment leaves a volume that the \
        key on record opens. A volume that is detached is rotated when it is attached next."
    )]
    RotateKey {
        #[command(flatten)]
        target: Target,
    },
    /// Attach a volume to a node
    Attach {
        #[command(flatten)]
        target: Target,
        /// Name of the node
        #[arg(long)]
        node: String,
        #[command(flatten)]
        wait: attach::Wait,
    },
    /// Detach a volume from its node; key and data stay
    Detach {
        #[command(flatten)]
        target: Target,
        /// Only if it is attached to this node
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        wait: attach::Wait,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // One line with its causes; never a backtrace, whatever RUST_BACKTRACE says.
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    // Fails only when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let cluster = cli.connection.open().await?;
    match cli.command {
        Command::Status { target } => status::run(&cluster.volume(&target)?).await,
        Command::Check => check::run(&cluster).await,
        Command::Orphans { node } => orphans::run(&cluster, node.as_deref()).await,
        Command::PermitFormat { target, luks_uuid } => {
            permit::run(&cluster.volume(&target)?, luks_uuid).await
        }
        Command::Suspend { target } => in_use::suspend(&cluster.volume(&target)?, true).await,
        Command::Resume { target } => in_use::suspend(&cluster.volume(&target)?, false).await,
        Command::Grow { target } => in_use::grow(&cluster.volume(&target)?).await,
        Command::RestoreHeader { target, luks_uuid } => {
            restore::run(&cluster.volume(&target)?, luks_uuid).await
        }
        Command::RotateKey { target } => rotate::run(&cluster.volume(&target)?).await,
        Command::Attach { target, node, wait } => {
            attach::attach(&cluster.volume(&target)?, &node, &wait).await
        }
        Command::Detach { target, node, wait } => {
            attach::detach(&cluster.volume(&target)?, node.as_deref(), &wait).await
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
