//! The command line. Every option has an environment variable; no secret is an option, only the file it is in.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    accounts::{PasswordRules, RulesError},
    identity::LimitModel,
    policy::PolicySources,
    store::{Place, PlaceError, PostgresUrl},
};

/// Embedded identity and key-manager service: Keystone v3 and Barbican v1 on the wire.
///
/// First start: make a key-encryption key (`kek generate`), then the administrator (`bootstrap`), then `serve`.
#[derive(Debug, Parser)]
#[command(name = "cryptvol-identity", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Format of the log on standard error. The audit trail is in it, with the target `audit`, always as JSON lines.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LOG_FORMAT",
        default_value = "json",
        global = true
    )]
    pub log_format: LogFormat,
    /// What is logged, as `LEVEL` or `TARGET=LEVEL,…`. The audit trail always is; crates of others stay at info.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LOG",
        default_value = "info",
        global = true
    )]
    pub log: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve both APIs behind one address: /identity/v3 and /key-manager/v1.
    Serve(Box<ServeArgs>),
    /// Make domain, project and user admin, the roles, the services and endpoints; may be run again at will.
    Bootstrap(BootstrapArgs),
    /// The key-encryption key, which seals all other keys and is kept apart from the data directory.
    #[command(subcommand)]
    Kek(KekCommand),
    /// Rotate the key-encryption key: put a new one before the others in its file and seal everything by it. The
    /// service goes on meanwhile. Stopped at any point, run it again and it goes on there.
    Rekey(RekeyArgs),
    /// Write all records into one sealed file, while the service runs. What opens it is the key-encryption key: keep that
    /// elsewhere.
    Backup(BackupArgs),
    /// Restore a backup with the key-encryption key, on this machine or another one, and then start the service. All tokens
    /// end.
    Restore(RestoreArgs),
    /// Keys that seal tokens.
    #[command(subcommand)]
    TokenKeys(TokenKeysCommand),
    /// Who may do what: print the default rules, try policy files before they are used.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Policy files of a site. What they do not name keeps its default.
#[derive(Debug, Clone, Default, Args)]
pub struct PolicyArgs {
    /// Folder with policy files in oslo.policy's language, named identity*.yaml and key-manager*.yaml (or .yml,
    /// .json). Read again when they change.
    #[arg(long, env = "CRYPTVOL_IDENTITY_POLICY_DIR", value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// Policy file of the identity API; files of the folder are laid over it.
    #[arg(long, env = "CRYPTVOL_IDENTITY_IDENTITY_POLICY", value_name = "FILE")]
    pub identity_policy: Option<PathBuf>,
    /// Policy file of the key manager; files of the folder are laid over it.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_KEY_MANAGER_POLICY",
        value_name = "FILE"
    )]
    pub key_manager_policy: Option<PathBuf>,
}

impl PolicyArgs {
    /// The same for the policy layer.
    pub fn sources(&self) -> PolicySources {
        PolicySources {
            dir: self.policy_dir.clone(),
            identity: self.identity_policy.clone(),
            key_manager: self.key_manager_policy.clone(),
        }
    }
}

/// Commands about policies. They need no data directory.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the default rules with descriptions, as a policy file in which everything is commented out.
    Sample {
        /// Which API.
        #[arg(default_value = "identity")]
        api: ApiName,
    },
    /// Check policy files; with a caller, say what it may do.
    Check(Box<PolicyCheckArgs>),
}

/// One of the two APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ApiName {
    /// Keystone v3.
    Identity,
    /// Barbican v1.
    KeyManager,
}

