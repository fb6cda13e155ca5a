//! kind, the second ground.

use std::time::Instant;

use anyhow::Result;
use cryptvol_e2e::image::ImageBuilder;
use cryptvol_e2e::kind::machine::Settings;
use cryptvol_e2e::kind::{Kind, KindSpec};
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::workdir::WorkDir;

#[tokio::test]
async fn kind_itself() -> Result<()> {
    let start = Instant::now();
    let before = Settings::read();
    let work = WorkDir::new("kind")?;
    let parts = Parts::locate(Set::Kind)?;
    let archive = work.path().join("idle.tar");
    ImageBuilder::new("cryptvol.dev/idle:1")
        .file(parts.path("pause"), "/pause", 0o755)
        .entrypoint(["/pause"])
        .write(&archive)?;
    let kind = Kind::start(work.path(), KindSpec::default()).await?;
    kind.load(&archive).await?;
    eprintln!("loaded after {:.1} s", start.elapsed().as_secs_f32());
    kind.kubectl(&[
        "create",
        "deployment",
        "idle",
        "--image=cryptvol.dev/idle:1",
    ])
    .await?;
    kind.kubectl(&["rollout", "status", "deployment/idle", "--timeout=60s"])
        .await?;
    eprintln!("pod after {:.1} s", start.elapsed().as_secs_f32());
    kind.stop()?;
    eprintln!("all after {:.1} s", start.elapsed().as_secs_f32());
    assert_eq!(Settings::read(), before);
    work.passed()
}
