//! As much of HTTP/1.1 as it takes to ask a service on loopback: requests as bytes, answers with a length. The benchmarks
//! count the time of the service, so the client must cost next to nothing; it is also what sets up the services that are
//! compared.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Longest wait for one answer: a list of thousands of rows takes the real services seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A service on loopback and the path below which its API is.
#[derive(Debug, Clone)]
pub struct Address {
    socket: SocketAddr,
    root: String,
}

impl Address {
    /// A port of 127.0.0.1 and a path like `/v3`.
    pub fn new(port: u16, root: &str) -> Self {
        Self {
            socket: SocketAddr::from(([127, 0, 0, 1], port)),
            root: root.into(),
        }
    }

    /// Where to connect to.
    pub fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// The URL of the API's root.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.socket, self.root)
    }

    /// A request as bytes; `path` is below the root.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let path = match path.strip_prefix("/..") {
            Some(path) => path.to_owned(),
            None => format!("{}{path}", self.root),
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.socket);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct Head {
    /// Length of the head with its empty line, in bytes.
    pub len: usize,
    /// Status.
    pub status: u16,
    /// Length of the body; `None`: until the connection ends.
    pub body: Option<usize>,
    /// Whether the connection ends after this answer.
    pub close: bool,
}

impl Head {
    /// Reads the head at the start of `bytes`; `None` while it is not complete.
    ///
    /// # Errors
    /// If it is no answer of HTTP/1.x.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes[..end]).context("a head that is no text")?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("no answer of HTTP/1: {first:?}"))?;
        let mut head = Self {
            len: end + 4,
            status,
            body: None,
            close: version != "HTTP/1.1",
        };
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.body = Some(value.parse().context("Content-Length")?);
            } else if name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                bail!("an answer in chunks");
            }
        }
        if matches!(status, 204 | 304) {
            head.body = Some(0);
        }
        head.close |= head.body.is_none();
        Ok(Some(head))
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, names in lower case; the last of equal ones.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// One who asks, a connection for each request, with a token once it has logged in.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    token: Option<String>,
}

impl Client {
    /// Nobody yet.
    pub fn new(address: &Address) -> Self {
        Self {
            address: address.clone(),
            token: None,
        }
    }

    /// The same one at another address.
    pub fn at(&self, address: &Address) -> Self {
        Self {
            address: address.clone(),
            token: self.token.clone(),
        }
    }

    /// The token.
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// Logs in with a password in the domain Default, for a project there.
    pub fn login(&mut self, user: &str, password: &str, project: &str) -> Result<()> {
        let body = login_body(user, password, project);
        let answer = self.send("POST", "/auth/tokens", &[JSON], &body)?;
        ensure!(answer.status == 201, "login of {user}: {}", answer.status);
        self.token = answer.headers.get("x-subject-token").cloned();
        Ok(())
    }

    /// Sends a request, with the token, and takes whatever comes back.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let mut all = headers.to_vec();
        if let Some(token) = &self.token {
            all.push(("X-Auth-Token", token));
        }
        all.push(("Connection", "close"));
        let mut stream = TcpStream::connect(self.address.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // Who refuses a body for its length does not read it to its end, and closes; the refusal is there all the same.
        let written = stream.write_all(&self.address.request(method, path, &all, body));
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(head) = Head::parse(&bytes)? {
                break head;
            }
            if !matches!(more(&mut stream, &mut bytes), Ok(1..)) {
                written?;
                bail!("no answer");
            }
        };
        // The length in the answer to a HEAD is that of the body which a GET would get.
        let head = match method {
            "HEAD" => Head {
                body: Some(0),
                ..head
            },
            _ => head,
        };
        let whole = head.body.map(|body| head.len + body);
        while whole.is_none_or(|whole| bytes.len() < whole) {
            if more(&mut stream, &mut bytes)? == 0 {
                ensure!(whole.is_none(), "an answer that was cut off");
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes[..head.len]);
        let headers = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Answer {
            status: head.status,
            headers,
            body: bytes.split_off(head.len),
        })
    }

    /// A `GET` that must succeed.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let answer = self.send("GET", path, headers, b"")?;
        ensure!(answer.status < 400, "GET {path}: {}", answer.status);
        Ok(answer)
    }

    /// A request with a JSON body (null: none) that must succeed.
    pub fn json(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let answer = match body {
            Value::Null => self.send(method, path, &[], b"")?,
            body => self.send(method, path, &[JSON], body.to_string().as_bytes())?,
        };
        ensure!(
            answer.status < 300,
            "{method} {path}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(answer)
    }

    /// Makes an object of the identity API, such as a `user`. Its id.
    pub fn make(&self, kind: &str, object: Value) -> Result<String> {
        let answer = self.json("POST", &format!("/{kind}s"), &json!({ kind: object }))?;
        let id = answer.json()[kind]["id"].as_str().map(str::to_owned);
        id.with_context(|| format!("a {kind} without an id"))
    }

    /// Gives a user a role on a project.
    pub fn grant(&self, project: &str, user: &str, role: &str) -> Result<()> {
        let roles = self.get(&format!("/roles?name={role}"), &[])?.json();
        let role = roles["roles"][0]["id"]
            .as_str()
            .with_context(|| format!("no role {role}"))?;
        let path = format!("/projects/{project}/users/{user}/roles/{role}");
        self.json("PUT", &path, &Value::Null).map(|_| ())
    }
}

/// The header of a JSON body.
pub const JSON: (&str, &str) = ("Content-Type", "application/json");

/// The body of a login with a password, user and project being in the domain Default.
pub fn login_body(user: &str, password: &str, project: &str) -> Vec<u8> {
    let domain = json!({"id": "default"});
    let user = json!({"name": user, "domain": domain, "password": password});
    let scope = json!({"project": {"name": project, "domain": domain}});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    json!({"auth": {"identity": identity, "scope": scope}})
        .to_string()
        .into_bytes()
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<usize> {
    let mut buffer = [0; 16 * 1024];
    let got = stream.read(&mut buffer)?;
    bytes.extend_from_slice(&buffer[..got]);
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        assert!(
            Head::parse(b"HTTP/1.1 200 OK\r\nContent-")
                .unwrap()
                .is_none()
        );
        let head = Head::parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
        let head = head.unwrap();
        assert_eq!((head.status, head.body, head.close), (200, Some(5), false));
        let head = Head::parse(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((head.body, head.close), (Some(0), false));
        let head = Head::parse(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").unwrap();
        assert!(head.is_some_and(|head| head.close && head.body.is_none()));
        assert!(Head::parse(b"SSH-2.0-OpenSSH_9\r\n\r\n").is_err());
    }
}
