//! `cryptvol-e2e`: builds the parts, makes sandboxes, keeps clusters.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use cryptvol_e2e::cluster::{self, Cluster, ClusterOptions};
use cryptvol_e2e::kept::{DEFAULT_NAME, Kept};
use cryptvol_e2e::multipathd::Multipathd;
use cryptvol_e2e::openstack::OpenStack;
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::scsi_dh;
use cryptvol_e2e::{
    bench, compare, demo, disk_load, exec, guest, kind, openstack_client, os_brick, release,
    sandbox, search,
};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Args)]
struct Name {
    /// Name of the cluster
    #[arg(long, env = sandbox::JOIN, default_value = DEFAULT_NAME)]
    name: String,
}

#[derive(Subcommand)]
enum Sub {
    /// Build the programs that clusters are made of, and install the official openstack client (once; kept in the cache folder)
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
    /// Start a cluster, encrypt a volume, and show at each step what happens
    Demo {
        /// Leave the cluster running at the end
        #[arg(long)]
        keep: bool,
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// Run a benchmark; rows go to the terminal and to target/bench/NAME.json
    Bench {
        /// Its name: attach, datapath, identity, kill-cycles (of a volume), kills (of the identity service)
        name: String,
        #[command(flatten)]
        size: bench::Size,
    },
    /// Send the same requests to a real Keystone and Barbican and to the identity service; show what differs
    Compare,
    /// Start a cluster; it stays until Ctrl-C or `down`
    Up {
        #[command(flatten)]
        name: Name,
        /// Number of nodes, 1 to 9
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Memory of each node in MiB, taken from the machine as it is used
        #[arg(long, default_value_t = 3072)]
        memory: u32,
        /// Image archives for every node (may be given several times)
        #[arg(long)]
        image: Vec<std::path::PathBuf>,
        /// Return when it is ready, and leave it running
        #[arg(long)]
        detach: bool,
        /// Install the charts in it, with the images that `images` made
        #[arg(long, requires = "detach")]
        install: bool,
        #[arg(long, hide = true)]
        background: bool,
    },
    /// Install the charts in a cluster, or upgrade them
    Install {
        #[command(flatten)]
        name: Name,
    },
    /// Take a cluster down
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Say whether a cluster is up, and show its nodes
    Status {
        #[command(flatten)]
        name: Name,
    },
    /// Run kubectl against a cluster
    Kubectl {
        #[command(flatten)]
        name: Name,
        /// What kubectl gets
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command inside a cluster's namespaces, with kubectl, helm and KUBECONFIG at hand
    Exec {
        #[command(flatten)]
        name: Name,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Open a shell inside a cluster's namespaces
    Shell {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command on a node, outside its containers
    ExecNode {
        #[command(flatten)]
        name: Name,
        /// For example node-1
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command in namespaces of its own; used as cargo's runner for test binaries
    Sandbox {
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    DiskLoad(disk_load::DiskLoad),
    #[command(hide = true)]
    NodeSearch,
    #[command(hide = true)]
    SandboxInit {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true, disable_help_flag = true)]
    OciRuntime {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
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
            let parts = Parts::ensure(set)?;
            if set == Set::Kind {
                kind::node_image::NodeImage::ensure(&parts)?;
            }
            // Like the parts, it comes from outside, where no sandbox reaches.
            openstack_client::OpenStackClient::ensure()?;
            os_brick::OsBrick::ensure()?;
            OpenStack::ensure()?;
            if let Err(error) = guest::Guest::prepare() {
                eprintln!("no guest image, so tests with a guest will fail: {error:#}");
            }
            if let Err(error) = Multipathd::prepare() {
                eprintln!("no multipathd, so tests beside it will fail: {error:#}");
            }
            if let Err(error) = scsi_dh::prepare() {
                eprintln!("no kernel modules for ALUA, so tests of it will fail: {error:#}");
            }
            println!("{}", parts.dir().display());
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
        Sub::Bench { name, size } if sandbox::require().is_ok() => {
            runtime()?.block_on(bench::run(&name, &size))?
        }
        Sub::Bench { name, size } => {
            bench::prepare(&name, &size)?;
            let again: Vec<_> = std::env::args().skip(1).collect();
            let again: Vec<_> = again.iter().map(String::as_str).collect();
            std::process::exit(sandbox::enter(&this_program(&again)?, |_| Ok(()))?)
        }
        Sub::Compare if sandbox::require().is_ok() => compare::run()?,
        Sub::Compare => {
            OpenStack::ensure()?;
            openstack_client::OpenStackClient::ensure()?;
            std::process::exit(sandbox::enter(&this_program(&["compare"])?, |_| Ok(()))?)
        }
        Sub::Demo { inside: true, .. } => {
            // The outer half blocks them for itself, and children inherit that: tcpdump would not end when told to.
            nix::sys::signal::SigSet::all().thread_unblock()?;
            runtime()?.block_on(demo::inside())?;
        }
        Sub::Demo { keep, .. } => std::process::exit(demo::run(keep)?),
        Sub::Up {
            name,
            nodes,
            memory,
            image,
            detach,
            install,
            background,
        } => {
            let kept = Kept::new(&name.name)?;
            let mut images = image
                .iter()
                .map(std::path::absolute)
                .collect::<Result<Vec<_>, _>>()?;
            if install {
                images.extend(release::image_archives());
            }
            let options = ClusterOptions {
                nodes,
                memory_mib: memory,
                images,
            };
            if detach {
                kept.up_detached(&options)?;
                if install {
                    kept.enter(&this_program(&["install"])?)?;
                }
            } else {
                std::process::exit(kept.up(&options, background)?);
            }
        }
        Sub::Supervise { name } => runtime()?.block_on(Kept::new(&name.name)?.supervise())?,
        Sub::Install { name } => match std::env::var_os(cluster::DIR) {
            None => {
                Kept::new(&name.name)?.enter(&this_program(&["install"])?)?;
            }
            Some(dir) => {
                let cluster = Cluster::attach(std::path::Path::new(&dir))?;
                runtime()?.block_on(release::install(&cluster))?;
            }
        },
        Sub::Down { name } => Kept::new(&name.name)?.down()?,
        Sub::Status { name } => {
            let kept = Kept::new(&name.name)?;
            println!("{}", kept.status()?);
            kept.enter(&words(&["kubectl", "get", "nodes", "-o", "wide"]))?;
        }
        Sub::Kubectl { name, arguments } => {
            Kept::new(&name.name)?.enter(&[words(&["kubectl"]), arguments].concat())?;
        }
        Sub::Exec { name, command } => {
            Kept::new(&name.name)?.enter(&command)?;
        }
        Sub::Shell { name } => {
            let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
            Kept::new(&name.name)?.enter(&[shell])?;
        }
        Sub::ExecNode {
            name,
            node,
            command,
        } => {
            if std::env::var_os(cluster::DIR).is_none() {
                let again: Vec<_> = std::env::args().skip(1).collect();
                let again: Vec<_> = again.iter().map(String::as_str).collect();
                Kept::new(&name.name)?.enter(&this_program(&again)?)?;
            }
            std::process::exit(runtime()?.block_on(exec_node(&node, &command))?);
        }
        Sub::Sandbox { command } if kind::guard::applies(&command) => {
            std::process::exit(kind::guard::run(&command)?)
        }
        Sub::Sandbox { command } => {
            if let Some(name) = std::env::var(sandbox::JOIN)
                .ok()
                .filter(|name| !name.is_empty())
            {
                Kept::new(&name)?.enter(&command)?;
            }
            let code = sandbox::enter(&command, |_| Ok(()));
            kind::machine::sweep();
            std::process::exit(code?)
        }
        Sub::OciRuntime { args } => match kind::oci_runtime::exec(&args)? {},
        Sub::NodeExecServer { listen } => exec::serve(listen)?,
        Sub::DiskLoad(load) => println!("{:.2}", load.run()?),
        Sub::NodeSearch => search::run()?,
        Sub::SandboxInit { command } => std::process::exit(sandbox::init(&command)?),
    }
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// This program with arguments.
fn this_program(arguments: &[&str]) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.display().to_string();
    Ok([vec![program], words(arguments)].concat())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

/// Inside the cluster's namespaces.
async fn exec_node(node: &str, command: &[String]) -> Result<i32> {
    let dir = std::env::var_os(cluster::DIR).unwrap_or_default();
    let cluster = Cluster::attach(std::path::Path::new(&dir))?;
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let output = cluster
        .node(node)?
        .exec_with(&argv, &[], b"", std::time::Duration::from_secs(3600))
        .await?;
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    Ok(output.code)
}
