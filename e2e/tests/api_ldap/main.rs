//! Domains whose users are in an LDAP directory: OpenLDAP's own server, the service as it ships, and the official client.

mod ground;
mod pool;
mod refusals;

use std::fs;

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::openstack_client::{Cloud, OpenStackClient};
use cryptvol_e2e::pki::Authority;
use cryptvol_e2e::slapd::{READER, READER_PASSWORD, SIZE_LIMIT, SUFFIX};
use reqwest::Method;
use serde_json::{Value, json};

use ground::{Ground, dn, folders, group, person, text};

/// The clouds.yaml of a person of the domain Corp.
fn cloud(ground: &Ground, name: &str) -> Result<Cloud> {
    let (url, password) = (ground.service.auth_url(), format!("{name}-Pw-1"));
    let auth = [
        ("auth_url", url.as_str()),
        ("username", name),
        ("password", &password),
        ("user_domain_name", "Corp"),
        ("project_name", "team"),
        ("project_domain_name", "Default"),
    ];
    Cloud::write(
        &ground.work.dir("clouds")?,
        name,
        "v3password",
        &auth,
        &ground.service.ca_path(),
    )
}

/// The whole way of a site, with the official client: a file, a domain, grants to a user and a group, logins.
#[tokio::test]
async fn people_of_a_directory_work_with_the_official_client() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let entries = [
        folders(),
        person("alice"),
        person("bob"),
        group("devs", &[dn("bob")]),
    ]
    .concat();
    let mut ground = Ground::new("ldap-client", &entries).await?;
    let admin = ground.service.admin_cloud()?;
    client.ok(&admin, &["domain", "create", "Corp"])?;
    client.ok(&admin, &["project", "create", "team"])?;
    let file = format!(
        "[identity]\ndriver = ldap\n\n[ldap]\nurl = {}\nuser = {READER}\npassword = {READER_PASSWORD}\n\
         suffix = {SUFFIX}\nquery_scope = sub\nuser_id_attribute = uid\nuser_name_attribute = uid\n\
         group_name_attribute = cn\ntls_cacertfile = {}\npage_size = 5\n",
        ground.slapd.url(),
        ground.ldap_ca().display()
    );
    fs::write(ground.work.path().join("domains/keystone.Corp.conf"), file)?;
    let start = std::time::Instant::now();
    // The file is taken without a restart.
    loop {
        let list = client.json(&admin, &["user", "list", "--domain", "Corp"])?;
        let mut names: Vec<&str> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["Name"].as_str())
            .collect();
        names.sort_unstable();
        if names == ["alice", "bob"] {
            break;
        }
        ensure!(
            start.elapsed() < ground::PATIENCE,
            "{list}\n{}",
            ground.service.log()?
        );
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    let alice = client.json(&admin, &["user", "show", "--domain", "Corp", "alice"])?;
    ensure!(
        alice["email"] == "alice@example.org" && alice["enabled"] == true,
        "{alice}"
    );
    client.ok(
        &admin,
        &[
            "role",
            "add",
            "--user",
            "alice",
            "--user-domain",
            "Corp",
            "--project",
            "team",
            "member",
        ],
    )?;
    client.ok(
        &admin,
        &[
            "role",
            "add",
            "--group",
            "devs",
            "--group-domain",
            "Corp",
            "--project",
            "team",
            "reader",
        ],
    )?;
    for (name, role) in [("alice", "member"), ("bob", "reader")] {
        let token = client.json(&cloud(&ground, name)?, &["token", "issue"])?;
        text(&token, "project_id")?;
        let list = client.json(
            &admin,
            &[
                "role",
                "assignment",
                "list",
                "--effective",
                "--names",
                "--user",
                name,
                "--user-domain",
                "Corp",
            ],
        )?;
        let found = list.as_array().into_iter().flatten().any(|row| {
            row["Role"] == role
                && row["User"] == format!("{name}@Corp")
                && row["Project"] == "team@Default"
        });
        ensure!(found, "{name} is not {role} in {list}");
    }
    // What belongs to a user of a directory outlives a start of the pod, whose first step knows nothing of the file.
    let token = ground.token("alice", "Corp", "team").await?;
    let id = text(&alice, "id")?;
    let path = format!("users/{id}/application_credentials");
    let body = json!({"application_credential": {"name": "ci"}});
    let made = ground
        .call(Method::POST, &path, &[("X-Auth-Token", &token)], &body)
        .await?
        .body;
    let made = &made["application_credential"];
    let proof = json!({"id": text(made, "id")?, "secret": text(made, "secret")?});
    ground.service.stop()?;
    ground.service.bootstrap()?;
    ground.service.launch()?;
    let identity = json!({"methods": ["application_credential"], "application_credential": proof});
    let body = json!({"auth": {"identity": identity}});
    let answer = ground.call(Method::POST, "auth/tokens", &[], &body).await?;
    ensure!(answer.status == 201, "{}", answer.body);
    assert_eq!(ground.status_of(&answer.token).await?, 200);
    // Only read.
    for args in [
        &["user", "create", "--domain", "Corp", "carol"][..],
        &["user", "set", "--domain", "Corp", "--disable", "alice"],
        &["user", "delete", "--domain", "Corp", "alice"],
        &["group", "create", "--domain", "Corp", "ops"],
        &[
            "group",
            "add",
            "user",
            "--group-domain",
            "Corp",
            "--user-domain",
            "Corp",
            "devs",
            "alice",
        ],
    ] {
        let answer = client.run(&admin, args)?;
        let said = format!("{}{}", answer.stdout, answer.stderr);
        ensure!(answer.code != 0, "{args:?} was done");
        ensure!(
            said.contains("403") || said.contains("not added"),
            "{args:?}: {said}"
        );
    }
    let member = [
        "group",
        "contains",
        "user",
        "--group-domain",
        "Corp",
        "--user-domain",
        "Corp",
        "devs",
        "bob",
    ];
    let said = client.ok(&admin, &member)?;
    ensure!(said.contains("bob in group devs"), "{said}");
    ground.passed()
}

