//! The product's container images, made without a container daemon and without a registry.
//!
//! What is in an image is said once, in `images/NAME.Dockerfile`, of which the few instructions used there are understood
//! here; `docker build` makes the same from the build context that this leaves behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::image::ImageBuilder;
use crate::workdir::workspace_root;

/// Images of the product: the Dockerfile's name and the reference's last word.
const NAMES: [&str; 3] = ["operator", "node-agent", "identity"];
/// Part of the cache key: counted up when `HOOK` changes what is in a base layer.
const RECIPE: u32 = 1;
/// Run on the extracted packages: makes what their maintainer scripts would have made, and removes what no program of an
/// image reads (perl, shells and character tables come as dependencies of dependencies; licence texts stay).
const HOOK: &str = r#"set -eu; cd "$1"
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
printf 'root:x:0:0:root:/root:/usr/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/usr/sbin/nologin\n' >etc/passwd
printf 'root:x:0:\nnonroot:x:65532:\n' >etc/group
find usr/share/doc -type f ! -name copyright -delete
rm -rf usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/bash-completion usr/share/perl* \
  usr/lib/*/perl* usr/lib/*/gconv lib/udev lib/systemd usr/lib/systemd var/cache/* var/lib/apt var/lib/dpkg var/log/*
find usr/lib -name 'libperl*' -delete
for dir in bin sbin usr/bin usr/sbin; do
  if [ -d "$dir" ]; then find "$dir/" -type f,l ! -name nsenter -delete; fi
done"#;

/// An image that was made.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full reference, for example `cryptvol.dev/operator:0.1.0`.
    pub reference: String,
    /// The archive: `ctr images import`, `docker load` and `kind load image-archive` take it.
    pub archive: PathBuf,
    /// Digest of the manifest.
    pub digest: String,
}

/// Makes all images from the programs in `bin` (a release build) into `out`.
pub fn build(bin: &Path, out: &Path) -> Result<Vec<Image>> {
    let context = out.join("context");
    fs::create_dir_all(&context).with_context(|| format!("make {}", context.display()))?;
    NAMES
        .iter()
        .map(|name| {
            let file = workspace_root().join(format!("images/{name}.Dockerfile"));
            let text =
                fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let reference = format!("cryptvol.dev/{name}:{}", env!("CARGO_PKG_VERSION"));
            let archive = out.join(format!("{name}.tar"));
            let builder = follow(&text, ImageBuilder::new(&reference), |source| {
                provide(source, bin, &context)
            })
            .with_context(|| file.display().to_string())?;
            let digest = builder.write(&archive)?;
            Ok(Image {
                reference,
                archive,
                digest,
            })
        })
        .collect()
}

/// Follows the instructions of a Dockerfile; `provide` makes a file of the build context and says where it is.
fn follow(
    text: &str,
    mut image: ImageBuilder,
    provide: impl Fn(&str) -> Result<PathBuf>,
) -> Result<ImageBuilder> {
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (instruction, rest) = line.split_once(' ').context(line.to_owned())?;
        image = match (
            instruction,
            rest.split_whitespace().collect::<Vec<_>>().as_slice(),
        ) {
            ("FROM", ["scratch"]) => image,
            // docker unpacks a tar that it ADDs, so it is a layer as it stands.
            ("ADD", [source, "/"]) if source.ends_with(".tar") => image.layer_tar(provide(source)?),
            ("COPY", [source, destination]) => image.file(provide(source)?, destination, 0o755),
            ("USER", [user]) => image.user(*user),
            ("ENTRYPOINT", _) => {
                let words: Vec<String> =
                    serde_json::from_str(rest).context("ENTRYPOINT is not in its JSON form")?;
                image.entrypoint(words)
            }
            ("LABEL", _) => {
                let (name, value) = rest.split_once('=').context("LABEL without =")?;
                image.label(name, value.trim_matches('"'))
            }
            _ => bail!("`{line}` is not understood without a daemon"),
        };
    }
    Ok(image)
}

/// A file of the build context: a base layer, or a program of the release build.
fn provide(source: &str, bin: &Path, context: &Path) -> Result<PathBuf> {
    let there = context.join(source);
    let from = match source.strip_suffix(".tar") {
        Some(base) => base_layer(base)?,
        None => bin.join(source),
    };
    ensure!(
        from.is_file(),
        "{} is missing: `cargo xtask images` builds it",
        from.display()
    );
    if there.exists() {
        fs::remove_file(&there)?;
    }
    // A link where it can be one: base layers are large and never change.
    if fs::hard_link(&from, &there).is_err() {
        fs::copy(&from, &there)
            .with_context(|| format!("copy {} to {}", from.display(), there.display()))?;
    }
    Ok(there)
}

/// The packages of `images/NAME.packages`, extracted and packed; kept in the cache folder by what they depend on.
fn base_layer(name: &str) -> Result<PathBuf> {
    let list = workspace_root().join(format!("images/{name}.packages"));
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let packages: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split('#').next().map(str::trim))
        .filter(|package| !package.is_empty())
        .collect();
    let suite = suite()?;
    let mut key = Sha256::new();
    for part in [
        suite.as_str(),
        &packages.join(","),
        HOOK,
        &RECIPE.to_string(),
    ] {
        key.update(part);
        key.update([0]);
    }
    let dir = crate::parts::cache_dir()?.join("layers");
    let layer = dir.join(format!("{name}-{}.tar", hex::encode(&key.finalize()[..8])));
    if layer.is_file() {
        return Ok(layer);
    }
    fs::create_dir_all(&dir)?;
    let start = Instant::now();
    eprintln!(
        "making the base layer {name} from Debian packages (once): {}",
        packages.join(" ")
    );
    let part = tempfile::Builder::new()
        .prefix(".layer-")
        .suffix(".tar")
        .tempfile_in(&dir)?;
    let mut command = Command::new("mmdebstrap");
    command
        .env("SOURCE_DATE_EPOCH", "0")
        .args(["--quiet", "--variant=extract", "--format=tar"])
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!("--extract-hook={HOOK}"))
        .arg(&suite)
        .arg(part.path())
        .args(sources())
        .stdin(Stdio::null());
    let out = command
        .output()
        .context("start mmdebstrap: install the Debian package mmdebstrap (`cargo xtask setup`)")?;
    if !out.status.success() {
        bail!(
            "mmdebstrap ended with {}:\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    // Whoever builds with docker may be another user.
    fs::set_permissions(part.path(), fs::Permissions::from_mode(0o644))?;
    part.persist(&layer)
        .with_context(|| format!("put {} into place", layer.display()))?;
    eprintln!(
        "made the base layer {name}: {} s",
        start.elapsed().as_secs()
    );
    Ok(layer)
}

/// The release of this machine, because the programs were linked against its C library.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no VERSION_CODENAME: images are made on Debian or Ubuntu; elsewhere use docker build")
}

/// The distribution's own package sources of this machine, without third parties'; else mmdebstrap's default.
fn sources() -> Option<&'static str> {
    [
        "/etc/apt/sources.list.d/debian.sources",
        "/etc/apt/sources.list.d/ubuntu.sources",
    ]
    .into_iter()
    .find(|path| Path::new(path).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dockerfile_is_understood() {
        for name in NAMES {
            let text =
                fs::read_to_string(workspace_root().join(format!("images/{name}.Dockerfile")))
                    .unwrap();
            let asked = std::cell::RefCell::new(Vec::new());
            follow(&text, ImageBuilder::new("cryptvol.dev/x:1"), |source| {
                asked.borrow_mut().push(source.to_owned());
                Ok(PathBuf::from(source))
            })
            .unwrap();
            let asked = asked.into_inner();
            assert_eq!(asked.len(), 2, "{name}: a base layer and a program");
            assert!(
                asked[0].ends_with(".tar") && asked[1].starts_with("cryptvol-"),
                "{asked:?}"
            );
        }
    }

    #[test]
    fn an_instruction_that_a_daemon_would_need_is_refused() {
        let error = follow(
            "FROM scratch\nRUN true",
            ImageBuilder::new("cryptvol.dev/x:1"),
            |s| Ok(s.into()),
        )
        .unwrap_err();
        assert!(error.to_string().contains("RUN true"), "{error}");
    }
}
