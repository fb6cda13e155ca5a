//! The commands.

use std::{
    io::Read,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::OpenOptionsExt,
            net::{SocketAddr, UnixListener},
        },
    },
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use cryptvol_common::{
    admin::{self, Admin, Readiness},
    shutdown,
    telemetry::{self, LogArgs},
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, task::LocalSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    cli::{CheckArgs, Cli, Command, HOST_PROC, HeaderArgs, MachineArgs, RunArgs, WorkerArgs},
    controller,
    host::{
        Passphrase, probe,
        real::{RealHost, detached},
    },
    metrics::Metrics,
    node_check::{self, Fitness},
    release::{ReleaseClient, ReleaseConfig},
    volume::locks::TargetLocks,
    worker::{
        child, machine,
        places::Limits,
        pool::{Pool, Program},
    },
};

/// Where workers find tools, where they need one.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Does what the command line says and gives the exit status.
///
/// # Errors
/// When the command cannot be begun.
pub fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Check(args) => check(&args),
        Command::Header(args) => header(&args).map(|()| 0),
        Command::Worker(args) => worker(&cli.log, &args).map(|()| 0),
        Command::Run(args) => {
            let log = telemetry::init(&cli.log)?;
            child::keep_secrets_in().context("core dumps cannot be forbidden")?;
            // One thread does all that does not block; what blocks is in the workers. Workers die with the thread that
            // started them, so it must be this one.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(2)
                .build()?;
            LocalSet::new().block_on(&runtime, agent(&cli.log, *args, log))?;
            Ok(0)
        }
    }
}

fn check(args: &CheckArgs) -> Result<u8> {
    enter_machine(&args.machine)?;
    let checks = probe::node();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
        for check in &checks {
            let remarked = !check.next_step.is_empty();
            let mark = match check.ok {
                true if remarked => "but    ",
                true => "ok     ",
                false => "missing",
            };
            println!("{:width$}  {mark}  {}", check.name, check.detail);
            if remarked {
                println!("{:width$}           {}", "", check.next_step);
            }
        }
    }
    Ok(u8::from(checks.iter().any(|c| !c.ok)))
}

/// Longest record of a header that is read, in bytes: many times what one has.
const MAX_RECORD: u64 = 64 << 10;

fn header(args: &HeaderArgs) -> Result<()> {
    child::keep_secrets_in()?;
    let mut record = Vec::new();
    std::fs::File::open(&args.record)
        .and_then(|f| f.take(MAX_RECORD).read_to_end(&mut record))
        .context("the record cannot be read")?;
    let record = serde_json::from_slice(&record).context("the record is not of the form")?;
    // As cryptsetup takes it from standard input of a terminal or a pipe: without the line's end.
    let mut text = zeroize::Zeroizing::new(String::with_capacity(1024));
    std::io::stdin()
        .take(1000)
        .read_to_string(&mut text)
        .context("the passphrase cannot be read from standard input")?;
    let passphrase = Passphrase(text.trim_end_matches(['\r', '\n']).to_owned());
    let to = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.out)
        .with_context(|| format!("{} cannot be made", args.out.display()))?;
    let written = detached::write_file(&record, &passphrase, &to);
    if written.is_err() {
        let _ = std::fs::remove_file(&args.out);
    }
    Ok(written?)
}

fn worker(log: &LogArgs, args: &WorkerArgs) -> Result<()> {
    child::follow(args.parent)?;
    child::keep_secrets_in()?;
    let (mut from, mut to) = child::take_pipes()?;
    enter_machine(&args.machine)?;
    telemetry::init(log)?;
    child::serve(&mut RealHost::new(), &mut from, &mut to)?;
    Ok(())
}

fn enter_machine(args: &MachineArgs) -> Result<()> {
    match &args.host_proc {
        Some(proc) => Ok(machine::enter(proc)?),
        None => Ok(()),
    }
}

async fn agent(log: &LogArgs, args: RunArgs, handle: telemetry::LogHandle) -> Result<()> {
    let stop = shutdown::on_signal()?;
    let fail_point = args.fail_point().map_err(anyhow::Error::msg)?;
    if let Some(point) = &fail_point {
        warn!(
            ?point,
            "a fail point is armed: this agent will end by itself"
        );
    }
    let Some(_alone) = alone(&args.node_name, &stop).await? else {
        return Ok(());
    };
    let client = kube::Client::try_default()
        .await
        .context("no way to the API server: set KUBECONFIG, or run in a pod")?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    let admin = Admin {
        readiness: readiness.clone(),
        registry: Arc::new(registry),
        log: handle,
    };
    let listener = TcpListener::bind(args.admin_listen)
        .await
        .with_context(|| format!("cannot listen on {} (--admin-listen)", args.admin_listen))?;
    let admin = tokio::spawn(admin::serve(listener, admin, stop.clone()));

    let mut environment = vec![
        ("PATH".to_owned(), PATH.to_owned()),
        ("CRYPTVOL_LOG".to_owned(), log.log.clone()),
        (
            "CRYPTVOL_LOG_FORMAT".to_owned(),
            log.log_format
                .to_possible_value()
                .map(|v| v.get_name().to_owned())
                .unwrap_or_default(),
        ),
    ];
    if let Some(proc) = &args.machine.host_proc {
        let proc = proc
            .to_str()
            .context("--host-proc must be a path in UTF-8")?;
        environment.push((HOST_PROC.to_owned(), proc.to_owned()));
    }
    let program = Program::this(environment);
    let pool = Pool::new(
        program,
        Limits::of(usize::from(args.parallel_steps)),
        args.unlock_memory_mib,
    );
    let (tell, fitness) = watch::channel(Fitness::default());
    let checks = tokio::task::spawn_local(node_check::watch(
        client.clone(),
        args.node_name.clone(),
        Rc::clone(&pool),
        args.exclude_from_multipathd,
        tell,
    ));
    let release = ReleaseConfig {
        url: args.release_url()?,
        ca_file: args.release_ca_file.clone(),
        token_file: args.token_file.clone(),
    };
    info!(node = args.node_name, release = %release.url, version = env!("CARGO_PKG_VERSION"), "node agent");
    controller::run(Rc::new(controller::Context {
        client,
        node_name: args.node_name,
        pool,
        release: ReleaseClient::new(release),
        locks: TargetLocks::patient(Duration::from_secs(5)),
        fail_point,
        proof_interval: Duration::from_secs(args.proof_interval),
        no_path_timeout: Duration::from_secs(args.no_path_timeout),
        path_status_interval: Duration::from_secs(args.path_status_interval),
        orphan_interval: Duration::from_secs(args.orphan_interval),
        metrics,
        readiness,
        fitness,
        exclude_from_multipathd: args.exclude_from_multipathd,
        stop: stop.clone(),
        volumes: Default::default(),
        unreadable: Default::default(),
    }))
    .await;
    checks.abort();
    stop.cancel();
    admin.await??;
    info!("ended; mappings and links stay");
    Ok(())
}

/// One agent a node: two would spend one permit twice. The socket is of the kernel's abstract kind, so it is gone with the
/// process, however that ends. `None` when this agent is to end before the other one has.
async fn alone(node: &str, stop: &CancellationToken) -> Result<Option<UnixListener>> {
    let address = SocketAddr::from_abstract_name(format!("cryptvol-node-agent/{node}"))?;
    let mut waiting = false;
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(socket) => return Ok(Some(socket)),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                if !waiting {
                    warn!("another agent runs on this node: waiting until it ends");
                    waiting = true;
                }
            }
            Err(e) => return Err(e).context("cannot tell whether another agent runs on this node"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}
