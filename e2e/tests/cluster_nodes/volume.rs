//! The product as Helm installs it: what the demo tells, with every claim checked.

use anyhow::Result;
use cryptvol_e2e::cluster::Cluster;
use cryptvol_e2e::{demo, release};

#[tokio::test]
async fn what_the_demo_tells_is_true() -> Result<()> {
    let mut cluster = Cluster::shared(&release::image_archives()).await?;
    demo::tell(&mut cluster).await
}
