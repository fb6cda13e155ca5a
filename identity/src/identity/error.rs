//! Errors of the identity API and their shape: `{"error": {"code", "message", "title"}}`.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Json, Response},
};
use serde_json::json;
use thiserror::Error;

use crate::{
    accounts::PasswordRefusal,
    crypto::{SealError, password::PasswordError},
    ldap::DirectoryError,
    store::{StoreError, UNFIT},
    token::FormatError,
};

/// What a call was refused with.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Who the caller is could not be established. One text for all causes, so that nothing can be probed.
    #[error("Authentication is required: the user, password, token or scope was not accepted.")]
    Unauthorized,
    /// An application credential whose time is over, shown with its right secret: who knows that may know why it does
    /// not work any more.
    #[error("The application credential has expired: make a new one.")]
    CredentialExpired,
    /// The right password, but it is over. Who knows it may know why it does not work any more.
    #[error("The password has expired and must be changed for user {0}.")]
    PasswordExpired(String),
    /// One account was tried too often.
    #[error("Too many login attempts for this account; try again in a few seconds.")]
    TooManyAttempts,
    /// A password that the rules do not let through.
    #[error(transparent)]
    PasswordRules(#[from] PasswordRefusal),
    /// A login method that does not exist.
    #[error("This authentication method is not supported.")]
    UnsupportedMethod,
    /// The policy refused.
    #[error("You are not authorized to perform the requested action: {0}.")]
    Policy(String),
    /// Refused for another cause.
    #[error("{0}")]
    Forbidden(String),
    /// No such object.
    #[error("Could not find {0}: {1}.")]
    NotFound(&'static str, String),
    /// A protocol of an identity provider, in a service without federation.
    #[error("Could not find federated protocol {protocol} for Identity Provider: {provider}.")]
    NoProtocol {
        /// Its id.
        protocol: String,
        /// Id of the provider.
        provider: String,
    },
    /// A token that cannot be validated.
    #[error("Failed to validate token.")]
    TokenNotFound,
    /// A name or id that is taken.
    #[error("Conflict: a {0} named {1} exists already; choose another name.")]
    Conflict(&'static str, String),
    /// A request that cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// The user's or domain's directory cannot be asked. What is wrong with it is the log's.
    #[error("The directory of the domain cannot be used just now; try again.")]
    Directory(DirectoryError),
    /// Records.
    #[error("An unexpected error prevented the server from fulfilling the request.")]
    Store(StoreError),
    /// Password hashing.
    #[error("An unexpected error prevented the server from fulfilling the request.")]
    Password(#[from] PasswordError),
    /// Sealing a token.
    #[error("An unexpected error prevented the server from fulfilling the request.")]
    Seal(#[from] SealError),
    /// Making a token.
    #[error("An unexpected error prevented the server from fulfilling the request.")]
    Token(#[from] FormatError),
    /// Writing an answer.
    #[error("An unexpected error prevented the server from fulfilling the request.")]
    Answer(#[from] serde_json::Error),
}

/// The result of every handler.
pub type ApiResult = Result<Response, IdentityError>;

impl IdentityError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::CredentialExpired => "CredentialExpired",
            Self::PasswordExpired(_) => "PasswordExpired",
            Self::TooManyAttempts => "TooManyAttempts",
            Self::PasswordRules(_) => "PasswordRefused",
            Self::UnsupportedMethod => "UnsupportedMethod",
            Self::Policy(_) => "PolicyRefused",
            Self::Forbidden(_) => "Forbidden",
            Self::NotFound(..) | Self::NoProtocol { .. } => "NotFound",
            Self::TokenNotFound => "TokenNotFound",
            Self::Conflict(..) => "Conflict",
            Self::BadRequest(_) => "BadRequest",
            Self::Directory(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Password(error) => error.reason(),
            Self::Seal(error) => error.reason(),
            Self::Token(_) => "TokenNotMade",
            Self::Answer(_) => "AnswerNotWritten",
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized
            | Self::CredentialExpired
            | Self::PasswordExpired(_)
            | Self::UnsupportedMethod => StatusCode::UNAUTHORIZED,
            Self::TooManyAttempts => StatusCode::TOO_MANY_REQUESTS,
            Self::PasswordRules(_) => StatusCode::BAD_REQUEST,
            Self::Directory(_) | Self::Password(PasswordError::Busy) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Store(error) if error.is_unavailable() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Policy(_) | Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(..) | Self::NoProtocol { .. } | Self::TokenNotFound => {
                StatusCode::NOT_FOUND
            }
            Self::Conflict(..) | Self::Store(StoreError::Duplicate) => StatusCode::CONFLICT,
            Self::BadRequest(_) | Self::Store(StoreError::Dangling) => StatusCode::BAD_REQUEST,
            Self::Store(_)
            | Self::Password(_)
            | Self::Seal(_)
            | Self::Token(_)
            | Self::Answer(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Turns "exists already" of the store into a conflict that names the object.
    pub fn duplicate(kind: &'static str, name: &str) -> impl FnOnce(StoreError) -> Self {
        let name = name.to_owned();
        move |error| match error {
            StoreError::Duplicate => Self::Conflict(kind, name),
            other => other.into(),
        }
    }
}

impl From<StoreError> for IdentityError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unfit(_) => Self::BadRequest(UNFIT.to_owned()),
            other => Self::Store(other),
        }
    }
}

impl IntoResponse for IdentityError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!(reason = self.reason(), error = ?self, "identity request failed");
        }
        let mut error = json!({
            "code": status.as_u16(), "message": self.to_string(),
            "title": status.canonical_reason().unwrap_or("Error"),
        });
        if matches!(self, Self::UnsupportedMethod) {
            error["identity"] = json!({"methods": ["password", "token", "application_credential", "totp", "oauth1"]});
        }
        (status, Json(json!({ "error": error }))).into_response()
    }
}
