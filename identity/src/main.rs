//! `cryptvol-identity`: see `cli` for its commands.

use std::{num::NonZeroUsize, sync::Arc, thread::available_parallelism};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use cryptvol_identity::{
    accounts::PasswordRules,
    app::{App, AppConfig},
    backup,
    bootstrap::{BootstrapRequest, bootstrap},
    cli::{
        BackupArgs, BootstrapArgs, Cli, Command, DataArgs, KekCommand, RekeyArgs, RestoreArgs,
        RotateArgs, ServeArgs, TokenKeysCommand,
    },
    crypto::Kek,
    log, policy_command, rekey,
    server::{Listeners, serve},
    token_keys, waiting,
};
use secrecy::SecretString;

fn main() -> Result<()> {
    let cli = Cli::parse();
    log::init(&cli.log, cli.log_format)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider is installed already"))?;
    // Few threads: each has its own heap arena, and the work is short.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors().min(4))
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(cli.command))
}

fn processors() -> usize {
    available_parallelism().map_or(1, NonZeroUsize::get)
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Policy(command) => Ok(policy_command::run(&command)?),
        Command::Kek(KekCommand::Generate { out }) => Ok(Kek::generate(&out)?),
        Command::Rekey(args) => run_rekey(&args).await,
        Command::Backup(args) => run_backup(&args).await,
        Command::Restore(args) => run_restore(&args).await,
        Command::TokenKeys(TokenKeysCommand::Rotate(args)) => run_rotate(&args).await,
        Command::Bootstrap(args) => run_bootstrap(&args).await,
        Command::Serve(args) => run_serve(*args).await,
    }
}

async fn open(data: &DataArgs, serve: Option<&ServeArgs>) -> Result<Arc<App>> {
    let (file, data_dir) = (data.kek_file.clone(), data.records.data_dir().to_path_buf());
    let read = move || Kek::read(&file, &data_dir);
    let kek = match serve {
        Some(args) => waiting::for_kek(args.admin_listen, read).await??,
        None => read()?,
    };
    let config = AppConfig {
        place: data.records.place()?,
        token_lifetime_secs: serve.map_or(3600, |args| args.token_lifetime),
        password_rounds: data.password_rounds,
        password_parallel: serve
            .and_then(|args| args.password_parallel)
            .unwrap_or_else(processors),
        tls: serve.is_none_or(|args| !args.no_tls),
        policy: serve.map(|args| args.policy.sources()).unwrap_or_default(),
        domain_config_dir: serve.and_then(|args| args.domain_config_dir.clone()),
        passwords: match serve {
            Some(args) => args.accounts.rules()?,
            None => PasswordRules::default(),
        },
        login_rate: serve.map_or(0, |args| args.accounts.login_rate),
        limit_model: serve.map(|args| args.limit_model).unwrap_or_default(),
    };
    Ok(App::open(config, kek).await?)
}

async fn run_bootstrap(args: &BootstrapArgs) -> Result<()> {
    let password = std::fs::read_to_string(&args.password_file)
        .map(zeroize::Zeroizing::new)
        .with_context(|| {
            format!(
                "cannot read the password file {}",
                args.password_file.display()
            )
        })?;
    let app = open(&args.data, None).await?;
    let request = BootstrapRequest {
        password: SecretString::from(password.trim_end().to_owned()),
        public_url: args.public_url.clone(),
        region: args.region.clone(),
    };
    bootstrap(&app, &request).await?;
    app.store.close().await;
    Ok(())
}

async fn run_rekey(args: &RekeyArgs) -> Result<()> {
    let kek = Kek::read(&args.kek_file, args.records.data_dir())?;
    let records = args.records.place()?;
    let done = rekey::run(records, &kek, args.forget_old).await?;
    println!(
        "{} keys sealed anew; {} key-encryption keys in {}",
        done,
        kek.count(),
        args.kek_file.display()
    );
    Ok(())
}

/// Stands for standard output or input.
const STREAM: &str = "-";

async fn run_backup(args: &BackupArgs) -> Result<()> {
    let data_dir = args.records.directory()?;
    let kek = Kek::read(&args.kek_file, data_dir)?;
    if args.out.as_os_str() == STREAM {
        let mut out = std::io::stdout().lock();
        let bytes = backup::backup(data_dir, &kek, &mut out).await?;
        eprintln!("{bytes} bytes of records sealed to standard output");
        return Ok(());
    }
    let shown = args.out.display();
    if args.out.exists() {
        return Err(anyhow!("{shown} exists; a backup never overwrites a file"));
    }
    let folder = args.out.parent().filter(|dir| !dir.as_os_str().is_empty());
    // Under another name until it is whole.
    let mut file = tempfile::Builder::new()
        .prefix(".backup-")
        .tempfile_in(folder.unwrap_or_else(|| std::path::Path::new(".")))
        .with_context(|| format!("cannot write beside {shown}"))?;
    let bytes = backup::backup(data_dir, &kek, &mut file).await?;
    file.as_file().sync_all()?;
    file.persist_noclobber(&args.out)
        .with_context(|| format!("cannot write {shown}"))?;
    println!("{bytes} bytes of records sealed in {shown}");
    Ok(())
}

async fn run_restore(args: &RestoreArgs) -> Result<()> {
    let data_dir = args.records.directory()?;
    let kek = Kek::read(&args.kek_file, data_dir)?;
    let mut from: Box<dyn std::io::Read> = if args.from.as_os_str() == STREAM {
        Box::new(std::io::stdin().lock())
    } else {
        let file = std::fs::File::open(&args.from)
            .with_context(|| format!("cannot read the backup {}", args.from.display()))?;
        Box::new(std::io::BufReader::new(file))
    };
    let bytes = backup::restore(data_dir, &kek, &mut *from, args.replace).await?;
    println!(
        "{bytes} bytes of records restored into {}; all tokens have ended",
        data_dir.display()
    );
    Ok(())
}

async fn run_rotate(args: &RotateArgs) -> Result<()> {
    let kek = Kek::read(&args.kek_file, args.records.data_dir())?;
    let records = args.records.place()?;
    let count = token_keys::run(records, &kek, args.end_tokens).await?;
    println!("{count} token keys; a running service takes the new one within a minute");
    Ok(())
}

async fn run_serve(args: ServeArgs) -> Result<()> {
    let app = open(&args.data, Some(&args)).await?;
    app.reload_directories().await?;
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(cert), Some(key)) if !args.no_tls => Some((cert, key)),
        _ => None,
    };
    serve(
        app,
        Listeners {
            listen: args.listen,
            admin: args.admin_listen,
            tls,
        },
    )
    .await?;
    Ok(())
}
