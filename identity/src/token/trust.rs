//! What a trust is worth now: it and the trusts that it came from must all hold, and it gives nothing that its trustor does not
//! have at this moment. The rules are Keystone's (`keystone/trust/core.py`, `keystone/models/token_model.py`).

use thiserror::Error;

use crate::store::{Store, StoreError, assignments::EffectiveRole, trusts::Trust, users::User};

/// How often the first trust of a chain may be passed on at most.
pub const MAX_REDELEGATION: i64 = 3;

/// Why a trust gives nothing.
#[derive(Debug, Error)]
pub enum TrustError {
    /// There is none, it is over, it is used up, or one that it came from is gone.
    #[error("there is no such trust, or it is over")]
    Gone,
    /// It is there, and does not hold.
    #[error("{0}")]
    Broken(&'static str),
    /// The records could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A trust with the ids of its roles.
#[derive(Debug, Clone)]
pub struct Link {
    /// The trust.
    pub trust: Trust,
    /// Its roles, without what they imply.
    pub roles: Vec<String>,
}

/// A trust and those that it came from, the first one last. Never empty.
#[derive(Debug, Clone)]
pub struct Chain(Vec<Link>);

impl Chain {
    /// The trust itself.
    pub fn own(&self) -> &Link {
        &self.0[0]
    }

    /// Whose roles they are in the end.
    pub fn first_trustor(&self) -> &str {
        self.0
            .last()
            .map_or("", |link| link.trust.trustor_id.as_str())
    }

    /// All of them.
    pub fn links(&self) -> &[Link] {
        &self.0
    }
}

/// Whether a trust can be made with, or still stands on, this one.
///
/// # Errors
/// `Broken`, with the cause.
pub fn may_redelegate(
    parent: &Link,
    child: &Trust,
    child_roles: &[String],
) -> Result<(), TrustError> {
    let broken = |text| Err(TrustError::Broken(text));
    if !(1..=MAX_REDELEGATION).contains(&parent.trust.redelegation_count) {
        return broken("The trust may not be passed on (any further).");
    }
    if child.remaining_uses.is_some() {
        return broken("remaining_uses must not be set in a trust that is passed on.");
    }
    if let Some(limit) = parent.trust.expires_at
        && child.expires_at.is_none_or(|at| at > limit)
    {
        return broken("The trust would outlive the one that it is made with.");
    }
    if !child_roles.iter().all(|role| parent.roles.contains(role)) {
        return broken("A requested role is not in the trust that is passed on.");
    }
    if child.impersonation && !parent.trust.impersonation {
        return broken("The trust that is passed on does not allow impersonation.");
    }
    Ok(())
}

/// Whether its time or its uses are over. `new_use`: for a login or a look at it; a token that was made with the last use stays.
fn over(trust: &Trust, now: i64, new_use: bool) -> bool {
    trust.expires_at.is_some_and(|at| at <= now)
        || (new_use && trust.remaining_uses.is_some_and(|left| left <= 0))
}

async fn load(store: &Store, id: &str) -> Result<Link, TrustError> {
    let trust = store.trust(id).await?.ok_or(TrustError::Gone)?;
    let roles = store.trust_role_ids(id).await?;
    Ok(Link { trust, roles })
}

/// A trust with all that it came from, if they hold.
///
/// # Errors
/// Any [`TrustError`].
pub async fn chain(store: &Store, id: &str, now: i64, new_use: bool) -> Result<Chain, TrustError> {
    let own = load(store, id).await?;
    if over(&own.trust, now, new_use) {
        return Err(TrustError::Gone);
    }
    let mut links = vec![own];
    while let Some(above) = links
        .last()
        .and_then(|link| link.trust.redelegated_trust_id.clone())
    {
        // More than can be made: the records are damaged.
        if links.len() > usize::try_from(MAX_REDELEGATION).unwrap_or(0) + 1 {
            return Err(TrustError::Gone);
        }
        links.push(load(store, &above).await?);
    }
    for pair in links.windows(2) {
        if let [child, parent] = pair {
            if over(&parent.trust, now, false) {
                return Err(TrustError::Gone);
            }
            may_redelegate(parent, &child.trust, &child.roles)?;
            enabled(
                store,
                &parent.trust.trustee_id,
                "One of the trustees in between is disabled or deleted.",
            )
            .await?;
        }
    }
    Ok(Chain(links))
}

/// The user, if it and its domain are enabled.
async fn enabled(store: &Store, user_id: &str, text: &'static str) -> Result<User, TrustError> {
    let user = store
        .user(user_id)
        .await?
        .filter(|user| user.enabled)
        .ok_or(TrustError::Broken(text))?;
    store
        .domain(&user.domain_id)
        .await?
        .filter(|domain| domain.enabled)
        .ok_or(TrustError::Gone)?;
    Ok(user)
}

/// What a chain gives to the user that shows it: the trustor and the roles, with all that they imply.
///
/// # Errors
/// Any [`TrustError`].
pub async fn worth(
    store: &Store,
    chain: &Chain,
    user_id: &str,
) -> Result<(User, Vec<EffectiveRole>), TrustError> {
    let Link { trust, roles } = chain.own();
    if trust.trustee_id != user_id {
        return Err(TrustError::Broken("The user is not the trustee."));
    }
    let trustor = enabled(
        store,
        &trust.trustor_id,
        "The trustor is disabled or deleted.",
    )
    .await?;
    let project = trust.project_id.as_deref().ok_or(TrustError::Gone)?;
    let closure = store.implied_closure(roles).await?;
    let given = roles
        .iter()
        .map(String::as_str)
        .chain(closure.iter().map(|role| role.id.as_str()));
    let given: Vec<&str> = given.collect();
    // Both the one who passed it on and the one whose roles they are: as Keystone asks.
    for holder in [chain.first_trustor(), trust.trustor_id.as_str()] {
        let held = store.held_role_ids(holder, "project", project).await?;
        if !given.iter().all(|role| held.iter().any(|has| has == role)) {
            return Err(TrustError::Broken(
                "The trustor does not have all the roles of the trust any more.",
            ));
        }
    }
    let roles = closure
        .into_iter()
        .filter(|role| role.domain_id.is_none())
        .map(|role| EffectiveRole {
            id: role.id,
            name: role.name,
        })
        .collect();
    Ok((trustor, roles))
}
