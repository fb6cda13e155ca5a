//! Tokens: opaque to clients, sealed by our key, small because they only hold ids. What they are worth
//! (roles, enabled or not) is worked out anew from the records, so that a change counts at once.

mod access_rules;
mod cache;
mod context;
mod format;
mod oauth;
pub mod trust;

pub use access_rules::{matches, permits};
pub use cache::TokenCache;
pub use context::{
    AppCredentialRef, AuthContext, IdName, Records, Scope, TokenError, TrustRef, UserRef, resolve,
    resolve_new, scope_and_roles, worth,
};
pub use format::{FormatError, Method, ReceiptPayload, TokenKeys, TokenPayload, TokenScope};
pub use oauth::{ACCESS_TOKEN_FAMILY, AccessTokenRef};
