//! Command line of the node agent.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use cryptvol_common::telemetry::LogArgs;
use url::Url;

use crate::volume::{failpoint::FailPoint, wanted::UNLOCK_MEMORY_MIB};

/// Attaches encrypted volumes to this node: iSCSI session, LUKS2 header, dm-crypt mapping, link.
#[derive(Debug, Parser)]
#[command(name = "cryptvol-node-agent", version, about)]
pub struct Cli {
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow the NodeVolumes of this node.
    Run(Box<RunArgs>),
    /// Look whether this node can hold encrypted volumes, print what was found, and exit with status 1 if it cannot.
    Check(CheckArgs),
    /// Write the header of a volume with detachedHeader as a file for `cryptsetup open --header`, from its record and the passphrase on
    /// standard input. Whoever has that file and the passphrase can open the disk; any machine will do.
    Header(HeaderArgs),
    /// Serve steps on the node to an agent, over standard input and output.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// Flags of `run`. The API server is found by `KUBECONFIG`, or by the pod's service account.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace of the operator, for the default of --release-url.
    #[arg(long, env = "POD_NAMESPACE", default_value = "cryptvol-system")]
    pub namespace: String,
    /// Base of the operator's key-release endpoint; https://cryptvol-operator.NAMESPACE.svc:8443 where absent.
    #[arg(long, env = "CRYPTVOL_RELEASE_URL")]
    pub release_url: Option<Url>,
    /// Certificates (PEM) that the endpoint's certificate must descend from; the system's where absent. Read anew for
    /// each request.
    #[arg(long, env = "CRYPTVOL_RELEASE_CA_FILE")]
    pub release_ca_file: Option<PathBuf>,
    /// Service-account token with the audience of key release. Read anew for each request.
    #[arg(
        long,
        env = "CRYPTVOL_RELEASE_TOKEN_FILE",
        default_value = "/run/secrets/cryptvol/token"
    )]
    pub token_file: PathBuf,
    /// Address of /livez, /readyz, /metrics and /log-level.
    #[arg(long, env = "CRYPTVOL_ADMIN_LISTEN", default_value = "127.0.0.1:9461")]
    pub admin_listen: SocketAddr,
    /// The machine whose kernel serves this node.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Most steps on the node at the same time: half of them on one target, three quarters of one stage. A step that took 5 s is no
    /// longer counted, up to four times as many.
    #[arg(long, env = "CRYPTVOL_PARALLEL_STEPS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..))]
    pub parallel_steps: u8,
    /// Most memory that key derivation takes at one time, in MiB. Headers that cryptvol writes need none; those that
    /// cryptsetup or os-brick wrote may ask for up to 1024 (Argon2) and are opened one after the other within it.
    #[arg(long, env = "CRYPTVOL_UNLOCK_MEMORY_MIB", default_value_t = UNLOCK_MEMORY_MIB, value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub unlock_memory_mib: u32,
    /// Seconds from one proof of an attached volume to the next: link, mapping, disk and header are walked, and what the mapping reads is
    /// compared with what lies on the disk.
    #[arg(long, env = "CRYPTVOL_PROOF_INTERVAL", default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub proof_interval: u64,
    /// Seconds that I/O of a volume with several paths waits while none of them works, before it fails. The default is what a volume with one
    /// path waits for its session (open-iscsi's replacement_timeout).
    #[arg(long, env = "CRYPTVOL_NO_PATH_TIMEOUT", default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub no_path_timeout: u64,
    /// Seconds from one write of a status in which nothing but paths changed to the next: a portal that comes and goes all the time would
    /// else cost the API server a write, and its readers an Event, each time. The first change is written at once.
    #[arg(long, env = "CRYPTVOL_PATH_STATUS_INTERVAL", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub path_status_interval: u64,
    /// Keep the disks of volumes from a multipathd of the node: a udev rule marks them, and /etc/multipath/conf.d/cryptvol-agent.conf excludes what
    /// is marked; multipathd is told to read it. Without this both are taken away again where they are.
    #[arg(long, env = "CRYPTVOL_EXCLUDE_FROM_MULTIPATHD")]
    pub exclude_from_multipathd: bool,
    /// Seconds from one look for mappings, links and sessions that belong to no NodeVolume to the next. They are told (Event and annotation of
    /// the Node, metric cryptvol_node_orphans) and never removed.
    #[arg(long, env = "CRYPTVOL_ORPHAN_INTERVAL", default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub orphan_interval: u64,
    /// End at once before or after a step, for crash tests: STEP:before:exit or STEP:after:exit.
    #[arg(long, hide = true)]
    pub failpoint: Option<FailPoint>,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The machine whose kernel serves this node.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Flags of `header`.
#[derive(Debug, Args)]
pub struct HeaderArgs {
    /// The record as JSON: status.headerBackup of the volume, or the payload of the secret that status.headerSecret names.
    #[arg(long, value_name = "FILE")]
    pub record: PathBuf,
    /// The file to write. It must not be there.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// The flag --host-proc as an environment variable, and how workers get it.
pub const HOST_PROC: &str = "CRYPTVOL_HOST_PROC";

/// Where the node is a container, as on kind, the kernel's iSCSI, iscsid and udev are the machine's.
#[derive(Clone, Debug, Default, Args)]
pub struct MachineArgs {
    /// procfs of the machine, where this node is a container on it (kind): steps run in the machine's network namespace,
    /// the only one in which the kernel's iSCSI answers, and see the machine's processes.
    #[arg(long, env = HOST_PROC, value_name = "DIR")]
    pub host_proc: Option<PathBuf>,
}

/// Flags of `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Process id of the agent; the worker ends when it is not its parent (any more).
    #[arg(long)]
    pub parent: u32,
    /// The machine whose kernel serves this node.
    #[command(flatten)]
    pub machine: MachineArgs,
}

impl RunArgs {
    /// The key-release endpoint.
    ///
    /// # Errors
    /// When the default cannot be made from the namespace.
    pub fn release_url(&self) -> Result<Url, url::ParseError> {
        match &self.release_url {
            Some(url) => Ok(url.clone()),
            None => Url::parse(&format!(
                "https://cryptvol-operator.{}.svc:8443",
                self.namespace
            )),
        }
    }

    /// The fail point of the flag, or in debug builds of `CRYPTVOL_FAILPOINT`.
    ///
    /// # Errors
    /// When the variable does not name a step.
    pub fn fail_point(&self) -> Result<Option<FailPoint>, String> {
        if self.failpoint.is_some() || !cfg!(debug_assertions) {
            return Ok(self.failpoint.clone());
        }
        match std::env::var("CRYPTVOL_FAILPOINT") {
            Ok(text) => text.parse().map(Some),
            Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_endpoint_follows_from_the_namespace() {
        let cli = Cli::parse_from(["x", "run", "--node-name", "n", "--namespace", "sys"]);
        let Command::Run(args) = cli.command else {
            panic!()
        };
        assert_eq!(
            args.release_url().unwrap().as_str(),
            "https://cryptvol-operator.sys.svc:8443/"
        );
    }
}
