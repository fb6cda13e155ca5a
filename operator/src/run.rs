//! The process: what runs on every replica, what only on the leading one, and how it all ends.

use std::{io::BufReader, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use cryptvol_common::{
    admin::{self, Admin, Readiness},
    shutdown,
    telemetry::{self, LogHandle},
};
use cryptvol_crds::names;
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{AuditCommand, Cli, Command, RunArgs},
    context::{Claims, Context, Memos},
    copies::Copies,
    key_service,
    leader::{Candidate, Held},
    metrics::Metrics,
    release::{audit, audit::Audit, server::Endpoint, tls::Files},
    retry::Retries,
    tenants::Tenants,
    volume::quota::Ledger,
    volume::{controller, orphans},
};

/// How long passes that are under way may take to end.
const GRACE: Duration = Duration::from_secs(20);

/// Does what the command line says.
///
/// # Errors
/// Whatever ends the process before it was told to end.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Audit { command } => match command {
            AuditCommand::Verify { file } => verify(&file),
        },
        Command::Certs(args) => {
            telemetry::init(&cli.log)?;
            crate::certs::run(args).await
        }
        Command::Run(args) => {
            let log = telemetry::init(&cli.log)?;
            run(args, log).await
        }
    }
}

fn verify(file: &Path) -> anyhow::Result<()> {
    let report = if file == Path::new("-") {
        audit::verify(std::io::stdin().lock())
    } else {
        let input = std::fs::File::open(file).with_context(|| file.display().to_string())?;
        audit::verify(BufReader::new(input))
    };
    let report = report.with_context(|| file.display().to_string())?;
    use std::io::Write;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} records in {} chains, whole; {} other lines",
        report.records,
        report.chains.len(),
        report.other_lines
    )?;
    for (chain, seq, hash) in &report.chains {
        writeln!(out, "chain {chain}: last record {seq}, hash {hash}")?;
    }
    Ok(())
}

/// What every part of the process has.
struct Process {
    args: RunArgs,
    client: Client,
    tenants: Arc<Tenants>,
    metrics: Metrics,
    readiness: Readiness,
    stop: CancellationToken,
}

async fn run(args: RunArgs, log: LogHandle) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = args.namespace,
        pod = args.pod_name,
        "starting"
    );
    let client = Client::try_default()
        .await
        .context("no way to the API server")?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    let process = Process {
        tenants: Arc::new(Tenants::new(client.clone(), args.ca_file.clone())),
        args,
        client,
        metrics,
        readiness: readiness.clone(),
        stop: stop.clone(),
    };
    let admin = Admin {
        readiness,
        registry: Arc::new(registry),
        log,
    };
    let listener = TcpListener::bind(process.args.admin_listen)
        .await
        .with_context(|| format!("admin server on {}", process.args.admin_listen))?;
    // The first part that ends, ends the process; the rest is told to end by the token.
    let ended = tokio::select! {
        r = unless_told(&stop, admin::serve(listener, admin, stop.clone())) => r.context("admin server"),
        r = unless_told(&stop, release(&process)) => r.context("key release"),
        r = lead(&process) => r.context("reconciling"),
    };
    let told = stop.is_cancelled();
    stop.cancel();
    match ended {
        Ok(()) if told => {
            tracing::info!("ended");
            Ok(())
        }
        Ok(()) => anyhow::bail!("a part ended that should run for ever"),
        Err(e) => Err(e),
    }
}

/// The end of a part; one that ends because it was told to leaves it to the leading part to end the process, which has
/// a lease to give back.
async fn unless_told<T>(stop: &CancellationToken, part: impl Future<Output = T>) -> T {
    let ended = part.await;
    if stop.is_cancelled() {
        std::future::pending::<()>().await;
    }
    ended
}

async fn release(process: &Process) -> anyhow::Result<()> {
    let args = &process.args;
    process
        .readiness
        .not_ready("key-release", "not listening yet");
    let files = Files {
        cert: args.tls_cert.clone(),
        key: args.tls_key.clone(),
    };
    let (tls, loaded) = files.load()?;
    let audit = Audit::open(args.audit_file.as_deref()).context("audit file")?;
    let endpoint = Arc::new(Endpoint::new(
        process.client.clone(),
        process.tenants.clone(),
        audit,
        process.metrics.clone(),
        args.namespace.clone(),
    ));
    let app = endpoint
        .router()
        .into_make_service_with_connect_info::<SocketAddr>();
    let handle = axum_server::Handle::new();
    let server = axum_server::bind_rustls(args.release_listen, tls.clone()).handle(handle.clone());
    let serving = tokio::spawn(server.serve(app));
    match handle.listening().await {
        Some(at) => tracing::info!(%at, "key release"),
        None => return Ok(serving.await??),
    }
    process.readiness.ready("key-release");
    let stopped = async {
        process.stop.cancelled().await;
        process.readiness.not_ready("key-release", "ending");
        handle.graceful_shutdown(Some(GRACE));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        r = serving => Ok(r??),
        () = files.follow(tls, loaded) => Ok(()),
        () = stopped => Ok(()),
    }
}

async fn lead(process: &Process) -> anyhow::Result<()> {
    let args = &process.args;
    let mut held = if args.no_leader_election {
        None
    } else {
        let identity = format!("{}_{}", args.pod_name, uuid::Uuid::new_v4());
        let candidate = Candidate::new(
            process.client.clone(),
            &args.namespace,
            &args.lease_name,
            identity,
        );
        tokio::select! {
            held = candidate.acquire() => Some(held),
            () = process.stop.cancelled() => return Ok(()),
        }
    };
    process.metrics.leading.set(1);
    let (stores, streams) = controller::watches(&process.client);
    let ctx = Arc::new(Context {
        client: process.client.clone(),
        stores,
        tenants: process.tenants.clone(),
        memos: Memos::default(),
        copies: Copies::new(
            Duration::from_secs(args.header_check_interval),
            &process.metrics,
        ),
        claims: Claims::default(),
        ledger: Ledger::default(),
        retries: Retries::default(),
        metrics: process.metrics.clone(),
        recorder: Recorder::new(
            process.client.clone(),
            Reporter {
                controller: names::OPERATOR_MANAGER.to_owned(),
                instance: Some(args.pod_name.clone()),
            },
        ),
        key_service_changed: streams.key_service_changed.clone(),
    });
    let changed = ctx.key_service_changed.clone();
    let volumes = controller::run(
        ctx.clone(),
        streams,
        process.readiness.clone(),
        process.stop.clone(),
    );
    let work = async {
        tokio::select! {
            () = volumes => {}
            () = key_service::run(ctx.clone(), changed) => {}
            () = orphans::run(ctx.clone()) => {}
        }
    };
    let bounded = async {
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => {}
            () = process.stop.cancelled() => {
                // What is under way ends in order, or is left to the next leader.
                let _ = tokio::time::timeout(GRACE, work).await;
            }
        }
    };
    let lost = tokio::select! {
        () = bounded => None,
        lost = hold(&mut held) => Some(lost),
    };
    process.metrics.leading.set(0);
    if let Some(lost) = lost {
        // The process must end: passes of ours may still be under way.
        anyhow::bail!(lost);
    }
    if let Some(held) = held {
        held.release().await;
    }
    if process.stop.is_cancelled() {
        Ok(())
    } else {
        anyhow::bail!("the watches ended")
    }
}

async fn hold(held: &mut Option<Held>) -> crate::leader::LeaderError {
    match held {
        Some(held) => held.hold().await,
        None => std::future::pending().await,
    }
}