/// Rights end with what the directory says, in time; a directory that is away takes nobody else's rights.
#[tokio::test]
async fn rights_end_with_the_directory_and_only_its_domain_waits_for_it() -> Result<()> {
    let people: String = ["alice", "bob", "carol"].map(person).concat();
    let entries = [folders(), people, group("devs", &[dn("bob"), dn("alice")])].concat();
    let mut ground = Ground::new("ldap-rights", &entries).await?;
    let corp = ground
        .domain(
            "Corp",
            &json!({"pool_connection_timeout": 5, "pool_retry_max": 1}),
        )
        .await?;
    let team = ground.project("team").await?;
    ground
        .names(&format!("users?domain_id={corp}"), "users")
        .await?;
    let devs = ground.id("groups", "devs", &corp).await?;
    let carol = ground.id("users", "carol", &corp).await?;
    ground
        .grant(&team, &format!("groups/{devs}"), "member")
        .await?;
    ground
        .grant(&team, &format!("users/{carol}"), "reader")
        .await?;
    let alice = ground.token("alice", "Corp", "team").await?;
    let bob = ground.token("bob", "Corp", "team").await?;
    let carols = ground.token("carol", "Corp", "team").await?;
    for token in [&alice, &bob, &carols] {
        assert_eq!(ground.status_of(token).await?, 200);
    }

    ground.slapd.modify(&format!(
        "dn: cn=devs,ou=groups,{SUFFIX}\nchangetype: modify\ndelete: member\nmember: {}\n",
        dn("bob")
    ))?;
    let took = ground.until(&bob, 404).await?;
    eprintln!("out of the group, out of the project after {took:?}");
    assert_eq!(ground.status_of(&alice).await?, 200);

    // The service anew: the same ids.
    ground.service.stop()?;
    ground.service.launch()?;
    assert_eq!(ground.id("users", "carol", &corp).await?, carol);
    assert_eq!(ground.status_of(&carols).await?, 200);

    // Away: 503 for its users and nobody else.
    ground.slapd.kill()?;
    ground.until(&carols, 503).await?;
    assert_eq!(ground.login_status("carol", "Corp").await?, 503);
    let path = format!("users?domain_id={corp}");
    ground.admin(Method::GET, &path, Value::Null, 503).await?;
    assert_eq!(ground.status_of(&ground.admin).await?, 200);
    ensure!(
        ground
            .names("users", "users")
            .await?
            .contains(&"admin".into())
    );
    ground.slapd.launch()?;
    ground.until(&carols, 200).await?;

    // Silent in the middle: the same, and no request hangs.
    ground.slapd.freeze(true)?;
    ground.until(&carols, 503).await?;
    assert_eq!(ground.status_of(&ground.admin).await?, 200);
    ground.slapd.freeze(false)?;
    ground.until(&carols, 200).await?;

    // Gone from the directory: gone here, and an entry made anew is the same user without the old tokens.
    ground
        .slapd
        .modify(&format!("dn: {}\nchangetype: delete\n", dn("carol")))?;
    let took = ground.until(&carols, 404).await?;
    eprintln!("out of the directory, tokens dead after {took:?}");
    assert_eq!(ground.login_status("carol", "Corp").await?, 401);
    ground
        .admin(Method::GET, &format!("users/{carol}"), Value::Null, 404)
        .await?;
    let add = person("carol").replacen("\nobjectClass", "\nchangetype: add\nobjectClass", 1);
    ground.slapd.modify(&add)?;
    let again = ground.token("carol", "Corp", "team").await?;
    assert_eq!(ground.id("users", "carol", &corp).await?, carol);
    assert_eq!(ground.status_of(&again).await?, 200);
    assert_eq!(ground.status_of(&carols).await?, 404);

    // Without its directory the domain has no users; with it again, the same ones with the same roles.
    ground
        .admin(
            Method::DELETE,
            &format!("domains/{corp}/config"),
            Value::Null,
            204,
        )
        .await?;
    assert_eq!(ground.login_status("alice", "Corp").await?, 401);
    assert_eq!(ground.names(&path, "users").await?, Vec::<String>::new());
    ground
        .admin(
            Method::PUT,
            &format!("domains/{corp}/config"),
            ground.options(&json!({})),
            201,
        )
        .await?;
    ground.token("carol", "Corp", "team").await?;
    ground.passed()
}

