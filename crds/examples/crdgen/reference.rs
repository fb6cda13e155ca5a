//! The reference pages of the book, from the CRDs' schemas and the reasons.

use cryptvol_crds::conditions::Reason;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use crate::{Error, MARK};

/// One section a kind, one table an object, one row a field.
pub fn api(crds: &[CustomResourceDefinition]) -> Result<String, Error> {
    let mut out = format!(
        "<!-- {MARK} -->\n\n# API reference\n\nGroup `cryptvol.dev`, version `v1alpha1`.\n"
    );
    for crd in crds {
        let spec = &crd.spec;
        let version = spec.versions.first().ok_or("a CRD without a version")?;
        let schema = serde_json::to_value(
            version
                .schema
                .as_ref()
                .and_then(|s| s.open_api_v3_schema.as_ref()),
        )?;
        out += &format!(
            "\n## {}\n\n{}\n\n{}{}.\n",
            spec.names.kind,
            text(&schema["description"]),
            if spec.scope == "Namespaced" {
                "Namespaced"
            } else {
                "Cluster-wide"
            },
            spec.names
                .short_names
                .as_deref()
                .unwrap_or_default()
                .iter()
                .map(|name| format!(", short name `{name}`"))
                .collect::<String>()
        );
        rules(&mut out, &schema);
        for part in ["spec", "status"] {
            if schema["properties"][part].is_object() {
                object(&mut out, part, &schema["properties"][part]);
            }
        }
    }
    Ok(out)
}

fn object(out: &mut String, path: &str, schema: &Value) {
    let Some(fields) = schema["properties"].as_object() else {
        return;
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    *out += &format!("\n### {path}\n\n");
    if !text(&schema["description"]).is_empty() {
        *out += &format!("{}\n", text(&schema["description"]));
    }
    rules(out, schema);
    *out += "\n| field | type | |\n|---|---|---|\n";
    for (name, field) in fields {
        let default = match &field["default"] {
            Value::Null => String::new(),
            value => format!(" Default: `{value}`."),
        };
        let must = if required.contains(&name.as_str()) {
            "**Required.** "
        } else {
            ""
        };
        // An object has its rules in its own section.
        let rules = messages(field).filter(|_| !field["properties"].is_object());
        let refused: String = rules.map(|m| format!(" *{m}.*")).collect();
        *out += &format!(
            "| `{name}` | {} | {must}{}{default}{} |\n",
            kind(field),
            cell(&text(&field["description"])),
            cell(&refused)
        );
    }
    for (name, field) in fields {
        let inner = if field["items"].is_object() {
            &field["items"]
        } else {
            field
        };
        let suffix = if field["items"].is_object() { "[]" } else { "" };
        // Conditions are the same everywhere and described by Kubernetes.
        if inner["properties"].is_object() && name != "conditions" {
            object(out, &format!("{path}.{name}{suffix}"), inner);
        }
    }
}

fn rules(out: &mut String, schema: &Value) {
    let found: Vec<_> = messages(schema).collect();
    if !found.is_empty() {
        *out += "\nWhat is refused, and the words it is refused with:\n\n";
        for message in found {
            *out += &format!("- {message}\n");
        }
    }
}

fn messages(schema: &Value) -> impl Iterator<Item = &str> {
    schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|rule| rule["message"].as_str())
}

fn kind(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        let names: Vec<_> = values
            .iter()
            .filter_map(Value::as_str)
            .map(|v| format!("`{v}`"))
            .collect();
        return names.join(", ");
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("array"), _) => format!("list of {}", kind(&schema["items"])),
        (Some("string"), Some("date-time")) => "time".into(),
        (Some(kind), _) => kind.into(),
        (None, _) => "any".into(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().trim().to_owned()
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

/// Every reason with its meaning and next step.
pub fn reasons() -> String {
    let mut out = format!(
        "<!-- {MARK} -->\n\n# Condition reasons\n\nThe reason of a condition says what kind of thing is to be done; the \
         message ends with the next step. *Retried* means that cryptvol tries again by itself; for the others it waits \
         for a change (and looks again at long intervals, because arrays and key managers do not tell).\n\n\
         | reason | what it means | what to do | retried |\n|---|---|---|---|\n"
    );
    for reason in Reason::ALL {
        let next = match reason.next_step() {
            "" => "Nothing.",
            next => next,
        };
        let retried = if reason.is_transient() { "yes" } else { "" };
        out += &format!(
            "| `{reason}` | {} | {} | {retried} |\n",
            cell(reason.meaning()),
            cell(next)
        );
    }
    out
}