/// Options of `policy check`.
///
/// Example: what may a manager of the domain d1 do to a user of the domain d2, and why?
/// `cryptvol-identity policy check --role manager --domain d1 --target target.user.domain_id=d2 --rule
/// identity:update_user --explain`
#[derive(Debug, Args)]
pub struct PolicyCheckArgs {
    /// The files.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Only the rules of one API.
    #[arg(long, value_name = "API")]
    pub api: Option<ApiName>,
    /// Only this rule; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub rule: Vec<String>,
    /// A role that the caller has, implied ones too; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub role: Vec<String>,
    /// The caller's user id.
    #[arg(long, value_name = "ID", default_value = "caller")]
    pub user: String,
    /// The caller's token is for this project.
    #[arg(long, value_name = "ID", conflicts_with_all = ["domain", "system"])]
    pub project: Option<String>,
    /// The caller's token is for this domain.
    #[arg(long, value_name = "ID", conflicts_with = "system")]
    pub domain: Option<String>,
    /// The caller's token is for the system.
    #[arg(long)]
    pub system: bool,
    /// Something known of what the request is about, such as target.user.domain_id=d1; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub target: Vec<(String, String)>,
    /// Say which clauses decided.
    #[arg(long)]
    pub explain: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE".to_owned())
}

/// Where the records are and what seals them.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Records.
    #[command(flatten)]
    pub records: RecordsArgs,
    /// File with the key-encryption key: 32 bytes as hex or base64, outside of the data directory; or with the place of that
    /// key in another key manager (docs/key-encryption-key.md).
    #[arg(long, env = "CRYPTVOL_IDENTITY_KEK_FILE", value_name = "FILE")]
    pub kek_file: PathBuf,
    /// Cost of password hashes (bcrypt rounds, 4 to 31); each step doubles the time.
    #[arg(long, env = "CRYPTVOL_IDENTITY_PASSWORD_ROUNDS", default_value_t = 12, value_name = "N",
          value_parser = clap::value_parser!(u32).range(4..=31))]
    pub password_rounds: u32,
}

/// Where the records are.
#[derive(Debug, Args)]
pub struct RecordsArgs {
    /// Directory of the database; the service makes it if it is missing.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_DATA_DIR",
        value_name = "DIR",
        required_unless_present = "database_url_file"
    )]
    pub data_dir: Option<PathBuf>,
    /// File with the URL of a PostgreSQL database, instead of a directory: for more than one replica. The URL holds a password;
    /// the server has to prove by its certificate that it is the one (`sslrootcert` in the URL names the authority).
    #[arg(long, env = "CRYPTVOL_IDENTITY_DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,
}

impl RecordsArgs {
    /// The place that the options name.
    ///
    /// # Errors
    /// Any [`PlaceError`] but `NotADirectory`.
    pub fn place(&self) -> Result<Place, PlaceError> {
        match &self.database_url_file {
            None => Ok(self.data_dir().into()),
            Some(file) => Ok(Place::Postgres(PostgresUrl::read(file)?)),
        }
    }

    /// The directory, for what works on the files in it.
    ///
    /// # Errors
    /// `NotADirectory` if the records are in a PostgreSQL server.
    pub fn directory(&self) -> Result<&Path, PlaceError> {
        match &self.database_url_file {
            None => Ok(self.data_dir()),
            Some(_) => Err(PlaceError::NotADirectory),
        }
    }

