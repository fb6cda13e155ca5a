//! What is given away carries nobody higher: the regional administrator by trusts, EC2 credentials and OAuth1.

use super::*;

/// Trusts, made by the regional administrator and for it.
#[tokio::test]
async fn regional_administrator_by_trusts() {
    let region = Region::new().await;
    let site = &region.site;
    let quay = region
        .created("project", json!({"name": "quay", "domain_id": site.north}))
        .await;
    let bob = region
        .created(
            "user",
            json!({"name": "bob", "domain_id": site.north, "password": "bob-pw"}),
        )
        .await;
    let member = region.role("member").await;
    for user in [&region.alice, &bob] {
        let path = format!("/projects/{quay}/users/{user}/roles/{member}");
        assert_eq!(region.status("PUT", &path, Value::Null).await, 204);
    }
    let (_, in_project) = site
        .login(&region.alice, json!({"project": {"id": quay}}))
        .await;
    let trust = |more: Value| {
        let mut trust = json!({"trustor_user_id": region.alice, "trustee_user_id": bob, "project_id": quay,
            "impersonation": true, "roles": [{"id": member}]});
        for (name, value) in more.as_object().unwrap() {
            trust[name] = value.clone();
        }
        json!({ "trust": trust })
    };
    let admin = region.role("admin").await;
    let superuser = site
        .bench
        .admin("GET", &format!("{V3}/users?name=admin"), Value::Null, 200)
        .await;
    let superuser = id(&superuser["users"][0]);
    for (more, status) in [
        // Roles that she does not have there: her own is one of the domain.
        (json!({"roles": [{"id": admin}]}), 404),
        (json!({"roles": [{"id": region.radmin}]}), 404),
        (json!({"roles": [{"id": member}, {"name": "manager"}]}), 404),
        (json!({"project_id": region.foreign_project}), 404),
        (json!({"project_id": site.north}), 404),
        (
            json!({"project_id": null, "roles": [{"id": region.radmin}]}),
            400,
        ),
        // In the name of somebody else.
        (
            json!({"trustor_user_id": superuser, "trustee_user_id": region.alice, "roles": [{"id": admin}]}),
            403,
        ),
        (
            json!({"trustor_user_id": region.foreign_user, "trustee_user_id": region.alice}),
            403,
        ),
        (
            json!({"trustor_user_id": bob, "trustee_user_id": region.alice}),
            403,
        ),
        // As if it came from another trust.
        (
            json!({"redelegated_trust_id": "0123456789abcdef0123456789abcdef"}),
            400,
        ),
    ] {
        let got = site
            .status(&in_project, "POST", "/OS-TRUST/trusts", trust(more.clone()))
            .await;
        assert_eq!(got, status, "{more}");
    }
    // With the domain's token, which is where her rights are, no trust is made at all.
    assert_eq!(
        region
            .status("POST", "/OS-TRUST/trusts", trust(json!({})))
            .await,
        403
    );

    let answer = site
        .bench
        .call(
            "POST",
            &format!("{V3}/OS-TRUST/trusts"),
            &in_project,
            trust(json!({})),
        )
        .await;
    assert_eq!(answer.status, 201);
    let made = id(&answer.json()["trust"]);
    let (status, by_trust) = site
        .login(&bob, json!({"OS-TRUST:trust": {"id": made}}))
        .await;
    assert_eq!(status, 201);
    // Bob appears as alice, and has none of what she has in the domain.
    for (method, path, body) in [
        (
            "POST",
            "/users".to_owned(),
            json!({"user": {"name": "x", "domain_id": site.north}}),
        ),
        ("GET", "/users".to_owned(), Value::Null),
        (
            "PUT",
            format!("/projects/{quay}/users/{bob}/roles/{admin}"),
            Value::Null,
        ),
        (
            "PUT",
            format!("/projects/{quay}/users/{bob}/roles/{member}"),
            Value::Null,
        ),
        (
            "POST",
            format!("/users/{}/application_credentials", region.alice),
            json!({"application_credential": {"name": "x"}}),
        ),
        (
            "POST",
            format!("/users/{}/credentials/OS-EC2", region.alice),
            json!({"tenant_id": quay}),
        ),
        (
            "POST",
            "/credentials".to_owned(),
            json!({"credential": {"user_id": region.alice, "type": "totp", "blob": "GEZDGNBV"}}),
        ),
    ] {
        assert_eq!(
            site.status(&by_trust, method, &path, body).await,
            403,
            "{method} {path}"
        );
    }
    for scope in [
        json!({"domain": {"id": site.north}}),
        json!({"system": {"all": true}}),
        json!({"project": {"id": quay}}),
    ] {
        let identity = json!({"methods": ["token"], "token": {"id": by_trust}});
        assert_eq!(site.auth(identity, scope).await.0, 403);
    }
    // Nobody else uses it, and others' trusts are neither hers to see nor to end.
    let (status, _) = site
        .login(
            &region.foreign_user,
            json!({"OS-TRUST:trust": {"id": made}}),
        )
        .await;
    assert_eq!(status, 403);
    assert_eq!(
        region.status("GET", "/OS-TRUST/trusts", Value::Null).await,
        403
    );
    let path = format!("/OS-TRUST/trusts?trustor_user_id={superuser}");
    assert_eq!(region.status("GET", &path, Value::Null).await, 403);
}

