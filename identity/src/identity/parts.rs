//! Answers that may be long: a short one is made whole, a long one is made while it is on its way, so that a list of a
//! hundred thousand rows takes no more memory than one of a thousand.

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;

use super::error::IdentityError;

/// A longer answer is not held.
pub(super) const MAX_WHOLE: usize = 2 * 1024 * 1024;
/// Bytes of a long answer that are made at once.
const CHUNK: usize = 32 * 1024;

/// What writes an answer.
pub(super) trait Parts: Send + 'static {
    /// Adds the next part to `out`, a few kilobytes. Whether there is more.
    ///
    /// # Errors
    /// From the store. In the middle of a long answer it is cut off there.
    fn write(
        &mut self,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Result<bool, IdentityError>> + Send;
}

/// A JSON document.
pub(super) enum Document {
    /// All of it.
    Whole(Bytes),
    /// Its beginning, and where the rest comes from.
    Long(Body),
}

/// Has a document written, to its end if it is short.
///
/// # Errors
/// From the store.
pub(super) async fn document(mut parts: impl Parts) -> Result<Document, IdentityError> {
    let mut begin = Vec::new();
    while begin.len() <= MAX_WHOLE {
        if !parts.write(&mut begin).await? {
            return Ok(Document::Whole(begin.into()));
        }
        tokio::task::yield_now().await;
    }
    Ok(Document::Long(Body::from_stream(rest(begin, parts))))
}

fn rest(
    begin: Vec<u8>,
    parts: impl Parts,
) -> impl stream::Stream<Item = Result<Bytes, IdentityError>> {
    stream::try_unfold((begin, Some(parts)), |(mut part, mut parts)| async move {
        while part.len() < CHUNK {
            let Some(more) = &mut parts else { break };
            if !more.write(&mut part).await? {
                parts = None;
            }
            tokio::task::yield_now().await;
        }
        let part = Bytes::from(part);
        Ok((!part.is_empty()).then_some((part, (Vec::with_capacity(CHUNK * 2), parts))))
    })
}

impl IntoResponse for Document {
    fn into_response(self) -> Response {
        let mut answer = match self {
            Self::Whole(bytes) => bytes.into_response(),
            Self::Long(body) => body.into_response(),
        };
        let json = header::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        answer
    }
}
