//! A real Keystone 30 and a real Barbican 23, as the identity service's peer: installed from the Python package registry,
//! run by uWSGI with two workers each, caching in memcached, records in SQLite. All of it in one folder, on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::http1::{Address, Client};
use crate::process::{Daemon, free_port};
use crate::python::Environment;

const ENVIRONMENT: Environment = Environment {
    what: "Keystone and Barbican",
    requirements: include_str!("../requirements-services.txt"),
};
const REGION: &str = "RegionOne";
const START_LIMIT: Duration = Duration::from_secs(120);
/// Workers of each service.
const WORKERS: &str = "2";

/// Both services, running. Dropping it kills them; their files are the caller's.
#[derive(Debug)]
pub struct OpenStack {
    dir: PathBuf,
    venv: PathBuf,
    cache_port: u16,
    keystone_port: u16,
    barbican_port: u16,
    password: String,
    daemons: Vec<Daemon>,
}

impl OpenStack {
    /// Installs what is missing. That needs a package registry, so do it before entering a sandbox.
    pub fn ensure() -> Result<PathBuf> {
        ENVIRONMENT.ensure()
    }

    /// Makes both services in `dir` (empty), starts them, and gives Barbican its user and its endpoint.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, "")
    }

    /// The same, with `settings` at the end of Keystone's configuration; makes `dir`.
    pub fn start_with(dir: &Path, settings: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut services = Self {
            dir: dir.to_path_buf(),
            venv: ENVIRONMENT.ensure()?,
            cache_port: free_port()?,
            keystone_port: free_port()?,
            barbican_port: free_port()?,
            password: "bootstrap-password".into(),
            daemons: Vec::new(),
        };
        services.configure(settings)?;
        services.launch()?;
        services.register_barbican()?;
        Ok(services)
    }

    /// Where the identity API is: `…/v3`.
    pub fn identity(&self) -> Address {
        Address::new(self.keystone_port, "/v3")
    }

    /// Where the key-manager API is: `…/v1`.
    pub fn key_manager(&self) -> Address {
        Address::new(self.barbican_port, "/v1")
    }

    /// Password of the user admin.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The process groups: memcached, Keystone, Barbican.
    pub fn groups(&self) -> Vec<i32> {
        self.daemons.iter().map(Daemon::pid).collect()
    }

    /// Starts all processes and says how long it took until both services answered.
    pub fn launch(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let mut memcached = Command::new("memcached");
        memcached.args(["-u", "root", "-l", "127.0.0.1", "-m", "64", "-p"]);
        memcached.arg(self.cache_port.to_string());
        self.daemons
            .push(Daemon::spawn(&self.dir, "memcached", memcached)?);
        for (name, module, port) in [
            (
                "keystone",
                "keystone.wsgi.api:application",
                self.keystone_port,
            ),
            ("barbican", "barbican_site:application", self.barbican_port),
        ] {
            let mut uwsgi = self.command("uwsgi");
            uwsgi
                .args(["--http-socket", &format!("127.0.0.1:{port}")])
                .args(["--module", module, "--processes", WORKERS])
                .args(["--pythonpath", &self.dir.to_string_lossy()])
                .args([
                    "--master",
                    "--die-on-term",
                    "--need-app",
                    "--disable-logging",
                ])
                .args(["--buffer-size", "65535", "--thunder-lock"])
                // Each connection serves one request; clients that would use it again must know.
                .args(["--add-header", "Connection: close"]);
            self.daemons.push(Daemon::spawn(&self.dir, name, uwsgi)?);
        }
        for (address, path) in [(self.identity(), ""), (self.key_manager(), "/../")] {
            while Client::new(&address).get(path, &[]).is_err() {
                for daemon in &self.daemons {
                    daemon.check()?;
                }
                ensure!(
                    start.elapsed() < START_LIMIT,
                    "Keystone and Barbican do not answer after {START_LIMIT:?}:\n{}",
                    self.daemons
                        .iter()
                        .map(|daemon| daemon.log_tail(15))
                        .collect::<Vec<_>>()
                        .join("\n")
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(start.elapsed())
    }

    /// Kills all processes.
    pub fn kill(&mut self) -> Result<()> {
        for mut daemon in self.daemons.drain(..) {
            daemon.kill()?;
        }
        Ok(())
    }

    /// A program of the environment that finds the configuration in this folder and nowhere else.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.venv.join("bin").join(program));
        command
            .current_dir(&self.dir)
            // Barbican looks for its configuration in the home folder.
            .env("HOME", &self.dir)
            .env("OS_KEYSTONE_CONFIG_FILES", self.dir.join("keystone.conf"));
        command
    }

    fn manage(&self, program: &str, args: &[&str]) -> Result<()> {
        let output = self.command(program).args(args).output()?;
        ensure!(
            output.status.success(),
            "{program} {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn configure(&self, settings: &str) -> Result<()> {
        let dir = self.dir.to_string_lossy();
        let (cache, keystone) = (self.cache_port, self.keystone_port);
        for folder in ["fernet", "credential", ".barbican"] {
            let folder = self.dir.join(folder);
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        }
        let text = format!(
            "[DEFAULT]\nuse_stderr = true\n\
             [database]\nconnection = sqlite:///{dir}/keystone.sqlite\n\
             [cache]\nenabled = true\nbackend = oslo_cache.memcache_pool\nmemcache_servers = 127.0.0.1:{cache}\n\
             [token]\nprovider = fernet\n\
             [fernet_tokens]\nkey_repository = {dir}/fernet\n\
             [fernet_receipts]\nkey_repository = {dir}/fernet\n\
             [credential]\nkey_repository = {dir}/credential\n{settings}"
        );
        fs::write(self.dir.join("keystone.conf"), text)?;
        let text = format!(
            "[DEFAULT]\nuse_stderr = true\nhost_href = http://127.0.0.1:{barbican}\ndb_auto_create = false\n\
             [database]\nconnection = sqlite:///{dir}/barbican.sqlite\n\
             [queue]\nenable = false\n\
             [simple_crypto_plugin]\nkek = YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=\n\
             [keystone_authtoken]\nwww_authenticate_uri = http://127.0.0.1:{keystone}/v3\n\
             auth_url = http://127.0.0.1:{keystone}/v3\nauth_type = password\nusername = barbican\n\
             password = {password}\nproject_name = service\nuser_domain_id = default\nproject_domain_id = default\n\
             memcached_servers = 127.0.0.1:{cache}\nservice_token_roles_required = true\n",
            barbican = self.barbican_port,
            password = self.password,
        );
        fs::write(self.dir.join(".barbican/barbican.conf"), text)?;
        // The packaged entry point reads its pipeline from a folder of the system.
        let pipeline = self.venv.join("etc/barbican/barbican-api-paste.ini");
        let text = format!(
            "from paste import deploy\napplication = deploy.loadapp('config:{}')\n",
            pipeline.display()
        );
        fs::write(self.dir.join("barbican_site.py"), text)?;
        let conf = self
            .dir
            .join("keystone.conf")
            .to_string_lossy()
            .into_owned();
        let keystone = |args: &[&str]| {
            let all = [&["--config-file", conf.as_str()], args].concat();
            self.manage("keystone-manage", &all)
        };
        keystone(&["db_sync"])?;
        let owner = ["--keystone-user", "root", "--keystone-group", "root"];
        for setup in ["fernet_setup", "credential_setup"] {
            keystone(&[&[setup], &owner[..]].concat())?;
        }
        // Without the version, as ours: clients find that by themselves.
        let url = format!("http://127.0.0.1:{}", self.keystone_port);
        keystone(&[
            "bootstrap",
            "--bootstrap-password",
            &self.password,
            "--bootstrap-public-url",
            &url,
            "--bootstrap-internal-url",
            &url,
            "--bootstrap-admin-url",
            &url,
            "--bootstrap-region-id",
            REGION,
        ])?;
        self.manage("barbican-manage", &["db", "upgrade"])
    }

    /// Tells clients to reach Barbican at `url`, as where TLS ends at a load balancer.
    pub fn publish_key_manager(&self, url: &str) -> Result<()> {
        let mut admin = Client::new(&self.identity());
        admin.login("admin", &self.password, "admin")?;
        let list = admin.get("/endpoints?interface=public", &[])?.json();
        let before = format!("http://127.0.0.1:{}", self.barbican_port);
        let endpoint = list["endpoints"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["url"] == before))
            .and_then(|one| one["id"].as_str())
            .context("Barbican has no public endpoint")?;
        let path = format!("/endpoints/{endpoint}");
        let url = json!({"endpoint": {"url": url}});
        admin.json("PATCH", &path, &url).map(drop)
    }

    /// What a deployment makes by hand: the user that checks tokens, the service and its endpoint.
    fn register_barbican(&self) -> Result<()> {
        let mut admin = Client::new(&self.identity());
        admin.login("admin", &self.password, "admin")?;
        let project = admin.make(
            "project",
            json!({"name": "service", "domain_id": "default"}),
        )?;
        let user = admin.make(
            "user",
            json!({"name": "barbican", "domain_id": "default", "password": self.password}),
        )?;
        admin.grant(&project, &user, "service")?;
        let service = admin.make(
            "service",
            json!({"type": "key-manager", "name": "barbican"}),
        )?;
        let url = format!("http://127.0.0.1:{}", self.barbican_port);
        for interface in ["public", "internal", "admin"] {
            let endpoint = json!({
                "service_id": service, "interface": interface, "region_id": REGION, "url": url,
            });
            admin
                .make("endpoint", endpoint)
                .context("register Barbican's endpoint")?;
        }
        Ok(())
    }
}
