//! The scenario that every Kubernetes ground has, on nodes with kernels of their own.

use anyhow::Result;
use cryptvol_e2e::array::Array;
use cryptvol_e2e::cluster::Cluster;
use cryptvol_e2e::ground::OnNode;
use cryptvol_e2e::release;
use cryptvol_e2e::scenario::volume_life;

#[tokio::test]
async fn a_volume_survives_its_agent_and_ends_without_a_trace() -> Result<()> {
    let cluster = Cluster::shared(&release::image_archives()).await?;
    release::load_images(&cluster).await?;
    release::install(&cluster).await?;
    let keystone = release::keystone(&cluster).await?;
    let mut array = Array::start(&cluster.dir().join("array-of-life")).await?;
    let ground = OnNode {
        cluster: &cluster,
        node: "node-2",
    };
    volume_life(&ground, &keystone, &mut array, ground.node, "life").await
}
