//! Hostile requests on every route: whatever comes, the answer is never a server error and never a panic, and
//! the service goes on. Deterministic: the same requests in the same order at every run.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use regex::Regex;
use serde_json::{Value, json};
use tracing_subscriber::{Layer, layer::SubscriberExt};

use crate::testing::{Answer, Bench, id};

/// Against a request that never ends; far above what any takes.
const HANG: Duration = Duration::from_secs(120);

/// Pseudo-random numbers (SplitMix64), so that a failure is met again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let at = usize::try_from(self.next() % list.len() as u64).unwrap();
        &list[at]
    }
}

/// All routes, from the router's own table, so that a new one is covered the day it is there; and some paths that are none.
fn routes(bench: &Bench) -> Vec<String> {
    let listed = Regex::new(r#"RouteId\(\d+\): "(/[^"]*)""#).unwrap();
    let table = format!("{:?}", crate::http::routes(Arc::clone(&bench.app)));
    let mut found: BTreeSet<String> = listed
        .captures_iter(&table)
        .map(|hit| hit[1].to_owned())
        // The two places of the router's own fallback.
        .filter(|path| path != "/" && !path.contains("{*"))
        .collect();
    assert!(found.len() > 120, "{found:?}");
    found.extend(["/", "/identity", "/key-manager", "/nosuch"].map(String::from));
    found.into_iter().collect()
}

/// Where the memory of this process (with all tests that run in it at the same time) must never have been, in KiB. The tests
/// of this file alone came to 69 MiB.
const MEMORY_KIB: u64 = 512 << 10;

/// Asserts the bound on the process's memory.
fn memory_is_bounded() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = Regex::new(r"VmHWM:\s+(\d+) kB").unwrap();
    let peak: u64 = peak.captures(&status).unwrap()[1].parse().unwrap();
    assert!(peak < MEMORY_KIB, "{peak} KiB at its most");
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Those whose success must be in the audit trail.
const CHANGES: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];

/// What stands for an id in a path, besides ids that exist.
fn path_pieces() -> Vec<String> {
    let mut pieces: Vec<String> = [
        "nosuch",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "%00",
        "%ff%fe",
        "%0d%0aX-Injected:%20yes",
        "'%20OR%201=1--",
        "%F0%9F%92%A9",
        "*",
        "%25s%25n",
        "{id}",
        "null",
        "-1",
        "99999999999999999999999999",
    ]
    .map(String::from)
    .to_vec();
    pieces.push("x".repeat(8000));
    pieces
}

const QUERIES: [&str; 20] = [
    "",
    "limit=-1",
    "limit=0",
    "limit=99999999999999999999",
    "limit=1&marker=nosuch",
    "marker=%00",
    "offset=-5&limit=1e9",
    "offset=18446744073709551615",
    "name=%ff%fe",
    "name=%27%20OR%201=1--",
    "name__contains=%25%25&name__regex=(a+)+",
    "enabled=maybe",
    "domain_id=%0d%0aX-Injected:%20yes",
    "effective&include_names&scope.project.id=x",
    "user.id=a&group.id=b&effective",
    "tags=,,,,&not-tags-any=,",
    "%&=&&=%",
    "sort=created:sideways,x:asc",
    "nocatalog=1&allow_expired=1",
    "is_domain=%00&parents_as_ids&subtree_as_ids",
];

const ATTRIBUTES: &[&str] = &[
    "name",
    "id",
    "domain_id",
    "parent_id",
    "project_id",
    "enabled",
    "options",
    "password",
    "original_password",
    "description",
    "tags",
    "roles",
    "expires_at",
    "access_rules",
    "unrestricted",
    "secret",
    "type",
    "url",
    "interface",
    "region_id",
    "service_id",
    "parent_region_id",
    "default_project_id",
    "is_domain",
    "blob",
    "policy",
    "payload",
    "payload_content_type",
    "payload_content_encoding",
    "algorithm",
    "bit_length",
    "mode",
    "expiration",
    "secret_type",
    "meta",
    "read",
    "users",
    "resource_type",
    "resource_id",
    "service",
    "key",
    "value",
    "identity",
    "scope",
    "resource_name",
    "default_limit",
    "resource_limit",
    "trustor_user_id",
    "trustee_user_id",
    "impersonation",
    "remaining_uses",
    "allow_redelegation",
    "redelegation_count",
    "tenant_id",
    "access",
    "signature",
    "params",
    "headers",
    "token",
    "passcode",
];

