//! The limits of a project, as the identity service keeps them (unified limits): the registered limits are the defaults, a
//! limit of the project takes the place of one.

use reqwest::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    KeyError,
    barbican::Barbican,
    http,
    identity::{Session, join},
};

/// Names of the resources. They name their service, so that nobody else's `volumes` is meant, and so that they are found
/// without looking for the service in a catalog, of which a project may be shown a part.
const VOLUMES: &str = "cryptvol_volumes";
const GIBIBYTES: &str = "cryptvol_gibibytes";
const KEYS: &str = "cryptvol_keys";

/// How much a project may have; none: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// EncryptedVolumes.
    pub volumes: Option<u64>,
    /// Sum of their sizes, in GiB.
    pub gibibytes: Option<u64>,
    /// Keys that are made for them.
    pub keys: Option<u64>,
}

impl Limits {
    /// Whether anything is limited.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

#[derive(Debug, Deserialize)]
struct Registered {
    service_id: String,
    region_id: Option<String>,
    resource_name: String,
    default_limit: i64,
}

#[derive(Debug, Deserialize)]
struct Override {
    service_id: String,
    region_id: Option<String>,
    resource_name: String,
    project_id: Option<String>,
    resource_limit: i64,
}

#[derive(Deserialize)]
struct AllRegistered {
    registered_limits: Vec<Registered>,
}

#[derive(Deserialize)]
struct AllOverrides {
    limits: Vec<Override>,
}

/// The limits of a project in a region: one that is registered for the region counts before one for all regions; of
/// several services that register the same name the smallest value counts.
fn resolve(
    registered: &[Registered],
    overrides: &[Override],
    project: &str,
    region: Option<&str>,
) -> Limits {
    let of = |name: &str| {
        let named = |at: Option<&str>| {
            registered
                .iter()
                .filter(|r| r.resource_name == name && r.region_id.as_deref() == at)
                .collect::<Vec<_>>()
        };
        let mut found = if region.is_some() {
            named(region)
        } else {
            vec![]
        };
        if found.is_empty() {
            found = named(None);
        }
        found
            .into_iter()
            .filter_map(|r| {
                let own = overrides.iter().find(|o| {
                    o.project_id.as_deref() == Some(project)
                        && o.service_id == r.service_id
                        && o.region_id == r.region_id
                        && o.resource_name == r.resource_name
                });
                // -1 is no limit.
                u64::try_from(own.map_or(r.default_limit, |o| o.resource_limit)).ok()
            })
            .min()
    };
    Limits {
        volumes: of(VOLUMES),
        gibibytes: of(GIBIBYTES),
        keys: of(KEYS),
    }
}

impl Barbican {
    /// The limits of the tenant's project. A service that keeps none limits nothing.
    ///
    /// # Errors
    /// Any [`KeyError`]; who may not read the limits gets [`KeyError::Forbidden`], for otherwise a credential that may not
    /// would have none.
    pub async fn limits(&self) -> Result<Limits, KeyError> {
        let all: Option<AllRegistered> = self.identity("registered_limits").await?;
        let registered = all.map(|a| a.registered_limits).unwrap_or_default();
        let ours = [VOLUMES, GIBIBYTES, KEYS];
        if !registered
            .iter()
            .any(|r| ours.contains(&r.resource_name.as_str()))
        {
            return Ok(Limits::default());
        }
        let session = self.login.session(&self.http).await?;
        let path = format!("limits?project_id={}", session.project_id);
        let all: Option<AllOverrides> = self.identity(&path).await?;
        let overrides = all.map(|a| a.limits).unwrap_or_default();
        let region = self.login.region();
        Ok(resolve(
            &registered,
            &overrides,
            &session.project_id,
            region,
        ))
    }

    /// Reads from the identity service; none where it has no such path.
    async fn identity<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, KeyError> {
        let session = self.login.session(&self.http).await?;
        let mut response = self.get_identity(&session, path).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let session = self.login.renew(&self.http, &session).await?;
            response = self.get_identity(&session, path).await?;
        }
        match response.status() {
            StatusCode::OK => Ok(Some(http::json(response).await?)),
            StatusCode::NOT_FOUND => Ok(None),
            // With a token that was just made: access rules that leave these calls out.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(KeyError::Forbidden {
                action: "read the project's limits (GET /v3/registered_limits and /v3/limits)",
                why: http::words(response).await,
            }),
            _ => Err(http::refusal(response, "read the project's limits").await),
        }
    }

    async fn get_identity(
        &self,
        session: &Session,
        path: &str,
    ) -> Result<reqwest::Response, KeyError> {
        let url = join(&session.identity, path)?;
        let request = self.http.request(Method::GET, url.clone());
        let request = http::with_token(request, &session.token);
        self.http
            .send(request.header("Accept", "application/json"), &url)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(service: &str, region: Option<&str>, name: &str, value: i64) -> Registered {
        Registered {
            service_id: service.into(),
            region_id: region.map(str::to_owned),
            resource_name: name.into(),
            default_limit: value,
        }
    }

    fn own(service: &str, region: Option<&str>, name: &str, project: &str, value: i64) -> Override {
        Override {
            service_id: service.into(),
            region_id: region.map(str::to_owned),
            resource_name: name.into(),
            project_id: Some(project.into()),
            resource_limit: value,
        }
    }

    #[test]
    fn the_projects_own_value_takes_the_defaults_place() {
        let defaults = [
            registered("s", None, VOLUMES, 10),
            registered("s", None, GIBIBYTES, -1),
            registered("s", None, KEYS, 5),
            registered("s", None, "volumes", 1),
        ];
        let limits = |overrides: &[Override]| resolve(&defaults, overrides, "p", None);
        let plain = Limits {
            volumes: Some(10),
            gibibytes: None,
            keys: Some(5),
        };
        assert_eq!(limits(&[]), plain);
        assert_eq!(limits(&[own("s", None, VOLUMES, "other", 1)]), plain);
        assert_eq!(limits(&[own("s", Some("r"), VOLUMES, "p", 1)]), plain);
        let found = limits(&[
            own("s", None, VOLUMES, "p", 0),
            own("s", None, GIBIBYTES, "p", 7),
            own("s", None, KEYS, "p", -1),
        ]);
        let wanted = Limits {
            volumes: Some(0),
            gibibytes: Some(7),
            keys: None,
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_is_registered_for_the_region_counts_there() {
        let defaults = [
            registered("s", None, VOLUMES, 10),
            registered("s", Some("north"), VOLUMES, 3),
            registered("t", Some("south"), VOLUMES, 9),
            registered("s", Some("south"), VOLUMES, 4),
        ];
        let volumes = |region| resolve(&defaults, &[], "p", region).volumes;
        assert_eq!(volumes(None), Some(10));
        assert_eq!(volumes(Some("north")), Some(3));
        assert_eq!(volumes(Some("south")), Some(4));
        assert_eq!(volumes(Some("east")), Some(10));
    }
}
