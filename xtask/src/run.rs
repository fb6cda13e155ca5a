//! Starting other programs, always saying which.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Every command works from the root of the checkout, from wherever it was started.
pub fn in_workspace_root() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the root of the checkout")?;
    std::env::set_current_dir(root).with_context(|| format!("go to {}", root.display()))
}

/// The cargo that started this, so that `cargo +toolchain xtask` stays with its toolchain.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` sets for the program it runs would make the inner cargo rebuild crates that look at it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_MANIFEST_")
            || text == "CARGO_BIN_NAME"
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Prints a step's name.
pub fn say(text: &str) {
    eprintln!("==> {text}");
}

/// The words of a command, for messages.
pub fn words(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let all: Vec<_> = std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    all.join(" ")
}

/// Runs a command in the foreground; an error names it when it fails.
pub fn check(command: &mut Command) -> Result<()> {
    say(&words(command));
    let status = command
        .status()
        .with_context(|| format!("start `{}`", words(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", words(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; its errors go to the terminal.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start `{}`", words(command)))?;
    if !out.status.success() {
        bail!("`{}` ended with {}", words(command), out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("output of `{}`", words(command)))
}

/// What this thread starts from now on gets the CPU when nothing else wants it. Where that cannot be had it competes.
pub fn yield_to_others() {
    // PID/task/TID; a thread's priority is its own, and its children's.
    let Ok(task) = std::fs::read_link("/proc/thread-self") else {
        return;
    };
    let _ = Command::new("renice")
        .args(["-n", "19", "-p"])
        .args(task.file_name())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Becomes another program: it gets the terminal and the signals, and its exit status is ours.
pub fn become_program(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("start `{}`", words(command)))
}

/// Whether a program is in `PATH`.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// `12.3 s` or `4 min 05 s`.
pub fn since(start: Instant) -> String {
    human(start.elapsed())
}

fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 100 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(human(Duration::from_millis(1260)), "1.3 s");
        assert_eq!(human(Duration::from_secs(245)), "4 min 05 s");
    }

    #[test]
    fn what_a_thread_starts_yields() {
        let nice = || output(&mut Command::new("nice")).unwrap();
        let before = nice();
        std::thread::spawn(move || {
            yield_to_others();
            assert_eq!(nice(), "19\n");
        })
        .join()
        .unwrap();
        assert_eq!(nice(), before, "other threads are as they were");
    }

    #[test]
    fn a_failed_command_is_named() {
        let error = check(Command::new("/bin/sh").args(["-c", "exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh -c exit 3") && error.contains('3'),
            "{error}"
        );
    }
}