/// Values of every wrong kind.
fn values(numbers: &mut Numbers) -> Value {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let list = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1.5e300),
        json!(""),
        json!("x"),
        json!("\u{0}"),
        json!("a\r\nX-Injected: yes"),
        json!("../../etc/passwd"),
        json!("'; DROP TABLE users;--"),
        json!("𝒳\u{202e}\u{feff}"),
        json!("y".repeat(5000)),
        json!([]),
        json!([null, [], {}]),
        json!({}),
        json!({"id": {}}),
        json!({"id": 5, "name": []}),
        deep,
        json!("2999-01-01T00:00:00"),
        json!("-9999999-99-99T99:99:99Z"),
        json!({"project": {"id": []}, "user": 5, "methods": ["password"], "password": {"user": []}}),
        json!("true"),
        json!("https://[::1"),
        json!("application/octet-stream"),
        json!(9_007_199_254_740_993_i64),
        json!({"immutable": "x"}),
        json!([{"name": "member"}, {"id": 4}, "x"]),
        json!({"read": {"users": [5], "project-access": "no"}}),
    ];
    numbers.of(&list).clone()
}

/// The name that a body's object probably has: the collection's, without its s.
fn key_of(path: &str, numbers: &mut Numbers) -> String {
    let last = path
        .split('/')
        .rev()
        .find(|part| !part.is_empty() && !part.starts_with('{'))
        .unwrap_or_default();
    let singular = last
        .strip_suffix('s')
        .unwrap_or(last)
        .replace("tokens", "auth");
    let other = [
        "auth",
        "user",
        "project",
        "role",
        "trust",
        "credential",
        "limits",
        "secret",
    ];
    match numbers.next() % 8 {
        0 => (*numbers.of(&other)).to_owned(),
        _ if singular == "token" => "auth".into(),
        _ => singular,
    }
}

fn body(path: &str, numbers: &mut Numbers) -> Vec<u8> {
    let raw: [&[u8]; 11] = [
        b"",
        b"null",
        b"[]",
        b"\"x\"",
        b"{",
        b"\xff\xfe\x00",
        b"{\"user\": 1e999}",
        b"{\"a\":1}{\"b\":2}",
        b"{\"user\":{\"name\":\"a\",\"name\":{\"x\":1},\"enabled\":true,\"enabled\":5}}",
        b"{\"user\": {\"name\": \"\\ud800\"}}",
        b"\xef\xbb\xbf{}",
    ];
    if numbers.next().is_multiple_of(5) {
        return numbers.of(&raw).to_vec();
    }
    let mut object = serde_json::Map::new();
    for _ in 0..1 + numbers.next() % 6 {
        object.insert((*numbers.of(ATTRIBUTES)).to_owned(), values(numbers));
    }
    if numbers.next().is_multiple_of(2) {
        object.insert("name".into(), json!(format!("n{}", numbers.next() % 50)));
    }
    let inner = Value::Object(object);
    if path.ends_with("limits") && !numbers.next().is_multiple_of(4) {
        let key = path.rsplit('/').next().unwrap_or_default();
        return json!({ key: [inner] }).to_string().into_bytes();
    }
    let whole = if path.starts_with("/key-manager") && !numbers.next().is_multiple_of(4) {
        inner
    } else {
        json!({ key_of(path, numbers): inner })
    };
    whole.to_string().into_bytes()
}

/// Things that requests may meet, none of which the administrator needs.
async fn victims(bench: &Bench, round: usize) -> Vec<String> {
    let user = bench.user(&format!("victim{round}")).await;
    let project = bench.project(&format!("victim{round}")).await;
    let mut ids = vec![user, project];
    for (kind, body) in [
        (
            "group",
            json!({"name": format!("v{round}"), "domain_id": "default"}),
        ),
        ("role", json!({"name": format!("v{round}")})),
        ("domain", json!({"name": format!("v{round}")})),
        ("region", json!({"id": format!("v{round}")})),
        ("service", json!({"type": "x", "name": "v"})),
    ] {
        let made = bench
            .admin(
                "POST",
                &format!("/identity/v3/{kind}s"),
                json!({ kind: body }),
                201,
            )
            .await;
        ids.push(id(&made[kind]));
    }
    let limited = json!({"service_id": ids.last(), "resource_name": "x"});
    for (kind, mut body) in [
        ("registered_limits", json!({"default_limit": 5})),
        ("limits", json!({"resource_limit": 4, "project_id": ids[1]})),
    ] {
        for (name, value) in limited.as_object().unwrap() {
            body[name] = value.clone();
        }
        let path = format!("/identity/v3/{kind}");
        let made = bench
            .admin("POST", &path, json!({ kind: [body] }), 201)
            .await;
        ids.push(id(&made[kind][0]));
    }
    let secret = bench
        .admin(
            "POST",
            "/key-manager/v1/secrets",
            json!({"payload": SECRETS[2], "payload_content_type": "text/plain"}),
            201,
        )
        .await;
    let secret = secret["secret_ref"].as_str().unwrap();
    ids.push(secret.rsplit('/').next().unwrap().to_owned());
    ids
}

