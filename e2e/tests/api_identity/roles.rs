//! Projects, users, roles.

use anyhow::{Result, ensure};

use crate::ground::{Ground, names, text};

#[test]
fn projects_users_and_roles() -> Result<()> {
    let ground = Ground::new("identity-roles")?;
    let project = ground.json(&[
        "project",
        "create",
        "--description",
        "first",
        "--tag",
        "red",
        "team-a",
    ])?;
    assert_eq!(text(&project, "name")?, "team-a");
    assert_eq!(text(&project, "parent_id")?, "default");
    ground.refused(&["project", "create", "team-a"], "409")?;
    let child = ground.json(&["project", "create", "--parent", "team-a", "team-a-lab"])?;
    assert_eq!(child["parent_id"], project["id"]);
    ground.refused(&["project", "delete", "team-a"], "403")?;
    ensure!(names(&ground.json(&["project", "list"])?, "Name").contains(&"team-a-lab".to_owned()));
    assert_eq!(
        ground.json(&["project", "show", "team-a"])?["id"],
        project["id"]
    );
    ground.refused(&["project", "show", "nosuch"], "nosuch")?;

    let user = ground.json(&[
        "user",
        "create",
        "--password",
        "Pw-1",
        "--email",
        "a@example.org",
        "alice",
    ])?;
    assert_eq!(text(&user, "email")?, "a@example.org");
    assert_eq!(user["enabled"], true);
    ground.refused(&["user", "create", "--password", "x", "alice"], "409")?;
    assert_eq!(ground.json(&["user", "show", "alice"])?["id"], user["id"]);
    assert_eq!(
        names(&ground.json(&["user", "list"])?, "Name"),
        ["admin", "alice"]
    );

    let role = ground.json(&["role", "create", "auditor"])?;
    ground.refused(&["role", "create", "auditor"], "409")?;
    assert_eq!(ground.json(&["role", "show", "auditor"])?["id"], role["id"]);
    let mut roles = names(&ground.json(&["role", "list"])?, "Name");
    roles.sort();
    assert_eq!(
        roles,
        ["admin", "auditor", "manager", "member", "reader", "service"]
    );
    ground.refused(&["role", "delete", "admin"], "immutable")?;

    // No role, no token; then a role, and only that one.
    let alice = ground
        .service
        .password_cloud("alice", "alice", "Pw-1", Some("team-a"))?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;
    ground.ok(&[
        "role",
        "add",
        "--user",
        "alice",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.ok(&alice, &["token", "issue"])?;
    ground.client.refused(
        &alice,
        &["user", "create", "--password", "x", "mallory"],
        "403",
    )?;
    // The client ends with 0 here although it is told 403; what counts is that nothing came of it.
    ground.client.run(
        &alice,
        &[
            "role",
            "add",
            "--user",
            "alice",
            "--project",
            "team-a",
            "admin",
        ],
    )?;
    let ids = [text(&user, "id")?, text(&project, "id")?];
    let admin_role = ground.json(&["role", "show", "admin"])?;
    let by_id = [
        "role",
        "add",
        "--user",
        ids[0],
        "--project",
        ids[1],
        text(&admin_role, "id")?,
    ];
    ground.client.run(&alice, &by_id)?;
    let assignments = ground.json(&[
        "role",
        "assignment",
        "list",
        "--user",
        "alice",
        "--names",
        "--effective",
    ])?;
    assert_eq!(names(&assignments, "Role"), ["member", "reader"]);
    assert_eq!(
        names(&assignments, "Project"),
        ["team-a@Default", "team-a@Default"]
    );
    let implied = ground.json(&["implied", "role", "list"])?;
    assert_eq!(implied.as_array().map(Vec::len), Some(3));

    // What ends access: the role gone, the password changed, the user disabled.
    ground.ok(&[
        "role",
        "remove",
        "--user",
        "alice",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;
    ground.ok(&[
        "role",
        "add",
        "--user",
        "alice",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.ok(
        &alice,
        &[
            "user",
            "password",
            "set",
            "--original-password",
            "Pw-1",
            "--password",
            "Pw-2",
        ],
    )?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;
    let alice = ground
        .service
        .password_cloud("alice", "alice", "Pw-2", Some("team-a"))?;
    ground.client.ok(&alice, &["token", "issue"])?;
    ground.ok(&["user", "set", "--disable", "alice"])?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;

    for delete in [
        ["user", "delete", "alice"],
        ["role", "delete", "auditor"],
        ["project", "delete", "team-a-lab"],
    ] {
        ground.ok(&delete)?;
    }
    ground.refused(&["user", "show", "alice"], "alice")?;
    ground.refused(&["role", "show", "auditor"], "auditor")?;
    ground.refused(&["user", "delete", "alice"], "alice")?;
    ground.passed()
}
