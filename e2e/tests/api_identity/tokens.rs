//! Tokens and the catalog.

use anyhow::{Result, ensure};

use crate::ground::{Ground, names, text};

#[test]
fn token_and_catalog() -> Result<()> {
    let ground = Ground::new("identity-token")?;
    let token = ground.json(&["token", "issue"])?;
    ensure!(text(&token, "id")?.len() > 100, "{token}");
    for name in ["expires", "project_id", "user_id"] {
        text(&token, name)?;
    }
    let catalog = ground.json(&["catalog", "list"])?;
    let mut types = names(&catalog, "Type");
    types.sort();
    assert_eq!(types, ["identity", "key-manager"]);
    let endpoints = catalog.to_string();
    for path in ["/identity", "/key-manager"] {
        let url = format!("{}{path}", ground.service.base_url());
        ensure!(endpoints.contains(&url), "{url} is not in {endpoints}");
    }
    let wrong =
        ground
            .service
            .password_cloud("wrong", "admin", "not-the-password", Some("admin"))?;
    ground.client.refused(&wrong, &["token", "issue"], "401")?;
    let unknown = ground
        .service
        .password_cloud("unknown", "nobody", "x", Some("admin"))?;
    ground
        .client
        .refused(&unknown, &["token", "issue"], "401")?;
    // Revoked means dead, for the one who revokes too.
    ground.ok(&["token", "revoke", text(&token, "id")?])?;
    ground.refused(&["token", "revoke", text(&token, "id")?], "404")?;
    // Bootstrap again, as every start of a pod does, changes nothing.
    ground.service.bootstrap()?;
    assert_eq!(names(&ground.json(&["endpoint", "list"])?, "URL").len(), 6);
    ground.passed()
}
