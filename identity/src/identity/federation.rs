//! `/v3/OS-FEDERATION` of a service without federation: the lists are empty, one of them is not found, and nothing can be made. Clients
//! ask the lists to learn whether there is any, and a path that is not there tells them less. Routes, rules and statuses are those of
//! Keystone's `api/os_federation.py`.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    routing::get,
};

use super::{
    error::{ApiResult, IdentityError},
    support::{Caller, collection},
};
use crate::{
    app::App,
    http::{Base, Query},
    policy::Target,
};

/// What there could be.
#[derive(Clone, Copy)]
struct Family {
    /// In messages, as Keystone says it.
    kind: &'static str,
    /// Of one, in the names of policy rules.
    key: &'static str,
    /// Of the list: in its path, its body and the name of its policy rule.
    keys: &'static str,
}

const IDENTITY_PROVIDERS: Family = Family {
    kind: "Identity Provider",
    key: "identity_provider",
    keys: "identity_providers",
};
const FAMILIES: [Family; 3] = [
    IDENTITY_PROVIDERS,
    Family {
        kind: "mapping",
        key: "mapping",
        keys: "mappings",
    },
    Family {
        kind: "Service Provider",
        key: "service_provider",
        keys: "service_providers",
    },
];

pub(super) fn routes() -> Router<Arc<App>> {
    let protocols = "/OS-FEDERATION/identity_providers/{provider}/protocols";
    let router = Router::new().route(protocols, get(protocols_of)).route(
        &format!("{protocols}/{{id}}"),
        get(async |app, caller, ids| no_protocol(app, caller, ids, "get").await)
            .put(async |app, caller| no_mapping(app, caller, "create").await)
            .patch(async |app, caller| no_mapping(app, caller, "update").await)
            .delete(async |app, caller, ids| no_protocol(app, caller, ids, "delete").await),
    );
    FAMILIES
        .into_iter()
        .fold(router, |router, family| router.merge(family.routes()))
}

impl Family {
    fn routes(self) -> Router<Arc<App>> {
        let list = move |app, caller, base, query| nothing(app, caller, base, query, self.keys);
        let path = format!("/OS-FEDERATION/{}", self.keys);
        Router::new().route(&path, get(list)).route(
            &format!("{path}/{{id}}"),
            get(move |app, caller, id| self.none(app, caller, id, "get"))
                .put(move |app, caller| self.make(app, caller))
                .patch(move |app, caller, id| self.none(app, caller, id, "update"))
                .delete(move |app, caller, id| self.none(app, caller, id, "delete")),
        )
    }

    fn missing(self, id: String) -> IdentityError {
        IdentityError::NotFound(self.kind, id)
    }

    async fn none(
        self,
        State(app): State<Arc<App>>,
        caller: Caller,
        Path(id): Path<String>,
        verb: &'static str,
    ) -> ApiResult {
        caller.may(
            &app,
            &format!("identity:{verb}_{}", self.key),
            &Target::new(),
        )?;
        Err(self.missing(id))
    }

    async fn make(self, State(app): State<Arc<App>>, caller: Caller) -> ApiResult {
        caller.may(
            &app,
            &format!("identity:create_{}", self.key),
            &Target::new(),
        )?;
        Err(IdentityError::Forbidden(format!(
            "There is no federation here, so no {} can be made. Users of elsewhere come from a domain's LDAP directory.",
            self.kind
        )))
    }
}

/// An empty list.
async fn nothing(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    keys: &'static str,
) -> ApiResult {
    caller.may(&app, &format!("identity:list_{keys}"), &Target::new())?;
    Ok(collection(&base, &query, keys, &[], Vec::new()))
}

/// Empty for whatever provider: Keystone does not look whether there is one.
async fn protocols_of(
    app: State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    _: Path<String>,
) -> ApiResult {
    nothing(app, caller, base, query, "protocols").await
}

type Ids = Path<(String, String)>;

async fn no_protocol(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((provider, protocol)): Ids,
    verb: &'static str,
) -> ApiResult {
    caller.may(&app, &format!("identity:{verb}_protocol"), &Target::new())?;
    Err(IdentityError::NoProtocol { provider, protocol })
}

/// Neither made nor changed: whichever mapping it names, there is none. Keystone looks for that before the rest.
async fn no_mapping(State(app): State<Arc<App>>, caller: Caller, verb: &'static str) -> ApiResult {
    caller.may(&app, &format!("identity:{verb}_protocol"), &Target::new())?;
    Err(IdentityError::BadRequest(
        "A protocol needs the mapping_id of a mapping that exists; there is no federation here, so there is none.".into(),
    ))
}
