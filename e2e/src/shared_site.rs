//! One site for all tests of a program, which take it one after the other: each has a namespace, targets and disks of its own.

use std::ops::{Deref, DerefMut};

use anyhow::Result;
use tokio::sync::{Mutex, MutexGuard};

use crate::site::{Site, SiteSpec};
use crate::workdir::WorkDir;

/// Where the tests of a program find their site: `static SITE: SharedSite = SharedSite::new("name")`.
#[derive(Debug)]
pub struct SharedSite {
    name: &'static str,
    site: Mutex<Option<(Site, WorkDir)>>,
}

impl SharedSite {
    /// A place without a site. The name is that of its folder.
    pub const fn new(name: &'static str) -> Self {
        let site = Mutex::const_new(None);
        Self { name, site }
    }

    /// The site with one ordinary node, started by the first test and after each that failed. Nothing of it ends before the program does.
    ///
    /// # Errors
    /// Those of the start.
    pub async fn take(&self) -> Result<TakenSite<'_>> {
        let mut guard = self.site.lock().await;
        let (site, work) = match guard.take() {
            Some(there) => there,
            None => {
                let work = WorkDir::new(self.name)?;
                (Site::start(&work, SiteSpec::new(1)).await?, work)
            }
        };
        Ok(TakenSite {
            site,
            work,
            place: guard,
        })
    }
}

/// The site, for one test. What a failed one leaves behind is nobody else's: dropped without [`TakenSite::passed`], it ends.
#[derive(Debug)]
pub struct TakenSite<'a> {
    site: Site,
    work: WorkDir,
    place: MutexGuard<'a, Option<(Site, WorkDir)>>,
}

impl TakenSite<'_> {
    /// The last line of a test: the next one may have the site.
    ///
    /// # Errors
    /// Never; as [`WorkDir::passed`] it ends a test.
    pub fn passed(mut self) -> Result<()> {
        *self.place = Some((self.site, self.work));
        Ok(())
    }
}

impl Deref for TakenSite<'_> {
    type Target = Site;
    fn deref(&self) -> &Site {
        &self.site
    }
}

impl DerefMut for TakenSite<'_> {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.site
    }
}
