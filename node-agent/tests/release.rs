//! Key release over real TLS: what the agent sends, what it makes of the answers, and files that change while it runs.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use cryptvol_common::release::{PATH, Purpose, Refusal, Released, Request, TargetChap};
use cryptvol_crds::conditions::Reason;
use cryptvol_node_agent::release::{Asker, ReleaseClient, ReleaseConfig};

#[derive(Default)]
struct Seen {
    tokens: Vec<String>,
    requests: Vec<Request>,
    answer: Option<(u16, Vec<u8>)>,
}

type Shared = Arc<Mutex<Seen>>;

async fn answer(
    State(seen): State<Shared>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, Vec<u8>) {
    let mut seen = seen.lock().unwrap();
    seen.tokens
        .push(headers["authorization"].to_str().unwrap().to_owned());
    let request: Request = serde_json::from_str(&body).unwrap();
    let purpose = request.purpose;
    seen.requests.push(request);
    if let Some((status, body)) = &seen.answer {
        return (StatusCode::from_u16(*status).unwrap(), body.clone());
    }
    let released = match purpose {
        Purpose::Passphrase | Purpose::NextPassphrase => {
            Released::Passphrase("00ff".to_owned().into())
        }
        Purpose::ChapCredentials | Purpose::DiscoveryChapCredentials => Released::Chap {
            username: "u".into(),
            password: "p".to_owned().into(),
            target: Some(TargetChap {
                username: "t".into(),
                password: "q".to_owned().into(),
            }),
        },
    };
    (StatusCode::OK, released.to_json().unwrap().to_vec())
}

struct Operator {
    at: SocketAddr,
    seen: Shared,
    handle: axum_server::Handle<SocketAddr>,
    ca: String,
}

async fn operator() -> Operator {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let config = axum_server::tls_rustls::RustlsConfig::from_pem(
        made.cert.pem().into_bytes(),
        made.signing_key.serialize_pem().into_bytes(),
    )
    .await
    .unwrap();
    let seen = Shared::default();
    let app = Router::new()
        .route(PATH, post(answer))
        .with_state(Arc::clone(&seen));
    let handle = axum_server::Handle::new();
    let server = axum_server::bind_rustls("127.0.0.1:0".parse::<SocketAddr>().unwrap(), config)
        .handle(handle.clone())
        .serve(app.into_make_service());
    tokio::spawn(server);
    Operator {
        at: handle.listening().await.unwrap(),
        seen,
        handle,
        ca: made.cert.pem(),
    }
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn asker() -> Asker {
    Asker {
        namespace: "ns".into(),
        name: "vol.node-1".into(),
        uid: "uid-1".into(),
    }
}

#[tokio::test]
async fn the_agent_asks_and_takes_what_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let first = operator().await;
    let config = |at: SocketAddr| ReleaseConfig {
        url: format!("https://localhost:{}", at.port()).parse().unwrap(),
        ca_file: Some(dir.path().join("ca.crt")),
        token_file: dir.path().join("token"),
    };
    write(&dir, "ca.crt", &first.ca);
    write(&dir, "token", "token-1\n");
    let client = ReleaseClient::new(config(first.at));
    assert_eq!(client.passphrase(&asker()).await.unwrap().0, "00ff");
    // The token is replaced by the kubelet.
    write(&dir, "token", "token-2");
    let chap = client.chap(&asker()).await.unwrap();
    assert_eq!((chap.username.as_str(), chap.password.as_str()), ("u", "p"));
    let target = chap.target.as_ref().unwrap();
    assert_eq!(
        (target.username.as_str(), target.password.as_str()),
        ("t", "q")
    );
    {
        let seen = first.seen.lock().unwrap();
        assert_eq!(seen.tokens, ["Bearer token-1", "Bearer token-2"]);
        assert_eq!(seen.requests[0].uid, "uid-1");
        assert_ne!(seen.requests[0].request_id, seen.requests[1].request_id);
    }

    // Refusals keep their reason; what is no refusal is a refusal without one, or an outage.
    let set = |status: u16, body: Vec<u8>| first.seen.lock().unwrap().answer = Some((status, body));
    for reason in [
        Reason::KeyNotFound,
        Reason::KeyServiceUnavailable,
        Reason::KeyReleaseRefused,
        Reason::CredentialsExpired,
    ] {
        set(
            403,
            serde_json::to_vec(&Refusal::new(reason, "because of this")).unwrap(),
        );
        let error = client.passphrase(&asker()).await.unwrap_err();
        assert_eq!(
            (error.reason(), error.message.as_str()),
            (reason, "because of this")
        );
    }
    set(502, b"bad gateway".to_vec());
    assert_eq!(
        client.passphrase(&asker()).await.unwrap_err().reason(),
        Reason::KeyReleaseUnavailable
    );
    set(
        200,
        b"{\"passphrase\":\"secret-1\",\"username\":\"x\"}".to_vec(),
    );
    let error = client.passphrase(&asker()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::KeyReleaseUnavailable);
    assert!(!error.message.contains("secret-1"));
    set(200, vec![b'x'; 100_000]);
    assert!(
        client
            .passphrase(&asker())
            .await
            .unwrap_err()
            .message
            .contains("too long")
    );

    // A certificate of another CA is not trusted, until the CA file says so.
    let second = operator().await;
    let client = ReleaseClient::new(config(second.at));
    let error = client.passphrase(&asker()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::KeyReleaseUnavailable);
    assert!(
        second.seen.lock().unwrap().tokens.is_empty(),
        "the token went to a stranger"
    );
    write(&dir, "ca.crt", &second.ca);
    assert_eq!(client.passphrase(&asker()).await.unwrap().0, "00ff");

    // Nobody there.
    second.handle.shutdown();
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = ReleaseClient::new(config(gone))
        .passphrase(&asker())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::KeyReleaseUnavailable);

    // No token, no request.
    std::fs::remove_file(dir.path().join("token")).unwrap();
    let error = client.passphrase(&asker()).await.unwrap_err();
    assert!(error.message.contains("token"), "{}", error.message);
}
