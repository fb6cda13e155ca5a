//! `/v3/domains/{id}/config`: options of one domain, and their defaults.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Json, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    domain_options::{self, Config, SECTIONS},
    error::{ApiResult, IdentityError},
    fields,
    support::{Caller, no_content},
};
use crate::{
    app::App,
    bootstrap::DEFAULT_DOMAIN,
    crypto::SealError,
    ldap,
    policy::Target,
    store::{Change, StoreResult, domain_config::DomainOption},
};

const KIND: &str = "data/security/domain/config";
/// Not a section of a domain: the rules for passwords, which anybody may read to choose one.
const SECURITY_COMPLIANCE: &str = "security_compliance";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/domains/config/default", get(all_defaults))
        .route("/domains/config/{group}/default", get(section_defaults))
        .route(
            "/domains/config/{group}/{option}/default",
            get(option_default),
        )
        .route(
            "/domains/{id}/config",
            get(show_all)
                .put(replace)
                .patch(update_all)
                .delete(delete_all),
        )
        .route(
            "/domains/{id}/config/{group}",
            get(show_section)
                .patch(update_section)
                .delete(delete_section),
        )
        .route(
            "/domains/{id}/config/{group}/{option}",
            get(show_option).patch(update_option).delete(delete_option),
        )
}

fn invalid(reason: String) -> IdentityError {
    IdentityError::Forbidden(format!("Invalid domain specific configuration: {reason}."))
}

fn not_found(domain_id: &str, section: Option<&str>, name: Option<&str>) -> IdentityError {
    let what = match (section, name) {
        (Some(section), Some(name)) => format!("option {name} in group {section}"),
        (Some(section), None) => format!("group {section}"),
        _ => "any options".into(),
    };
    IdentityError::NotFound(
        "domain configuration",
        format!("{what} of domain {domain_id}"),
    )
}

fn answer(status: StatusCode, config: Value) -> Response {
    (status, Json(json!({ "config": config }))).into_response()
}

fn seal(app: &App, domain_id: &str, config: &Config) -> Result<Vec<DomainOption>, SealError> {
    let mut options = Vec::new();
    for (section, values) in config {
        for (name, value) in values.as_object().into_iter().flatten() {
            let mut option = DomainOption {
                domain_id: domain_id.into(),
                section: section.clone(),
                name: name.clone(),
                value: value.to_string(),
                sealed: None,
            };
            if domain_options::is_sensitive(section, name) {
                let plain = zeroize::Zeroizing::new(option.value);
                option.value = Value::Null.to_string();
                let sealed = app
                    .credential_key()
                    .seal(&option.place(), plain.as_bytes())?;
                option.sealed = Some(sealed);
            }
            options.push(option);
        }
    }
    Ok(options)
}

/// What may be answered, of these options.
fn readable(options: &[DomainOption]) -> Config {
    let mut config = Config::new();
    for option in options.iter().filter(|option| option.sealed.is_none()) {
        let value = serde_json::from_str(&option.value).unwrap_or(Value::Null);
        config
            .entry(option.section.clone())
            .or_insert_with(|| json!({}))[option.name.as_str()] = value;
    }
    config
}

/// Of these options, those of one section, or one.
fn narrowed(
    mut options: Vec<DomainOption>,
    section: Option<&str>,
    name: Option<&str>,
) -> Vec<DomainOption> {
    options.retain(|option| {
        section.is_none_or(|wanted| wanted == option.section)
            && name.is_none_or(|wanted| wanted == option.name)
    });
    options
}

/// As [`narrowed`], of a domain's options as they are.
async fn options_of(
    app: &App,
    domain_id: &str,
    section: Option<&str>,
    name: Option<&str>,
) -> StoreResult<Vec<DomainOption>> {
    let options = app.store.domain_options(Some(domain_id)).await?;
    Ok(narrowed(options, section, name))
}

/// Refuses a change of what a domain does not have.
async fn require_options(
    change: &mut Change,
    domain_id: &str,
    section: Option<&str>,
    name: Option<&str>,
) -> Result<(), IdentityError> {
    let options = change.domain_options(domain_id).await?;
    if section.is_some() && narrowed(options, section, name).is_empty() {
        return Err(not_found(domain_id, section, name));
    }
    Ok(())
}