    /// The directory that no key may lie in. Empty if there is none.
    pub fn data_dir(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new(""))
    }
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Records.
    #[command(flatten)]
    pub data: DataArgs,
    /// Address and port of the APIs.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LISTEN",
        default_value = "127.0.0.1:5000",
        value_name = "ADDR:PORT"
    )]
    pub listen: SocketAddr,
    /// Certificate chain (PEM). Read again when it changes.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_TLS_CERT",
        value_name = "FILE",
        required_unless_present = "no_tls",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM). Read again when it changes.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// Serve in the clear; only on a loopback address.
    #[arg(long, env = "CRYPTVOL_IDENTITY_NO_TLS", conflicts_with_all = ["tls_cert", "tls_key"])]
    pub no_tls: bool,
    /// Address and port of the probes and counters (/livez, /readyz, /metrics), in the clear.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_ADMIN_LISTEN",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR:PORT"
    )]
    pub admin_listen: SocketAddr,
    /// Lifetime of a token, in seconds.
    #[arg(long, env = "CRYPTVOL_IDENTITY_TOKEN_LIFETIME", default_value_t = 3600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(60..=604_800))]
    pub token_lifetime: u32,
    /// Password hashes computed at the same time; the default is the number of processors.
    #[arg(long, env = "CRYPTVOL_IDENTITY_PASSWORD_PARALLEL", value_name = "N")]
    pub password_parallel: Option<usize>,
    /// How limits of projects and of their domains go together (`/v3/limits/model`).
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LIMIT_MODEL",
        default_value = "flat",
        value_name = "MODEL"
    )]
    pub limit_model: LimitModel,
    /// Policy files.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Folder with files keystone.DOMAIN.conf, as Keystone's domain_config_dir: `[identity] driver = ldap` and `[ldap]` for
    /// each domain whose users and groups are in a directory. Read again when they change.
    #[arg(long, env = "CRYPTVOL_IDENTITY_DOMAIN_CONFIG_DIR", value_name = "DIR")]
    pub domain_config_dir: Option<PathBuf>,
    /// Passwords and accounts.
    #[command(flatten)]
    pub accounts: AccountArgs,
}

/// Rules for passwords and accounts, named as Keystone's `[security_compliance]`. A user's options exempt it:
/// ignore_lockout_failure_attempts, ignore_password_expiry, ignore_change_password_upon_first_use, lock_password.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Passwords and accounts")]
pub struct AccountArgs {
    /// Lock a user out after so many failed logins in a row; 0: never.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LOCKOUT_FAILURES",
        default_value_t = 0,
        value_name = "N"
    )]
    pub lockout_failures: u32,
    /// How long, in seconds. An administrator ends it by enabling the user.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LOCKOUT_DURATION",
        default_value_t = 1800,
        value_name = "SECONDS"
    )]
    pub lockout_duration: u32,
    /// Days after which a password must be changed; 0: never.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_PASSWORD_EXPIRES_DAYS",
        default_value_t = 0,
        value_name = "DAYS"
    )]
    pub password_expires_days: u32,
    /// Days before a user may change its password again; 0: at once.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_MINIMUM_PASSWORD_AGE",
        default_value_t = 0,
        value_name = "DAYS"
    )]
    pub minimum_password_age: u32,
    /// How many of its last passwords a user may not take again; 0: any.
    #[arg(long, env = "CRYPTVOL_IDENTITY_UNIQUE_LAST_PASSWORD_COUNT", default_value_t = 0, value_name = "N",
          value_parser = clap::value_parser!(u32).range(0..=24))]
    pub unique_last_password_count: u32,
    /// What a password must match from its beginning, as a regular expression (without look-around).
    #[arg(long, env = "CRYPTVOL_IDENTITY_PASSWORD_REGEX", value_name = "REGEX")]
    pub password_regex: Option<String>,
    /// What to tell people whose password does not match.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_PASSWORD_REGEX_DESCRIPTION",
        value_name = "TEXT",
        requires = "password_regex"
    )]
    pub password_regex_description: Option<String>,
    /// A password that somebody else set must be changed by its user before the first login.
    #[arg(long, env = "CRYPTVOL_IDENTITY_CHANGE_PASSWORD_UPON_FIRST_USE")]
    pub change_password_upon_first_use: bool,
    /// Login attempts a second that one account may get, ten times as many at once; 0: any number. Addresses do not
    /// count: behind a load balancer all clients share one.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_LOGIN_RATE",
        default_value_t = 50,
        value_name = "N"
    )]
    pub login_rate: u32,
}

impl AccountArgs {
    /// The same as rules.
    ///
    /// # Errors
    /// If the regular expression does not parse.
    pub fn rules(&self) -> Result<PasswordRules, RulesError> {
        let some = |number: u32| (number > 0).then_some(number);
        let rules = PasswordRules {
            expires_days: some(self.password_expires_days),
            min_age_days: some(self.minimum_password_age),
            history: self.unique_last_password_count,
            strength: None,
            change_upon_first_use: self.change_password_upon_first_use,
            lockout_failures: some(self.lockout_failures),
            lockout_secs: self.lockout_duration,
        };
        match &self.password_regex {
            Some(regex) => rules.with_strength(regex, self.password_regex_description.as_deref()),
            None => Ok(rules),
        }
    }
}

