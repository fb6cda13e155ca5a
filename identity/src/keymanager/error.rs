//! Errors of the key manager and their shape: `{"code", "title", "description"}`; 401 has the identity form.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Json, Response},
};
use serde_json::json;
use thiserror::Error;

use crate::{
    crypto::SealError,
    ldap::DirectoryError,
    store::{StoreError, UNFIT},
};

/// What a call was refused with.
#[derive(Debug, Error)]
pub enum KeyManagerError {
    /// No token, or one that is worth nothing.
    #[error("Authentication is required: log in again.")]
    Unauthorized,
    /// A token without a project.
    #[error("Log in to a project: the key manager only serves project-scoped tokens.")]
    NoProject,
    /// The policy refused.
    #[error(
        "You are not authorized to do {0}; ask for a role on the project, or for access to this secret."
    )]
    Policy(&'static str),
    /// Refused for another cause.
    #[error("{0}")]
    Forbidden(String),
    /// No such object.
    #[error("There is no such {0}.")]
    NotFound(&'static str),
    /// No such route.
    #[error("There is nothing at this URL.")]
    NoSuchRoute,
    /// A request that cannot be understood or is not permitted.
    #[error("{0}")]
    BadRequest(String),
    /// The secret has its payload already.
    #[error(
        "The secret has a payload already; a payload is written once. Store a new secret instead."
    )]
    HasPayload,
    /// Something is there already.
    #[error("{0}")]
    Conflict(String),
    /// The project has as many as it may have.
    #[error(
        "Creation not allowed because a quota has been reached: this project may have {limit} {name}. Delete some, or ask an administrator for more."
    )]
    QuotaReached {
        /// What of.
        name: &'static str,
        /// The limit.
        limit: i64,
    },
    /// The payload is not of the type that was asked for.
    #[error("The payload is {0}; ask for that content type or for none.")]
    NotAcceptable(String),
    /// The payload is too long.
    #[error("The payload has more than {0} bytes.")]
    TooLarge(usize),
    /// The body is of a type that is not understood.
    #[error("The content type {0} is not supported here.")]
    MediaType(String),
    /// Records.
    #[error("The key manager failed to do this; try again, then look into its log.")]
    Store(StoreError),
    /// The caller is in a directory that cannot be asked.
    #[error("The directory of the caller's domain cannot be used just now; try again.")]
    Directory(DirectoryError),
    /// A payload that does not open, or could not be sealed.
    #[error("The key manager failed to do this; look into its log.")]
    Seal(#[from] SealError),
}

/// The result of every handler.
pub type ApiResult = Result<Response, KeyManagerError>;

impl KeyManagerError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::NoProject => "NoProject",
            Self::Policy(_) => "PolicyRefused",
            Self::Forbidden(_) => "Forbidden",
            Self::NotFound(_) | Self::NoSuchRoute => "NotFound",
            Self::BadRequest(_) => "BadRequest",
            Self::HasPayload => "HasPayload",
            Self::Conflict(_) => "Conflict",
            Self::QuotaReached { .. } => "QuotaReached",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::TooLarge(_) => "TooLarge",
            Self::MediaType(_) => "UnsupportedMediaType",
            Self::Store(error) => error.reason(),
            Self::Directory(error) => error.reason(),
            Self::Seal(error) => error.reason(),
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized | Self::NoProject => StatusCode::UNAUTHORIZED,
            Self::Policy(_) | Self::Forbidden(_) | Self::QuotaReached { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::NotFound(_) | Self::NoSuchRoute => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::HasPayload | Self::Conflict(_) => StatusCode::CONFLICT,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Directory(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(error) if error.is_unavailable() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_) | Self::Seal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for KeyManagerError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unfit(_) => Self::BadRequest(UNFIT.to_owned()),
            // Deleted since it was looked up.
            StoreError::Dangling => Self::NotFound("secret or container"),
            other => Self::Store(other),
        }
    }
}

impl IntoResponse for KeyManagerError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!(reason = self.reason(), error = ?self, "key-manager request failed");
        }
        let title = match status {
            // As Barbican calls it.
            StatusCode::PAYLOAD_TOO_LARGE => "Request Entity Too Large",
            _ => status.canonical_reason().unwrap_or("Error"),
        };
        let text = self.to_string();
        match self {
            Self::NoProject => (status, text).into_response(),
            Self::Unauthorized => {
                let error = json!({"code": 401, "title": title, "message": text});
                (status, Json(json!({ "error": error }))).into_response()
            }
            _ => {
                let body = json!({"code": status.as_u16(), "title": title, "description": text});
                (status, Json(body)).into_response()
            }
        }
    }
}
