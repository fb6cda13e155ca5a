//! What domains, projects and groups are described by.

use sqlx::FromRow;

/// Free text, or none at all (null), which is not the same on the wire: clients that were told no description send null.
///
/// Two columns, so that replicas of before, which know the first only, go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, FromRow)]
pub struct Description {
    #[sqlx(rename = "description")]
    text: String,
    undescribed: bool,
}

impl Description {
    /// The text, `None` where there is none at all.
    pub fn shown(&self) -> Option<&str> {
        let none = self.undescribed && self.text.is_empty();
        (!none).then_some(&*self.text)
    }

    /// The value of the column `description`.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The value of the column `undescribed`.
    pub(super) fn undescribed(&self) -> bool {
        self.undescribed
    }
}

impl From<&str> for Description {
    fn from(text: &str) -> Self {
        Some(text.to_owned()).into()
    }
}

impl From<Option<String>> for Description {
    fn from(text: Option<String>) -> Self {
        Self {
            undescribed: text.is_none(),
            text: text.unwrap_or_default(),
        }
    }
}