/// Options of `bootstrap`.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// Records.
    #[command(flatten)]
    pub data: DataArgs,
    /// File with the password of the user admin; white space at its end is not part of it.
    #[arg(long, env = "CRYPTVOL_IDENTITY_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: PathBuf,
    /// Where clients reach the service, without a path, such as https://keys.example.org:5000.
    #[arg(long, env = "CRYPTVOL_IDENTITY_PUBLIC_URL", value_name = "URL")]
    pub public_url: String,
    /// Region of the endpoints.
    #[arg(
        long,
        env = "CRYPTVOL_IDENTITY_REGION",
        default_value = "RegionOne",
        value_name = "NAME"
    )]
    pub region: String,
}

/// Options of `rekey`.
#[derive(Debug, Args)]
pub struct RekeyArgs {
    /// Records.
    #[command(flatten)]
    pub records: RecordsArgs,
    /// File with the key-encryption keys, newest first, as the running service reads it.
    #[arg(long, env = "CRYPTVOL_IDENTITY_KEK_FILE", value_name = "FILE")]
    pub kek_file: PathBuf,
    /// Take the older keys out of the file afterwards. Copies of the database from before cannot be opened then.
    #[arg(long)]
    pub forget_old: bool,
}

/// Options of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Records. For as long as the backup runs their directory needs room for the database once more.
    #[command(flatten)]
    pub records: RecordsArgs,
    /// File with the key-encryption key.
    #[arg(long, env = "CRYPTVOL_IDENTITY_KEK_FILE", value_name = "FILE")]
    pub kek_file: PathBuf,
    /// The sealed file, which must not exist yet; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Records.
    #[command(flatten)]
    pub records: RecordsArgs,
    /// File with the key-encryption key that the service had when the backup was made.
    #[arg(long, env = "CRYPTVOL_IDENTITY_KEK_FILE", value_name = "FILE")]
    pub kek_file: PathBuf,
    /// The sealed file; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// Replace the database that is there. It is gone then.
    #[arg(long)]
    pub replace: bool,
}

/// Commands about the keys that seal tokens.
#[derive(Debug, Subcommand)]
pub enum TokenKeysCommand {
    /// Make a new key that seals tokens from now on. The service goes on meanwhile, and takes it within a minute; tokens that are
    /// there live on, and a key is forgotten once none of them can be left.
    Rotate(RotateArgs),
}

/// Options of `token-keys rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Records.
    #[command(flatten)]
    pub records: RecordsArgs,
    /// File with the key-encryption keys, as the running service reads it.
    #[arg(long, env = "CRYPTVOL_IDENTITY_KEK_FILE", value_name = "FILE")]
    pub kek_file: PathBuf,
    /// Forget all older keys at once, which ends every token that there is: for when a key became known.
    #[arg(long)]
    pub end_tokens: bool,
}

/// Commands about the key-encryption key.
#[derive(Debug, Subcommand)]
pub enum KekCommand {
    /// Write a new random key into a file that does not exist yet (mode 0400).
    Generate {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_needs_a_certificate_or_a_word_against_it() {
        let base = [
            "cryptvol-identity",
            "serve",
            "--data-dir",
            "d",
            "--kek-file",
            "k",
        ];
        assert!(Cli::try_parse_from(base).is_err());
        assert!(Cli::try_parse_from(base.iter().chain(&["--no-tls"])).is_ok());
        assert!(Cli::try_parse_from(base.iter().chain(&["--tls-cert", "c"])).is_err());
        assert!(
            Cli::try_parse_from(base.iter().chain(&["--tls-cert", "c", "--tls-key", "k"])).is_ok()
        );
    }
}
