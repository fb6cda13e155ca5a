//! Writes container images as OCI image-layout archives, without a container daemon and without a registry.
//!
//! `ctr images import`, `kind load image-archive` and `docker load` (25 and newer) take the result. The archive is
//! reproducible: same inputs, same bytes (all times are zero, owners are root, files are sorted by their path).
//! Formats: OCI image-spec v1.1, `image-layout.md`, `config.md`, `manifest.md`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MEDIA_TYPE: &str = "application/vnd.oci.image";

/// What goes into one image. Layers come first, in the order of the calls; the single files form the last layer.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    reference: String,
    layers: Vec<PathBuf>,
    files: BTreeMap<String, Entry>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
enum Entry {
    File { source: PathBuf, mode: u32 },
    Bytes { content: Vec<u8>, mode: u32 },
    Symlink { target: String },
}

impl ImageBuilder {
    /// `reference` is the full name, for example `cryptvol.dev/operator:0.1.0`. A kubelet looks images up by this
    /// very text, so it must have a host part (`docker.io/library/...` for a short name).
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            layers: Vec::new(),
            files: BTreeMap::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            user: None,
            working_dir: None,
            labels: BTreeMap::new(),
        }
    }

    /// An uncompressed tar as a layer of its own, byte for byte (for example the output of `mmdebstrap`).
    #[must_use]
    pub fn layer_tar(mut self, tar: impl Into<PathBuf>) -> Self {
        self.layers.push(tar.into());
        self
    }

    /// One file of this machine at the absolute path `destination`; `mode` as in `0o755`. Missing parent folders
    /// are made by whoever unpacks (they are not written, because a folder entry would replace a symlink such as
    /// Debian's `/bin` of a layer below).
    #[must_use]
    pub fn file(mut self, source: impl Into<PathBuf>, destination: &str, mode: u32) -> Self {
        self.files.insert(
            trim(destination),
            Entry::File {
                source: source.into(),
                mode,
            },
        );
        self
    }

    /// As [`ImageBuilder::file`], with the content given.
    #[must_use]
    pub fn bytes(mut self, content: impl Into<Vec<u8>>, destination: &str, mode: u32) -> Self {
        self.files.insert(
            trim(destination),
            Entry::Bytes {
                content: content.into(),
                mode,
            },
        );
        self
    }

    /// A symbolic link at the absolute path `destination` that leads to `target`.
    #[must_use]
    pub fn symlink(mut self, target: &str, destination: &str) -> Self {
        self.files.insert(
            trim(destination),
            Entry::Symlink {
                target: target.into(),
            },
        );
        self
    }

    /// The program and its first arguments, without a shell.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Default arguments, which a container's `args` replace.
    #[must_use]
    pub fn cmd<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.cmd = words.into_iter().map(Into::into).collect();
        self
    }

    /// One environment variable (`PATH` is preset).
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let prefix = format!("{name}=");
        self.env.retain(|old| !old.starts_with(&prefix));
        self.env.push(format!("{name}={value}"));
        self
    }

    /// `uid`, `uid:gid` or names that the image's `/etc/passwd` knows. `runAsNonRoot` needs a number here.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Where the program starts.
    #[must_use]
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// One label, for example `org.opencontainers.image.source`.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Writes the archive (first beside `out`, then renamed, so that nobody ever sees half an archive) and returns
    /// the manifest's digest, `sha256:...`, by which the image can be pinned.
    pub fn write(&self, out: impl AsRef<Path>) -> Result<String> {
        let out = out.as_ref();
        ensure!(
            self.reference
                .split_once('/')
                .is_some_and(|(host, _)| host.contains(['.', ':'])),
            "image reference {:?} needs a host part, such as cryptvol.dev/operator:0.1.0",
            self.reference
        );
        let mut scratch = Vec::new();
        let mut layers = Vec::new();
        for tar in &self.layers {
            layers.push(Blob::of_file(tar)?);
        }
        if !self.files.is_empty() {
            let mut tar = tempfile::NamedTempFile::new()
                .context("temporary file for the image's last layer")?;
            self.write_files_layer(tar.as_file_mut())?;
            layers.push(Blob::of_file(tar.path())?);
            scratch.push(tar);
        }
        let config = Blob::of_json(&self.config(&layers))?;
        let manifest = Blob::of_json(&json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA_TYPE}.manifest.v1+json"),
            "config": config.descriptor("config.v1+json"),
            "layers": layers.iter().map(|layer| layer.descriptor("layer.v1.tar")).collect::<Vec<_>>(),
        }))?;
        let mut entry = manifest.descriptor("manifest.v1+json");
        entry["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference.rsplit(':').next().unwrap_or_default(),
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA_TYPE}.index.v1+json"),
            "manifests": [entry],
        });

        let part = out.with_extension("part");
        let file = File::create(&part).with_context(|| format!("create {}", part.display()))?;
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, file));
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
        let mut written = std::collections::BTreeSet::new();
        for blob in layers.iter().chain([&config, &manifest]) {
            if written.insert(blob.digest.clone()) {
                blob.append_to(&mut tar)?;
            }
        }
        tar.into_inner()?.flush()?;
        std::fs::rename(&part, out).with_context(|| format!("rename to {}", out.display()))?;
        Ok(format!("sha256:{}", manifest.digest))
    }

    fn config(&self, layers: &[Blob]) -> Value {
        let mut run = json!({ "Env": self.env });
        for (name, words) in [("Entrypoint", &self.entrypoint), ("Cmd", &self.cmd)] {
            if !words.is_empty() {
                run[name] = json!(words);
            }
        }
        for (name, text) in [("User", &self.user), ("WorkingDir", &self.working_dir)] {
            if let Some(text) = text {
                run[name] = json!(text);
            }
        }
        if !self.labels.is_empty() {
            run["Labels"] = json!(self.labels);
        }
        json!({
            "architecture": "amd64",
            "os": "linux",
            "config": run,
            // For an uncompressed layer the "diff id" is the digest of the blob itself.
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|l| format!("sha256:{}", l.digest)).collect::<Vec<_>>(),
            },
        })
    }

    fn write_files_layer(&self, out: &mut File) -> Result<()> {
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, out));
        for (path, entry) in &self.files {
            let mut header = header();
            match entry {
                Entry::File { source, mode } => {
                    let mut file =
                        File::open(source).with_context(|| format!("open {}", source.display()))?;
                    header.set_mode(*mode);
                    header.set_size(file.metadata()?.len());
                    tar.append_data(&mut header, path, &mut file)
                        .with_context(|| format!("add {} to the image", source.display()))?;
                }
                Entry::Bytes { content, mode } => {
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, content.as_slice())?;
                }
                Entry::Symlink { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

/// The paths inside a layer have no leading slash.
fn trim(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn header() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, content: &[u8]) -> Result<()> {
    let mut header = header();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
        .with_context(|| format!("write {name} into the archive"))
}

/// Content addressed by its SHA-256; layers stay in their files.
struct Blob {
    digest: String,
    size: u64,
    content: Content,
}

enum Content {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Blob {
    fn of_file(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            let read = file
                .read(&mut buffer)
                .with_context(|| format!("read {}", path.display()))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            size += read as u64;
        }
        Ok(Self {
            digest: hex::encode(hash.finalize()),
            size,
            content: Content::File(path.into()),
        })
    }

    fn of_json(value: &Value) -> Result<Self> {
        let bytes = serde_json::to_vec(value)?;
        Ok(Self {
            digest: hex::encode(Sha256::digest(&bytes)),
            size: bytes.len() as u64,
            content: Content::Bytes(bytes),
        })
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": format!("{MEDIA_TYPE}.{kind}"),
            "digest": format!("sha256:{}", self.digest),
            "size": self.size,
        })
    }

    fn append_to(&self, tar: &mut tar::Builder<impl Write>) -> Result<()> {
        let name = format!("blobs/sha256/{}", self.digest);
        match &self.content {
            Content::Bytes(bytes) => append(tar, &name, bytes),
            Content::File(path) => {
                let mut header = header();
                header.set_mode(0o644);
                header.set_size(self.size);
                tar.append_data(&mut header, &name, File::open(path)?)
                    .with_context(|| format!("write layer {} into the archive", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(File::open(archive).unwrap());
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (name, content)
            })
            .collect()
    }

    #[test]
    fn archive_holds_what_its_digests_name_and_is_reproducible() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.tar");
        let mut tar = tar::Builder::new(File::create(&base).unwrap());
        append(&mut tar, "etc/motd", b"hello").unwrap();
        tar.finish().unwrap();
        let build = |name: &str| {
            let out = dir.path().join(name);
            let digest = ImageBuilder::new("cryptvol.dev/thing:1")
                .layer_tar(&base)
                .bytes(*b"#!x", "/usr/bin/thing", 0o755)
                .file(&base, "/srv/base.tar", 0o644)
                .symlink("thing", "/usr/bin/other")
                .entrypoint(["/usr/bin/thing", "run"])
                .env("A", "1")
                .env("A", "2")
                .user("65532:65532")
                .write(&out)
                .unwrap();
            (out, digest)
        };
        let (first, digest) = build("first.tar");
        let (second, again) = build("second.tar");
        assert_eq!(digest, again);
        assert_eq!(
            std::fs::read(&first).unwrap(),
            std::fs::read(second).unwrap()
        );

        let members = members(&first);
        for (name, content) in &members {
            if let Some(hash) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(hash, hex::encode(Sha256::digest(content)));
            }
        }
        let blob = |descriptor: &Value| -> Vec<u8> {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .trim_start_matches("sha256:");
            let content = members[&format!("blobs/sha256/{digest}")].clone();
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&members["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest);
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "cryptvol.dev/thing:1"
        );
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(
            config["config"]["Entrypoint"],
            json!(["/usr/bin/thing", "run"])
        );
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Env"][1], "A=2");
        assert_eq!(config["config"]["Env"].as_array().unwrap().len(), 2);
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        assert_eq!(blob(&manifest["layers"][0]), std::fs::read(&base).unwrap());

        let files = blob(&manifest["layers"][1]);
        let mut layer = tar::Archive::new(files.as_slice());
        let listed: Vec<_> = layer
            .entries()
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                (
                    e.path().unwrap().display().to_string(),
                    e.header().mode().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            listed,
            [
                ("srv/base.tar".into(), 0o644),
                ("usr/bin/other".into(), 0o777),
                ("usr/bin/thing".into(), 0o755)
            ]
        );
    }

    #[test]
    fn a_reference_without_a_host_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = ImageBuilder::new("thing:1")
            .write(dir.path().join("x.tar"))
            .unwrap_err();
        assert!(error.to_string().contains("needs a host part"), "{error}");
    }
}
