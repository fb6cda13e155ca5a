//! Which cluster, and which volume in it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use cryptvol_crds::EncryptedVolume;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

/// Flags as kubectl has them.
#[derive(Args)]
pub struct Connection {
    /// Kubeconfig file; else KUBECONFIG, else ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the volume
    #[arg(short, long, global = true)]
    namespace: Option<String>,
}

/// A volume on the command line.
#[derive(Args)]
pub struct Target {
    /// NAME or NAMESPACE/NAME
    #[arg(value_name = "VOLUME")]
    volume: String,
}

/// An open connection.
pub struct Cluster {
    /// The client.
    pub client: Client,
    namespace: Option<String>,
    default_namespace: String,
}

/// One volume and how to reach it.
pub struct Volume {
    /// The client.
    pub client: Client,
    /// Volumes of its namespace.
    pub api: Api<EncryptedVolume>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Connection {
    /// Reads the kubeconfig and makes a client; nothing is asked of the server yet.
    pub async fn open(&self) -> Result<Cluster> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("read {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer()
                .await
                .context("no cluster: set KUBECONFIG or give --kubeconfig")?,
        };
        let default_namespace = config.default_namespace.clone();
        Ok(Cluster {
            client: Client::try_from(config)?,
            namespace: self.namespace.clone(),
            default_namespace,
        })
    }
}

impl Cluster {
    /// The volume that the command line names.
    pub fn volume(&self, target: &Target) -> Result<Volume> {
        let (namespace, name) = split(
            &target.volume,
            self.namespace.as_deref(),
            &self.default_namespace,
        )?;
        let api = Api::namespaced(self.client.clone(), &namespace);
        Ok(Volume {
            client: self.client.clone(),
            api,
            namespace,
            name,
        })
    }
}

impl Volume {
    /// Reads it.
    pub async fn get(&self) -> Result<EncryptedVolume> {
        let found = self
            .api
            .get_opt(&self.name)
            .await
            .context("ask the API server")?;
        found.with_context(|| {
            format!(
                "no EncryptedVolume {} in namespace {}: see `kubectl get encryptedvolumes -A`",
                self.name, self.namespace
            )
        })
    }

    /// `namespace/name`.
    pub fn display(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn split(volume: &str, flag: Option<&str>, default: &str) -> Result<(String, String)> {
    let (namespace, name) = match (volume.split_once('/'), flag) {
        (Some((namespace, _)), Some(flag)) if namespace != flag => {
            bail!("{volume} is in namespace {namespace}, but -n says {flag}: leave out one of them")
        }
        (Some((namespace, name)), _) => (namespace, name),
        (None, flag) => (flag.unwrap_or(default), volume),
    };
    if name.is_empty() || namespace.is_empty() || name.contains('/') {
        bail!("{volume:?} is not a volume: write NAME or NAMESPACE/NAME");
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn names_with_and_without_namespace() {
        let ok = |volume, flag| split(volume, flag, "default").unwrap();
        assert_eq!(ok("db-0", None), ("default".into(), "db-0".into()));
        assert_eq!(ok("db-0", Some("demo")), ("demo".into(), "db-0".into()));
        assert_eq!(ok("demo/db-0", None), ("demo".into(), "db-0".into()));
        assert_eq!(
            ok("demo/db-0", Some("demo")),
            ("demo".into(), "db-0".into())
        );
        for (volume, flag) in [
            ("demo/db-0", Some("other")),
            ("/x", None),
            ("a/", None),
            ("a/b/c", None),
        ] {
            assert!(split(volume, flag, "default").is_err(), "{volume}");
        }
    }
}
