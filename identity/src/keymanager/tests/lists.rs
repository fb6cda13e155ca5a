//! Lists of secrets: filters, order, pages.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn lists_filter_and_page() {
    let bench = Bench::new().await;
    for n in 0..12 {
        store(&bench, &bench.admin, &format!("s{n}"), "x").await;
    }
    let get = async |query: &str| {
        bench
            .call(
                "GET",
                &format!("{V1}/secrets{query}"),
                &bench.admin,
                Value::Null,
            )
            .await
            .json()
    };
    let first = get("").await;
    assert_eq!(
        (first["secrets"].as_array().unwrap().len(), &first["total"]),
        (10, &json!(12))
    );
    assert!(
        first["next"]
            .as_str()
            .unwrap()
            .ends_with("limit=10&offset=10")
    );
    let second = get("?limit=10&offset=10").await;
    assert_eq!(second["secrets"].as_array().unwrap().len(), 2);
    assert!(second.get("next").is_none() && second["previous"].is_string());
    assert_eq!(get("?name=s1%25").await["total"], 3);
    assert_eq!(get("?name=s3").await["total"], 1);
    assert_eq!(get("?alg=rsa").await["total"], 0);
    // Another project's list does not show them.
    let project = bench.project("other").await;
    let other = bench.member("m", ("other", &project), "member").await;
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/secrets"), &other, Value::Null)
            .await
            .json()["total"],
        0
    );
}

async fn names(bench: &Bench, query: &str) -> Result<Vec<String>, u16> {
    let url = format!("{V1}/secrets?limit=100&{query}");
    let answer = bench.call("GET", &url, &bench.admin, Value::Null).await;
    if answer.status != 200 {
        return Err(answer.status);
    }
    let list = answer.json()["secrets"].as_array().unwrap().clone();
    Ok(list
        .iter()
        .map(|secret| secret["name"].as_str().unwrap().to_owned())
        .collect())
}

#[tokio::test]
async fn every_filter_and_every_order() {
    let bench = Bench::new().await;
    for (name, bits, algorithm, mode, kind, expiration) in [
        ("b", 256, "aes", "cbc", "symmetric", "2091-01-01T00:00:00"),
        ("a", 512, "aes", "xts", "symmetric", "2092-01-01T00:00:00"),
        ("c", 128, "des", "cbc", "opaque", "2093-01-01T00:00:00"),
    ] {
        let body = json!({
            "name": name, "bit_length": bits, "algorithm": algorithm, "mode": mode, "secret_type": kind,
            "expiration": expiration,
        });
        let answer = bench
            .call("POST", &format!("{V1}/secrets"), &bench.admin, body)
            .await;
        assert_eq!(answer.status, 201);
    }
    // Two of them were made long ago.
    let path = bench.dir.path().join("identity.sqlite");
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", path.display()))
        .await
        .unwrap();
    for (name, created) in [
        ("a", 1_000_000_000_500_000_i64),
        ("b", 2_000_000_000_000_000),
    ] {
        sqlx::query("UPDATE secrets SET created = $1, updated = $1 WHERE name = $2")
            .bind(created)
            .bind(name)
            .execute(&pool)
            .await
            .unwrap();
    }
    let all = ["a", "c", "b"];
    for (query, expected) in [
        ("", &all[..]),
        ("alg=aes", &["a", "b"]),
        ("alg=AES", &["a", "b"]),
        ("alg=%25e%25", &all),
        ("mode=cbc", &["c", "b"]),
        ("bits=512", &["a"]),
        ("bits=many", &all),
        ("bits=-5", &all),
        ("secret_type=opaque", &["c"]),
        ("name=_", &all),
        ("nosuch=1", &all),
        ("created=2001-09-09T01:46:40", &["a"]),
        ("created=gt:2001-09-09T01:46:40", &["c", "b"]),
        ("created=gte:2001-09-09T01:46:40", &all),
        ("created=gte:2001-09-09T03:46:40%2B02:00", &all),
        ("created=lt:2001-09-09T01:46:40", &[]),
        ("created=lte:2001-09-09T01:46:40,gte:1990-01-01", &["a"]),
        ("updated=gt:2033-01-01", &["b"]),
        ("expiration=lt:2092-06-01,gt:2091-06-01", &["a"]),
        ("sort=name", &["a", "b", "c"]),
        ("sort=name:desc", &["c", "b", "a"]),
        ("sort=bit_length", &["c", "b", "a"]),
        ("sort=algorithm:desc,name:desc", &["c", "b", "a"]),
        ("sort=created:desc", &["b", "c", "a"]),
        ("sort=expiration:asc", &["b", "a", "c"]),
        ("sort=status", &all),
        ("sort=mode,secret_type:desc", &["b", "c", "a"]),
        ("sort=updated:desc", &["b", "c", "a"]),
    ] {
        assert_eq!(
            names(&bench, query).await,
            Ok(expected.iter().map(|name| (*name).to_owned()).collect()),
            "{query}"
        );
    }
    for query in [
        "created=yesterday",
        "created=gt:2001-01-01,gte:2002-01-01",
        "created=lt:2001-01-01,lte:2002-01-01",
        "created=2001-01-01,2002-01-01",
        "expiration=ge:2001-01-01",
        "sort=color",
        "sort=name:up",
        "sort=name,name:desc",
        "sort=name:asc:desc",
    ] {
        assert_eq!(names(&bench, query).await, Err(400), "{query}");
    }
    // The links keep what narrowed the list.
    let url = format!("{V1}/secrets?alg=%25e%25&limit=1&sort=name&offset=1");
    let page = bench
        .call("GET", &url, &bench.admin, Value::Null)
        .await
        .json();
    let base = format!("https://{HOST}{V1}/secrets?limit=1");
    assert_eq!(
        page["next"],
        format!("{base}&offset=2&alg=%25e%25&sort=name")
    );
    assert_eq!(
        page["previous"],
        format!("{base}&offset=0&alg=%25e%25&sort=name")
    );
    for (limit, count) in [("0", 1), ("-3", 1), ("x", 3), ("", 3), ("1000", 3)] {
        let url = format!("{V1}/secrets?limit={limit}");
        let page = bench
            .call("GET", &url, &bench.admin, Value::Null)
            .await
            .json();
        assert_eq!(page["secrets"].as_array().unwrap().len(), count, "{limit}");
    }
}

#[tokio::test]
async fn secrets_of_others_that_name_the_caller() {
    let bench = Bench::new().await;
    let (p, q) = (bench.project("p").await, bench.project("q").await);
    let owner = bench.member("owner", ("p", &p), "member").await;
    let guest = bench.member("guest", ("q", &q), "member").await;
    let shared = store(&bench, &owner, "shared", "x").await;
    store(&bench, &owner, "other", "x").await;
    store(&bench, &guest, "own", "x").await;
    let body = json!({"read": {"users": [user_id(&bench, "guest").await]}});
    bench
        .call("PUT", &format!("{shared}/acl"), &owner, body)
        .await;
    let url = format!("{V1}/secrets?acl_only=True");
    let list = bench.call("GET", &url, &guest, Value::Null).await.json();
    assert_eq!(
        (&list["total"], &list["secrets"][0]["name"]),
        (&json!(1), &json!("shared"))
    );
}