/// Whom the service talks to, and what it never lets through.
#[tokio::test]
async fn only_the_right_server_and_the_right_password() -> Result<()> {
    let entries = [folders(), person("alice")].concat();
    let mut ground = Ground::new("ldap-tls", &entries).await?;
    let corp = ground.domain("Corp", &json!({})).await?;
    let config = format!("domains/{corp}/config");
    assert_eq!(ground.login_status("alice", "Corp").await?, 201);

    // Nothing that a client sends is more than a name or a password.
    for (name, password) in [
        ("alice", ""),
        ("alice", "wrong"),
        ("alice", "reader-Pw-1"),
        ("*", "alice-Pw-1"),
        ("ali*", "alice-Pw-1"),
        ("alice)(uid=*", "alice-Pw-1"),
        ("alice)(|(uid=*", "alice-Pw-1"),
        ("\\61lice", "alice-Pw-1"),
        ("alice\u{0}", "alice-Pw-1"),
        ("", "alice-Pw-1"),
        ("nobody", "alice-Pw-1"),
    ] {
        let answer = ground.login(name, "Corp", password, None).await?;
        ensure!(
            answer.status == 401,
            "{name:?} {password:?}: {}",
            answer.status
        );
    }
    let asked = ground.slapd.log()?;
    ensure!(
        !asked.contains("uid=*)") && !asked.contains("uid=ali*"),
        "{asked}"
    );

    let set = async |ground: &Ground, more: Value, status: u16| -> Result<Value> {
        let options = ground.options(&more);
        ground.admin(Method::PUT, &config, options, status).await
    };
    // In the clear never; StartTLS instead.
    let clear = json!({"url": ground.slapd.clear_url()});
    let said = set(&ground, clear, 403).await?.to_string();
    ensure!(said.contains("use_tls"), "{said}");
    let start_tls = json!({"url": ground.slapd.clear_url(), "use_tls": true});
    set(&ground, start_tls, 200).await?;
    assert_eq!(ground.login_status("alice", "Corp").await?, 201);
    // The second server where the first is away; authorities in a folder.
    let two = json!({"url": format!("ldaps://127.0.0.1:1,{}", ground.slapd.url()), "tls_cacertfile": null,
        "tls_cacertdir": ground.work.path().join("ldap-ca")});
    set(&ground, two, 200).await?;
    assert_eq!(ground.login_status("alice", "Corp").await?, 201);

    // Another authority, another name, a certificate whose time is over.
    let own = Authority::open(&ground.work.path().join("ldap-ca"))?;
    let other = Authority::open(&ground.work.dir("other-ca")?)?;
    for (what, certificate, words) in [
        // Both authorities have one name, so that the signature is what is wrong.
        ("authority", other.server(&["127.0.0.1"])?, "BadSignature"),
        (
            "name",
            own.server(&["ldap.example.org"])?,
            "not valid for name",
        ),
        ("time", own.expired_server(&["127.0.0.1"])?, "expired"),
    ] {
        ground.slapd.kill()?;
        ground.slapd.certificate(&certificate)?;
        ground.slapd.launch()?;
        set(&ground, json!({}), 200).await?;
        // Anew, so that no connection of before is left.
        set(&ground, json!({"pool_size": 9}), 200).await?;
        ensure!(
            ground.login_status("alice", "Corp").await? == 503,
            "a wrong {what} was taken"
        );
        let log = ground.service.log()?;
        ensure!(log.contains(words), "{what}: {words} is not in\n{log}");
        for word in ["allow", "never"] {
            set(&ground, json!({"tls_req_cert": word}), 200).await?;
            ensure!(
                ground.login_status("alice", "Corp").await? == 201,
                "{what}, {word}"
            );
        }
    }
    let log = ground.service.log()?;
    ensure!(log.contains("tls_req_cert = allow"), "no warning of allow");
    ensure!(
        !log.contains(READER_PASSWORD) && !log.contains("alice-Pw-1"),
        "a password is in the log"
    );

    // A domain with users of its own keeps them.
    let made = ground
        .admin(
            Method::POST,
            "domains",
            json!({"domain": {"name": "Own"}}),
            201,
        )
        .await?;
    let id = text(&made["domain"], "id")?;
    let body = json!({"user": {"name": "eve", "domain_id": id, "password": "x"}});
    ground.admin(Method::POST, "users", body, 201).await?;
    let path = format!("domains/{id}/config");
    let said = ground
        .admin(Method::PUT, &path, ground.options(&json!({})), 403)
        .await?;
    ensure!(
        said.to_string().contains("users or groups of its own"),
        "{said}"
    );
    ground.passed()
}

