//! The option `immutable`, which protects a role, project or domain from changes and deletion, also by the
//! administrator of everything, until it is taken away.

use super::{error::IdentityError, fields::Object};
use crate::store::json_object;

fn is_immutable(options: &str) -> bool {
    json_object(options).get("immutable") == Some(&true.into())
}

/// Refuses a change of an immutable resource, unless it takes the option away. `options` are the stored ones,
/// `sent` is the request.
///
/// # Errors
/// 403.
pub fn check_update(
    kind: &str,
    name: &str,
    options: &str,
    sent: &Object,
) -> Result<(), IdentityError> {
    let freed = sent
        .get("options")
        .and_then(|options| options.get("immutable"))
        .is_some_and(|flag| *flag == false || flag.is_null());
    if freed {
        Ok(())
    } else {
        check_delete(kind, name, options)
    }
}

/// Refuses the deletion of an immutable resource.
///
/// # Errors
/// 403.
pub fn check_delete(kind: &str, name: &str, options: &str) -> Result<(), IdentityError> {
    if is_immutable(options) {
        return Err(IdentityError::Forbidden(format!(
            "The {kind} {name} is immutable; set its option immutable to false first."
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_end_of_immutability_is_let_through() {
        let sent = |value: serde_json::Value| value.as_object().cloned().unwrap();
        let on = r#"{"immutable": true}"#;
        for (body, allowed) in [
            (json!({"name": "x"}), false),
            (json!({"options": {}}), false),
            (json!({"options": {"immutable": true}}), false),
            (json!({"options": {"immutable": "false"}}), false),
            (json!({"options": {"immutable": false}, "name": "x"}), true),
            (json!({"options": {"immutable": null}}), true),
        ] {
            assert_eq!(
                check_update("role", "r", on, &sent(body.clone())).is_ok(),
                allowed,
                "{body}"
            );
            assert!(check_update("role", "r", "{}", &sent(body)).is_ok());
        }
        assert!(check_delete("role", "r", on).is_err());
    }
}
