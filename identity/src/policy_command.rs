//! `policy sample` and `policy check`: the same rules that the service uses, without a service.

use std::io::{self, Write};

use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    cli::{ApiName, PolicyCheckArgs, PolicyCommand},
    policy::{Api, Creds, PolicyError, SiteError, Target, explain, sample},
};

/// Why a command could not be done, or what it found.
#[derive(Debug, Error)]
pub enum PolicyCommandError {
    /// A built-in rule.
    #[error(transparent)]
    Default(#[from] PolicyError),
    /// A site's files.
    #[error(transparent)]
    Files(#[from] SiteError),
    /// A rule that neither API has.
    #[error("there is no rule {0}; `cryptvol-identity policy sample` lists them")]
    NoRule(String),
    /// Printing.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// Does a command and prints its result.
///
/// # Errors
/// [`PolicyCommandError`]; a broken policy file is one.
pub fn run(command: &PolicyCommand) -> Result<(), PolicyCommandError> {
    let text = match command {
        PolicyCommand::Sample { api } => sample(which(*api))?,
        PolicyCommand::Check(args) => check(args)?,
    };
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

fn which(api: ApiName) -> Api {
    match api {
        ApiName::Identity => Api::Identity,
        ApiName::KeyManager => Api::KeyManager,
    }
}

/// The caller as rules see it.
fn creds(args: &PolicyCheckArgs) -> Creds {
    let mut creds = json!({
        "user_id": args.user, "roles": args.role, "is_admin": false,
        "project_id": args.project, "domain_id": args.domain,
        "system_scope": args.system.then_some("all"),
    });
    if let Some(domain) = &args.domain {
        creds["token"] = json!({"domain": {"id": domain}});
    }
    Creds(creds)
}

fn check(args: &PolicyCheckArgs) -> Result<String, PolicyCommandError> {
    let sources = args.policy.sources();
    let mut out = String::new();
    let mut known = Vec::new();
    let caller =
        (!args.role.is_empty() || args.system || args.domain.is_some() || args.project.is_some())
            .then(|| creds(args));
    for api in [Api::Identity, Api::KeyManager] {
        if args.api.is_some_and(|only| which(only) != api) {
            continue;
        }
        let policy = sources.load(api)?;
        for doubt in policy.doubts(&api.defaults()?) {
            out.push_str(&format!("doubtful: {doubt}\n"));
        }
        let Some(creds) = &caller else {
            let own = policy.rules().filter(|rule| rule.is_own()).count();
            let files = sources.files(api).map_err(SiteError::from)?.len();
            out.push_str(&format!(
                "{}: {files} policy files with {own} rules, all of them readable\n",
                api.as_str()
            ));
            known.extend(policy.rules().map(|rule| rule.name().to_owned()));
            continue;
        };
        let target = args
            .target
            .iter()
            .fold(start(api), |target, (name, value)| {
                target.with(name, &literal(value))
            });
        for rule in policy.rules() {
            known.push(rule.name().to_owned());
            let wanted = match args.rule.is_empty() {
                true => rule.is_action(),
                false => args.rule.iter().any(|name| name == rule.name()),
            };
            if !wanted {
                continue;
            }
            let lines = explain(&policy, rule.name(), &target, creds);
            let shown = if args.explain { lines.len() } else { 1 };
            for line in &lines[..shown.min(lines.len())] {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    match args.rule.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(PolicyCommandError::NoRule(name.clone())),
        None => Ok(out),
    }
}

/// What every target of an API holds.
fn start(api: Api) -> Target {
    match api {
        Api::Identity => Target::new(),
        Api::KeyManager => Target::new().with("enforce_new_defaults", &json!(true)),
    }
}

/// `true`, `false` and `null` mean what they mean in JSON; everything else is text.
fn literal(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        text => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn run_check(args: &[&str]) -> Result<String, PolicyCommandError> {
        let all = ["cryptvol-identity", "policy", "check"].iter().chain(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Policy(PolicyCommand::Check(args)) => check(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_may_do_what() {
        let manager = [
            "--role", "manager", "--role", "member", "--role", "reader", "--domain", "d1",
        ];
        let all =
            run_check(&[&manager[..], &["--target", "target.user.domain_id=d1"]].concat()).unwrap();
        assert!(
            all.contains("\nidentity:create_user: allowed (default)\n"),
            "{all}"
        );
        assert!(all.contains("\nidentity:create_role: refused (default)\n"));
        assert!(
            all.contains("\nsecrets:post: refused (default)\n"),
            "domain tokens reach no secrets: {all}"
        );
        let one = run_check(
            &[
                &manager[..],
                &["--rule", "identity:create_user", "--explain"],
            ]
            .concat(),
        )
        .unwrap();
        assert!(
            one.contains("target.user.domain_id is not known of the target"),
            "{one}"
        );
        assert!(matches!(
            run_check(&["--rule", "identity:nosuch"]),
            Err(PolicyCommandError::NoRule(_))
        ));
        let member = run_check(&[
            "--role",
            "member",
            "--project",
            "p",
            "--rule",
            "secrets:post",
        ])
        .unwrap();
        assert_eq!(member, "secrets:post: allowed (default)\n");
    }

    #[test]
    fn files_are_checked_without_a_caller() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.yaml");
        std::fs::write(&file, "\"identity:create_usr\": \"role:a\"\n").unwrap();
        let path = dir.path().to_str().unwrap();
        let text = run_check(&["--policy-dir", path]).unwrap();
        assert!(
            text.contains("doubtful: rule identity:create_usr is neither"),
            "{text}"
        );
        assert!(
            text.contains("identity: 1 policy files with 1 rules"),
            "{text}"
        );
        std::fs::write(&file, "\"identity:create_user\": \"role:a or\"\n").unwrap();
        let error = run_check(&["--policy-dir", path]).unwrap_err().to_string();
        assert!(
            error.contains("identity.yaml: rule identity:create_user: something is missing"),
            "{error}"
        );
    }
}
