//! `cryptvol-e2e`: builds the parts, makes sandboxes, keeps clusters.

use anyhow::Result;
use clap::{Parser, Subcommand};
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::{exec, sandbox};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Build the programs that clusters are made of (once; kept in the cache folder)
    Parts {
        /// Which programs
        #[arg(long, value_enum, default_value = "full")]
        set: Set,
    },
    /// Make the product's container images from the programs beside this one, as archives
    Images {
        /// Folder for the archives
        #[arg(long, default_value = "target/images")]
        out: std::path::PathBuf,
    },
    /// Run a command in namespaces of its own; used as cargo's runner for test binaries
    Sandbox {
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    SandboxInit {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    NodeExecServer {
        #[arg(long)]
        listen: std::net::SocketAddr,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Sub::Parts { set } => {
            println!("{}", Parts::ensure(set)?.dir().display());
        }
        Sub::Images { out } => {
            let program = std::env::current_exe()?;
            let bin = program.parent().unwrap_or(&program);
            for image in cryptvol_e2e::images::build(bin, &out)? {
                println!(
                    "{} {} {}",
                    image.reference,
                    image.digest,
                    image.archive.display()
                );
            }
        }
        Sub::Sandbox { command } => std::process::exit(sandbox::enter(&command, |_| Ok(()))?),
        Sub::NodeExecServer { listen } => exec::serve(listen)?,
        Sub::SandboxInit { command } => std::process::exit(sandbox::init(&command)?),
    }
    Ok(())
}