async fn send(
    bench: &Bench,
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let start: String = String::from_utf8_lossy(&body).chars().take(300).collect();
    let shown: String = uri.chars().take(300).collect();
    let answer = tokio::time::timeout(HANG, bench.raw(method, uri, headers, body)).await;
    let answer = answer.unwrap_or_else(|_| panic!("no answer: {method} {shown} {start}"));
    assert!(
        answer.status < 500 || answer.status == 501,
        "{method} {shown} {headers:?} {start}: {} {}",
        answer.status,
        String::from_utf8_lossy(&answer.bytes)
    );
    assert!(
        !answer.headers.contains_key("X-Injected"),
        "{method} {shown}"
    );
    answer
}

async fn still_well(bench: &Bench) {
    bench
        .admin("GET", "/identity/v3/users", Value::Null, 200)
        .await;
    bench
        .admin("GET", "/key-manager/v1/secrets", Value::Null, 200)
        .await;
}

/// Counts lines of the audit trail, and keeps the text of them all.
#[derive(Clone, Default)]
struct Trail(Arc<Mutex<(usize, String)>>);

/// Stand in requests as what must never be in the trail.
const SECRETS: [&str; 3] = ["admin-password", "victim0-pw", "payload-that-nobody-logs"];

impl<S: tracing::Subscriber> Layer<S> for Trail {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if event.metadata().target() == crate::log::AUDIT {
            let mut text = String::new();
            event.record(
                &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                    text.push_str(&format!("{field}={value:?} "));
                },
            );
            let mut trail = self.0.lock().unwrap();
            trail.0 += 1;
            trail.1.push_str(&text);
        }
    }
}

/// What the router lists is what it answers: a route knows of methods, and what is none is not found.
#[tokio::test]
async fn the_list_of_routes_is_the_routers() {
    let bench = Bench::new().await;
    let parameter = Regex::new(r"\{[^}]*\}").unwrap();
    let routes = routes(&bench);
    // One of each way in which paths are put together.
    for known in [
        "/identity/v3/policies/{id}",
        "/identity/v3/OS-EP-FILTER/endpoint_groups",
        "/identity/v3/OS-INHERIT/domains/{target}/groups/{actor}/roles/inherited_to_projects",
        "/identity/v3/system/groups/{actor}/roles",
        "/key-manager/v1/secrets/{id}/payload",
    ] {
        assert!(
            routes.iter().any(|route| route == known),
            "{known} in {routes:?}"
        );
    }
    for route in &routes {
        let path = parameter.replace_all(route, "x");
        let status = send(&bench, "TRACE", &path, &[], Vec::new()).await.status;
        let none = ["/", "/nosuch"].contains(&route.as_str());
        assert_eq!(status, if none { 404 } else { 405 }, "{route}");
    }
}

#[tokio::test]
async fn hostile_requests_on_every_route() {
    let mut bench = Bench::new().await;
    hostile_requests(&mut bench, 6).await;
}