/// EC2 credentials and OAuth1 access tokens.
#[tokio::test]
async fn regional_administrator_by_ec2_and_oauth1() {
    let region = Region::new().await;
    let site = &region.site;
    let quay = region
        .created("project", json!({"name": "quay", "domain_id": site.north}))
        .await;
    let member = region.role("member").await;
    let path = format!("/projects/{quay}/users/{}/roles/{member}", region.alice);
    assert_eq!(region.status("PUT", &path, Value::Null).await, 204);
    let (_, in_project) = site
        .login(&region.alice, json!({"project": {"id": quay}}))
        .await;
    let superuser = site
        .bench
        .admin("GET", &format!("{V3}/users?name=admin"), Value::Null, 200)
        .await;
    let superuser = id(&superuser["users"][0]);
    let admin_project = site
        .bench
        .admin(
            "GET",
            &format!("{V3}/projects?name=admin"),
            Value::Null,
            200,
        )
        .await;
    let admin_project = id(&admin_project["projects"][0]);
    for token in [&region.token, &in_project] {
        for user in [&superuser, &region.foreign_user] {
            let path = format!("/users/{user}/credentials/OS-EC2");
            assert_eq!(site.status(token, "GET", &path, Value::Null).await, 403);
            assert_eq!(
                site.status(token, "POST", &path, json!({"tenant_id": quay}))
                    .await,
                403
            );
            let blob = json!({"access": "known", "secret": "known"}).to_string();
            let body = json!({"credential": {"type": "ec2", "blob": blob, "user_id": user, "project_id": admin_project}});
            assert_eq!(site.status(token, "POST", "/credentials", body).await, 403);
            // A seed of one-time passwords would be a second way to log in as somebody.
            let body = json!({"credential": {"type": "totp", "blob": "GEZDGNBV", "user_id": user}});
            assert_eq!(site.status(token, "POST", "/credentials", body).await, 403);
        }
        // What services and administrators of everything ask.
        for path in ["/ec2tokens", "/s3tokens"] {
            assert_eq!(
                site.status(
                    token,
                    "POST",
                    path,
                    json!({"credentials": {"access": "known"}})
                )
                .await,
                403
            );
        }
        for (method, path, body) in [
            (
                "POST",
                "/OS-OAUTH1/consumers".to_owned(),
                json!({"consumer": {}}),
            ),
            ("GET", "/OS-OAUTH1/consumers".to_owned(), Value::Null),
            (
                "PUT",
                "/OS-OAUTH1/authorize/nosuch".to_owned(),
                json!({"roles": [{"name": "admin"}]}),
            ),
            (
                "GET",
                format!("/users/{superuser}/OS-OAUTH1/access_tokens"),
                Value::Null,
            ),
        ] {
            assert_eq!(
                site.status(token, method, &path, body).await,
                403,
                "{method} {path}"
            );
        }
    }
    // Of her own for a project that she has no role on: it is made, and good for nothing.
    let own = format!("{V3}/users/{}/credentials/OS-EC2", region.alice);
    let answer = site
        .bench
        .call(
            "POST",
            &own,
            &in_project,
            json!({"tenant_id": admin_project}),
        )
        .await;
    assert_eq!(answer.status, 201);
    let keys = answer.json()["credential"].clone();
    let text = "x".to_owned();
    let mac =
        crate::crypto::mac::hmac_sha1(keys["secret"].as_str().unwrap().as_bytes(), text.as_bytes());
    let signed = json!({"credentials": {"access": keys["access"], "token": base64(text.as_bytes()), "signature": base64(&mac)}});
    let answer = site
        .bench
        .call("POST", &format!("{V3}/s3tokens"), &site.bench.admin, signed)
        .await;
    assert_eq!(answer.status, 401, "{}", answer.json());
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