/// The ways in which directories say who there is, who is enabled, and who is in which group.
#[tokio::test]
async fn filters_attributes_enabled_accounts_pages_and_nested_groups() -> Result<()> {
    let crowd: Vec<String> = (0..2 * SIZE_LIMIT).map(|n| format!("p{n:02}")).collect();
    let mut entries = folders();
    for name in &crowd {
        // employeeType stands for userAccountControl: bit 2 of it disables.
        let control = if name == "p01" { 514 } else { 512 };
        let more = format!(
            "employeeType: {control}\nl: {}\nuserPassword:",
            if name < &"p04".to_owned() {
                "Bern"
            } else {
                "Thun"
            }
        );
        entries.push_str(&person(name).replace("userPassword:", &more));
    }
    let at = |name: &str| dn(name);
    let of = |name: &str| format!("cn={name},ou=groups,{SUFFIX}");
    entries.push_str(&group("inner", &[at("p02"), of("outer")]));
    entries.push_str(&group("middle", &[of("inner")]));
    entries.push_str(&group("outer", &[at("p03"), of("middle")]));
    entries.push_str(&group("active", &[at("p02"), at("p03")]));
    entries.push_str(&format!(
        "dn: cn=posix,ou=groups,{SUFFIX}\nobjectClass: posixGroup\ncn: posix\ngidNumber: 5000\nmemberUid: p02\nmemberUid: nosuch\n\n"
    ));
    let ground = Ground::new("ldap-kinds", &entries).await?;
    let users = |id: &str| format!("users?domain_id={id}");

    // Pages, or a refusal that says what to set.
    let paged = ground.domain("paged", &json!({})).await?;
    assert_eq!(ground.names(&users(&paged), "users").await?, crowd);
    let whole = ground.domain("whole", &json!({"page_size": 0})).await?;
    ground
        .admin(Method::GET, &users(&whole), Value::Null, 503)
        .await?;
    let log = ground.service.log()?;
    ensure!(log.contains("set [ldap] page_size"), "{log}");
    // A part of the answer is no reason to forget anybody.
    assert_eq!(ground.login_status("p00", "whole").await?, 201);
    ground
        .admin(Method::GET, &users(&whole), Value::Null, 503)
        .await?;
    ground.id("users", "p00", &whole).await?;

    // Bits, inverted flags, a group of the enabled; filters; attributes by other names.
    let bits = json!({"user_enabled_attribute": "employeeType", "user_enabled_mask": 2, "user_enabled_default": "512",
        "user_filter": "(l=Bern)", "user_additional_attribute_mapping": ["l:town"]});
    let bits = ground.domain("bits", &bits).await?;
    assert_eq!(ground.names(&users(&bits), "users").await?, crowd[..4]);
    let list = ground
        .admin(
            Method::GET,
            &format!("{}&name=p01", users(&bits)),
            Value::Null,
            200,
        )
        .await?;
    ensure!(
        list["users"][0]["enabled"] == false && list["users"][0]["town"] == "Bern",
        "{list}"
    );
    assert_eq!(ground.login_status("p01", "bits").await?, 401);
    assert_eq!(ground.login_status("p00", "bits").await?, 201);
    assert_eq!(ground.login_status("p09", "bits").await?, 401);
    let emulated =
        json!({"user_enabled_emulation": true, "user_enabled_emulation_dn": of("active")});
    ground.domain("emulated", &emulated).await?;
    assert_eq!(ground.login_status("p02", "emulated").await?, 201);
    assert_eq!(ground.login_status("p04", "emulated").await?, 401);

    // Groups of ids, and groups in groups, whose circle is no harm.
    let posix = json!({"group_objectclass": "posixGroup", "group_member_attribute": "memberUid", "group_members_are_ids": true});
    let posix = ground.domain("posix", &posix).await?;
    let id = ground.id("groups", "posix", &posix).await?;
    assert_eq!(
        ground.names(&format!("groups/{id}/users"), "users").await?,
        ["p02"]
    );
    let flat = ground.domain("flat", &json!({})).await?;
    let nested = json!({"group_ad_nesting": true, "group_filter": "(!(cn=middle))"});
    let file = ground.work.path().join("domains/keystone.nested.conf");
    let made = ground
        .admin(
            Method::POST,
            "domains",
            json!({"domain": {"name": "nested"}}),
            201,
        )
        .await?;
    let nest = text(&made["domain"], "id")?;
    // Keystone's API does not take group_ad_nesting; its files do.
    let said = ground
        .admin(
            Method::PUT,
            &format!("domains/{nest}/config"),
            ground.options(&nested),
            403,
        )
        .await?;
    ensure!(said.to_string().contains("group_ad_nesting"), "{said}");
    let options = ground.options(&nested);
    let mut ini = String::from("[identity]\ndriver = ldap\n[ldap]\n");
    for (name, value) in options["config"]["ldap"].as_object().context("options")? {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        ini.push_str(&format!("{name} = {value}\n"));
    }
    fs::write(file, ini)?;
    let start = std::time::Instant::now();
    while ground.login_status("p02", "nested").await? != 201 {
        ensure!(
            start.elapsed() < ground::PATIENCE,
            "the file is not taken:\n{}",
            ground.service.log()?
        );
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    for (domain, group, members) in [
        (&flat, "inner", &["p02"][..]),
        (&flat, "middle", &[]),
        (&flat, "outer", &["p03"]),
        (&nest, "inner", &["p02", "p03"]),
        (&nest, "outer", &["p02", "p03"]),
    ] {
        let id = ground.id("groups", group, domain).await?;
        assert_eq!(
            ground.names(&format!("groups/{id}/users"), "users").await?,
            members,
            "{domain} {group}"
        );
    }
    assert_eq!(
        ground
            .names(&format!("groups?domain_id={nest}"), "groups")
            .await?,
        ["active", "inner", "outer"]
    );
    // By the login alone, before any list was made.
    let user = ground.id("users", "p03", &nest).await?;
    assert_eq!(
        ground
            .names(&format!("users/{user}/groups"), "groups")
            .await?,
        ["active", "inner", "outer"]
    );
    ground.passed()
}