/// So many of them on every route and by every method; no future of another thread, for the audit trail is listened to in this one.
pub(crate) async fn hostile_requests(bench: &mut Bench, rounds: usize) {
    let trail = Trail::default();
    // While there is one subscriber alone, whether an event is wanted is asked of the thread that comes to its line first, which
    // may be another test's, without any; with two, all of them are asked.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _listening =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(trail.clone()));
    let pieces = path_pieces();
    let routes = routes(bench);
    let parameter = Regex::new(r"\{[^}]*\}").unwrap();
    let mut numbers = Numbers(20_261_128);
    let mut statuses = BTreeSet::new();
    let mut unrecorded = BTreeSet::new();
    // JSON for the most part: the identity API reads nothing else.
    let types = [
        "application/json",
        "application/json",
        "application/json",
        "application/json; charset=utf-8",
        "application/json",
        "text/plain",
        "application/octet-stream",
        "x",
        "",
    ];
    for round in 0..rounds {
        let ids = victims(bench, round).await;
        for route in &routes {
            for method in METHODS {
                let path = parameter.replace_all(route, |_: &regex::Captures<'_>| {
                    if numbers.next().is_multiple_of(3) {
                        numbers.of(&pieces).clone()
                    } else {
                        numbers.of(&ids).clone()
                    }
                });
                let query = *numbers.of(&QUERIES);
                let uri = if query.is_empty() {
                    path.into_owned()
                } else {
                    format!("{path}?{query}")
                };
                let Ok(_) = uri.parse::<axum::http::Uri>() else {
                    continue;
                };
                let token = if numbers.next().is_multiple_of(12) {
                    "gAAAA\u{e9}rubbish"
                } else {
                    &bench.admin
                };
                let headers = [
                    ("X-Auth-Token", token),
                    ("Content-Type", *numbers.of(&types)),
                    (
                        "Accept",
                        *numbers.of(&[
                            "",
                            "*/*",
                            "text/plain",
                            "application/octet-stream;q=x",
                            "\u{e9}",
                        ]),
                    ),
                    (
                        "OpenStack-API-Version",
                        *numbers.of(&[
                            "",
                            "key-manager 1.1",
                            "key-manager 9.9",
                            "key-manager latest",
                            "key-manager x.y",
                            "key-manager 1.99999999999999999999",
                        ]),
                    ),
                ];
                let body = if method == "GET" || method == "HEAD" {
                    Vec::new()
                } else {
                    body(route, &mut numbers)
                };
                let before = trail.0.lock().unwrap().0;
                let status = send(bench, method, &uri, &headers, body).await.status;
                let silent = trail.0.lock().unwrap().0 == before;
                if silent && (200..300).contains(&status) && CHANGES.contains(&method) {
                    unrecorded.insert(format!("{method} {route}"));
                }
                statuses.insert(status);
            }
        }
        still_well(bench).await;
    }
    // The requests got somewhere: they made, changed, showed and deleted things, and were refused in all the ways.
    for status in [200, 201, 400, 401, 404, 405] {
        assert!(
            statuses.contains(&status),
            "{status} never answered: {statuses:?}"
        );
    }
    let told = trail.0.lock().unwrap().1.clone();
    assert!(SECRETS.iter().all(|secret| !told.contains(secret)) && !told.contains(&bench.admin));
    assert!(
        unrecorded.is_empty(),
        "not in the audit trail: {unrecorded:?}"
    );
    bench.admin = bench
        .login("admin", "admin-password", Some("admin"))
        .await
        .unwrap();
    still_well(bench).await;
    memory_is_bounded();
}

#[tokio::test]
async fn bodies_too_large_and_too_deep() {
    let bench = Bench::new().await;
    let parameter = Regex::new(r"\{[^}]*\}").unwrap();
    let long = format!("{{\"user\":{{\"name\":\"{}\"}}}}", "x".repeat(10 << 20)).into_bytes();
    let deep = [b"[".repeat(50_000), b"{\"a\":".repeat(15_000)];
    for route in routes(&bench) {
        let path = parameter.replace_all(&route, "x").into_owned();
        for method in ["POST", "PUT", "PATCH"] {
            let headers = [
                ("X-Auth-Token", bench.admin.as_str()),
                ("Content-Type", "application/json"),
            ];
            let answer = send(&bench, method, &path, &headers, long.clone()).await;
            assert!(
                answer.status >= 400 || answer.bytes.len() < 10_000,
                "{method} {path}: {}",
                answer.status
            );
            for body in &deep {
                send(&bench, method, &path, &headers, body.clone()).await;
            }
        }
    }
    still_well(&bench).await;
    memory_is_bounded();
}

/// Labels of counters are kept for ever, so clients must not be able to make some up.
#[tokio::test]
async fn made_up_methods_are_counted_as_one() {
    let bench = Bench::new().await;
    for number in 0..50 {
        send(
            &bench,
            &format!("METHOD{number}"),
            "/identity/v3/users",
            &[],
            Vec::new(),
        )
        .await;
    }
    let text = bench.app.metrics.text();
    assert!(
        text.contains("method=\"other\"") && !text.contains("METHOD"),
        "{text}"
    );
}

#[tokio::test]
async fn hostile_headers() {
    let bench = Bench::new().await;
    let long = "t".repeat(60_000);
    for name in [
        "X-Auth-Token",
        "X-Subject-Token",
        "Host",
        "OpenStack-API-Version",
        "Accept",
        "Content-Type",
        "Content-Length",
        "Forwarded",
        "X-Forwarded-For",
    ] {
        for value in [
            "\u{e9}\u{ff}",
            "\"><script>",
            "evil.example.org/\\@x",
            "0",
            "-1",
            "99999999999999999999",
            " \t ",
            &long,
        ] {
            for path in [
                "/identity/v3",
                "/identity/v3/auth/tokens",
                "/identity/v3/users",
                "/key-manager",
                "/key-manager/v1/secrets",
            ] {
                for method in ["GET", "POST", "DELETE"] {
                    let mut headers = vec![(name, value)];
                    if name != "X-Auth-Token" && method == "GET" {
                        headers.push(("X-Auth-Token", &bench.admin));
                    }
                    let answer = send(&bench, method, path, &headers, b"{}".to_vec()).await;
                    let text = String::from_utf8_lossy(&answer.bytes);
                    assert!(
                        !text.contains("<script>") && !text.contains("evil.example.org"),
                        "{name}: {text}"
                    );
                }
            }
        }
    }
    still_well(&bench).await;
}