async fn require_domain(app: &App, id: &str) -> Result<(), IdentityError> {
    let found = app.store.domain(id).await?;
    found
        .map(|_| ())
        .ok_or_else(|| IdentityError::NotFound("domain", id.into()))
}

async fn show(
    app: &App,
    caller: &Caller,
    id: &str,
    section: Option<&str>,
    name: Option<&str>,
) -> ApiResult {
    if section == Some(SECURITY_COMPLIANCE) {
        return show_compliance(app, caller, id, name).await;
    }
    caller.may(app, "identity:get_domain_config", &Target::new())?;
    require_domain(app, id).await?;
    if let Some(section) = section {
        domain_options::check_known(section, name).map_err(invalid)?;
    }
    let config = readable(&options_of(app, id, section, name).await?);
    if config.is_empty() {
        return Err(not_found(id, section, name));
    }
    let shown = match (section, name) {
        (Some(section), Some(_)) => config[section].clone(),
        _ => Value::Object(config),
    };
    Ok(answer(StatusCode::OK, shown))
}

/// What the site says about passwords; only for the first domain, as in Keystone.
async fn show_compliance(app: &App, caller: &Caller, id: &str, name: Option<&str>) -> ApiResult {
    let rule = "identity:get_security_compliance_domain_config";
    caller.may(app, rule, &Target::new())?;
    require_domain(app, id).await?;
    if id != DEFAULT_DOMAIN {
        return Err(invalid(
            "Reading security compliance information for any domain other than the default domain is not allowed or \
             supported"
                .into(),
        ));
    }
    let strength = app.config.passwords.strength.as_ref();
    let options = json!({
        "password_regex": strength.map(|(regex, _)| regex.as_str()),
        "password_regex_description": strength.map(|(_, words)| words),
    });
    let shown = match name {
        None => json!({ SECURITY_COMPLIANCE: options }),
        Some(name) => match options.get(name) {
            Some(value) => json!({ name: value }),
            None => {
                return Err(invalid(
                    "Reading security compliance values other than password_regex and password_regex_description is \
                     not allowed"
                        .into(),
                ));
            }
        },
    };
    Ok(answer(StatusCode::OK, shown))
}

async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let config = fields::body(&bytes, "config")?;
    caller.may(&app, "identity:create_domain_config", &Target::new())?;
    require_domain(&app, &id).await?;
    domain_options::check(&config).map_err(invalid)?;
    let mut change = app.store.change_identity().await?;
    let status = if change.domain_options(&id).await?.is_empty() {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let shown = store(&app, &caller, change, &id, &config, true).await?;
    Ok(answer(status, Value::Object(shown)))
}

async fn update(
    app: &App,
    caller: &Caller,
    id: &str,
    section: Option<&str>,
    name: Option<&str>,
    bytes: &[u8],
) -> ApiResult {
    let mut config = fields::body(bytes, "config")?;
    caller.may(app, "identity:update_domain_config", &Target::new())?;
    require_domain(app, id).await?;
    if let (Some(section), Some(_)) = (section, name) {
        config = Config::from_iter([(section.to_owned(), Value::Object(config))]);
    }
    domain_options::check(&config).map_err(invalid)?;
    if let Some(section) = section {
        domain_options::check_only(&config, section, name).map_err(invalid)?;
    }
    let mut change = app.store.change_identity().await?;
    require_options(&mut change, id, section, name).await?;
    let shown = store(app, caller, change, id, &config, false).await?;
    if shown.is_empty() {
        return Err(not_found(id, None, None));
    }
    Ok(answer(StatusCode::OK, Value::Object(shown)))
}

/// Refuses options with which the domain's users could not be looked up: what is stored is to work.
async fn check_usable(
    change: &mut Change,
    id: &str,
    config: &Config,
    alone: bool,
) -> Result<(), IdentityError> {
    let mut merged = BTreeMap::new();
    if !alone {
        for option in change.domain_options(id).await? {
            let value = match &option.sealed {
                // That there is one is all that matters.
                Some(_) => Value::String("sealed".into()),
                None => serde_json::from_str(&option.value).unwrap_or(Value::Null),
            };
            merged.insert((option.section, option.name), value);
        }
    }
    for (section, values) in config {
        for (name, value) in values.as_object().into_iter().flatten() {
            merged.insert((section.clone(), name.clone()), value.clone());
        }
    }
    let options = merged
        .into_iter()
        .map(|((section, name), value)| (section, name, value))
        .collect();
    ldap::domains::check(change, id, options)
        .await?
        .map_err(invalid)
}

