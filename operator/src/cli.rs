//! Command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};
use cryptvol_common::telemetry::LogArgs;
use cryptvol_crds::names;

/// Operator of cryptvol: per-volume encryption for hypervisor nodes.
#[derive(Debug, Parser)]
#[command(name = "cryptvol-operator", version)]
pub struct Cli {
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve key release and, on the one replica that leads, reconcile.
    Run(RunArgs),
    /// Make a certificate authority and serving certificates in Secrets, where they are not there yet.
    Certs(CertsArgs),
    /// Work with the audit log of key release.
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        command: AuditCommand,
    },
}

/// Flags of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Address of the key-release endpoint (HTTPS, TLS 1.3, POST /v1/release).
    #[arg(long, env = "CRYPTVOL_RELEASE_LISTEN", default_value = "0.0.0.0:8443")]
    pub release_listen: SocketAddr,
    /// Certificate chain of the key-release endpoint (PEM). Read again when it changes.
    #[arg(
        long,
        env = "CRYPTVOL_TLS_CERT",
        default_value = "/etc/cryptvol/tls/tls.crt"
    )]
    pub tls_cert: PathBuf,
    /// Private key of the key-release endpoint (PEM). Read again when it changes.
    #[arg(
        long,
        env = "CRYPTVOL_TLS_KEY",
        default_value = "/etc/cryptvol/tls/tls.key"
    )]
    pub tls_key: PathBuf,
    /// Address of the admin server (HTTP: /livez, /readyz, /metrics, PUT /log-level).
    #[arg(long, env = "CRYPTVOL_ADMIN_LISTEN", default_value = "0.0.0.0:8080")]
    pub admin_listen: SocketAddr,
    /// Namespace of this pod: its lease lives there, and the node agent's service account.
    #[arg(long, env = "CRYPTVOL_NAMESPACE")]
    pub namespace: String,
    /// Name of this process in the lease and in Events.
    #[arg(long, env = "HOSTNAME", default_value = "cryptvol-operator")]
    pub pod_name: String,
    /// Name of the lease by which one replica leads.
    #[arg(long, env = "CRYPTVOL_LEASE_NAME", default_value = names::OPERATOR_LEASE)]
    pub lease_name: String,
    /// Lead without a lease. Only where there is exactly one process.
    #[arg(long, env = "CRYPTVOL_NO_LEADER_ELECTION")]
    pub no_leader_election: bool,
    /// Certificates (PEM) to trust, beside the system's, for KeyServices without a caBundle. Read again when it changes.
    #[arg(long, env = "CRYPTVOL_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// File to append audit records to, beside standard output. Made with mode 0600; rotate it by restarting.
    #[arg(long, env = "CRYPTVOL_AUDIT_FILE")]
    pub audit_file: Option<PathBuf>,
    /// Seconds between two looks at a header's second copy in the key manager (detachedHeader). After a start all are looked at within ten
    /// minutes.
    #[arg(
        long,
        env = "CRYPTVOL_HEADER_CHECK_INTERVAL",
        default_value_t = 21_600,
        value_parser = clap::value_parser!(u64).range(1..=31_536_000)
    )]
    pub header_check_interval: u64,
}

/// Flags of `certs`.
#[derive(Clone, Debug, clap::Args)]
pub struct CertsArgs {
    /// Namespace of the Secrets and the ConfigMap.
    #[arg(long, env = "CRYPTVOL_NAMESPACE")]
    pub namespace: String,
    /// Secret (type kubernetes.io/tls) for the serving certificate: tls.crt, tls.key, ca.crt.
    #[arg(long)]
    pub secret: String,
    /// Names and addresses that the certificate is for. Another list than the Secret's makes a new certificate.
    #[arg(long, required = true, value_delimiter = ',')]
    pub dns: Vec<String>,
    /// Secret (type kubernetes.io/tls) for the authority's certificate and key. Shared by several calls.
    #[arg(long, default_value = "cryptvol-ca")]
    pub ca_secret: String,
    /// ConfigMap for the authority's certificate alone (key ca.crt).
    #[arg(long, default_value = "cryptvol-ca")]
    pub ca_configmap: String,
    /// Days that a new serving certificate is good for.
    #[arg(long, default_value_t = 3650)]
    pub valid_days: u16,
}

/// What to do with the audit log.
#[derive(Clone, Debug, Subcommand)]
pub enum AuditCommand {
    /// Check the hash chains in a file or in the log of a container.
    Verify {
        /// File, or `-` for standard input.
        file: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from([
            "x",
            "certs",
            "--namespace",
            "n",
            "--secret",
            "s",
            "--dns",
            "a,b",
            "--dns",
            "c",
        ])
        .unwrap();
        let Command::Certs(args) = cli.command else {
            panic!()
        };
        assert_eq!(args.dns, ["a", "b", "c"]);
    }
}
