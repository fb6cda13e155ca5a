//! Makes what guests boot, once, in the cache folder, and prints where it lies.

use anyhow::Result;
use cryptvol_e2e::guest::Guest;

fn main() -> Result<()> {
    let image = Guest::prepare()?;
    println!(
        "{} {} {}",
        image.version,
        image.kernel.display(),
        image.initramfs.display()
    );
    Ok(())
}