/// Stores options; `alone`: and no others. What may be answered of all that the domain then has.
async fn store(
    app: &App,
    caller: &Caller,
    mut change: Change,
    id: &str,
    config: &Config,
    alone: bool,
) -> Result<Config, IdentityError> {
    check_usable(&mut change, id, config, alone).await?;
    let options = seal(app, id, config)?;
    if alone {
        change.delete_domain_options(id, None, None).await?;
    }
    for option in &options {
        change.set_domain_option(option).await?;
    }
    let shown = readable(&change.domain_options(id).await?);
    app.store.commit(change).await?;
    app.store.mark_log_dirty();
    caller.audit("update", KIND, id);
    app.reload_directories().await?;
    Ok(shown)
}

async fn delete(
    app: &App,
    caller: &Caller,
    id: &str,
    section: Option<&str>,
    name: Option<&str>,
) -> ApiResult {
    caller.may(app, "identity:delete_domain_config", &Target::new())?;
    require_domain(app, id).await?;
    if let Some(section) = section {
        domain_options::check_known(section, name).map_err(invalid)?;
    }
    let mut change = app.store.change_identity().await?;
    require_options(&mut change, id, section, name).await?;
    change.delete_domain_options(id, section, name).await?;
    app.store.commit(change).await?;
    app.store.mark_log_dirty();
    caller.audit("delete", KIND, id);
    app.reload_directories().await?;
    Ok(no_content())
}

fn defaults(app: &App, caller: &Caller, section: Option<&str>, name: Option<&str>) -> ApiResult {
    caller.may(app, "identity:get_domain_config_default", &Target::new())?;
    let mut config = Config::new();
    for known in SECTIONS {
        if section.is_none_or(|wanted| wanted == known) {
            let options = domain_options::defaults(known).unwrap_or_default();
            config.insert(known.into(), Value::Object(options));
        }
    }
    let Some(section) = section else {
        return Ok(answer(StatusCode::OK, Value::Object(config)));
    };
    domain_options::check_known(section, name).map_err(invalid)?;
    let shown = match name {
        None => Value::Object(config),
        Some(name) if domain_options::is_sensitive(section, name) => {
            return Err(invalid(format!(
                "Reading the default for option {name} in group {section} is not supported"
            )));
        }
        Some(name) => json!({ name: config[section][name] }),
    };
    Ok(answer(StatusCode::OK, shown))
}

async fn all_defaults(State(app): State<Arc<App>>, caller: Caller) -> ApiResult {
    defaults(&app, &caller, None, None)
}

async fn section_defaults(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(group): Path<String>,
) -> ApiResult {
    defaults(&app, &caller, Some(&group), None)
}

async fn option_default(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((group, option)): Path<(String, String)>,
) -> ApiResult {
    defaults(&app, &caller, Some(&group), Some(&option))
}

async fn show_all(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    show(&app, &caller, &id, None, None).await
}

async fn show_section(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, group)): Path<(String, String)>,
) -> ApiResult {
    show(&app, &caller, &id, Some(&group), None).await
}

async fn show_option(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, group, option)): Path<(String, String, String)>,
) -> ApiResult {
    show(&app, &caller, &id, Some(&group), Some(&option)).await
}

async fn update_all(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    update(&app, &caller, &id, None, None, &bytes).await
}

async fn update_section(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, group)): Path<(String, String)>,
    bytes: Bytes,
) -> ApiResult {
    update(&app, &caller, &id, Some(&group), None, &bytes).await
}

async fn update_option(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, group, option)): Path<(String, String, String)>,
    bytes: Bytes,
) -> ApiResult {
    update(&app, &caller, &id, Some(&group), Some(&option), &bytes).await
}

async fn delete_all(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    delete(&app, &caller, &id, None, None).await
}

async fn delete_section(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, group)): Path<(String, String)>,
) -> ApiResult {
    delete(&app, &caller, &id, Some(&group), None).await
}

async fn delete_option(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, group, option)): Path<(String, String, String)>,
) -> ApiResult {
    delete(&app, &caller, &id, Some(&group), Some(&option)).await
}
