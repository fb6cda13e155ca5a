//! How the demo speaks: headings with a number of their own, indented facts, and the time that each step took.

use std::time::Instant;

/// Times one step.
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// `… took 12.3 s`.
    pub(super) fn tell(&self, what: &str) {
        println!("    [{what} took {:.1} s]", self.0.elapsed().as_secs_f32());
    }
}

/// What comes now.
pub(super) fn heading(text: &str) {
    println!("\n==> {text}");
}

/// Something seen.
pub(super) fn fact(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
}

/// A command as a user would type it.
pub(super) fn command(program: &str, words: &[&str]) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:".contains(c);
    let mut line = format!("  $ {program}");
    let mut width = line.len();
    for word in words {
        let word = if word.chars().all(plain) {
            (*word).to_owned()
        } else {
            format!("'{word}'")
        };
        if width + word.len() > 110 {
            line += " \\\n     ";
            width = 5;
        }
        line += " ";
        line += &word;
        width += word.len() + 1;
    }
    println!("{line}");
}

/// Bytes as a person reads them: offset, hexadecimal, text.
pub(super) fn dump(offset: u64, bytes: &[u8]) -> String {
    let line = |(i, row): (usize, &[u8])| {
        let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        let text: String = row
            .iter()
            .map(|b| {
                if b.is_ascii_graphic() || *b == b' ' {
                    char::from(*b)
                } else {
                    '.'
                }
            })
            .collect();
        format!(
            "{:08x}  {:<47}  |{text}|",
            offset + 16 * i as u64,
            hex.join(" ")
        )
    };
    bytes
        .chunks(16)
        .enumerate()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Where to go from here.
pub(super) fn ending(gone: bool) {
    heading("What now");
    if gone {
        fact(
            "Run `cargo xtask demo --keep`, or `cargo xtask up`, to keep the cluster and look around:",
        );
    } else {
        fact("The cluster is still there. Look around:");
    }
    fact(
        "cargo xtask kubectl -- get encryptedvolumes,nodevolumes -A\n\
         cargo xtask kubectl -- get nodes\n\
         target/release/cryptvol-e2e shell           (kubectl and helm at hand)\n\
         target/release/cryptvol-e2e exec-node node-1 -- dmsetup table\n\
         cargo xtask down                            (takes it down)",
    );
}
