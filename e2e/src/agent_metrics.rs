//! What the node agent counts, as its `/metrics` say it.

use anyhow::{Context, Result};

use crate::node::Node;
use crate::site::AGENT_ADMIN_PORT;

/// All of it, in the text format of Prometheus.
///
/// # Errors
/// If the agent does not answer.
pub async fn text(node: &Node) -> Result<String> {
    let ask = format!("curl -sf http://127.0.0.1:{AGENT_ADMIN_PORT}/metrics");
    node.sh(&ask).await?.ok()
}

/// One counter or gauge by its name and labels, without `cryptvol_node_`: 0 where it is not there, as before the first of a kind.
///
/// # Errors
/// If the text has something else than a whole number there.
pub fn count(text: &str, name: &str) -> Result<u64> {
    let name = format!("cryptvol_node_{name} ");
    let value = text.lines().find_map(|l| l.strip_prefix(&name));
    value.map_or(Ok(0), |v| {
        v.trim().parse().with_context(|| format!("{name}{v}"))
    })
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn a_count_is_that_of_the_name_with_its_labels() {
        let text = "cryptvol_node_proofs_total{result=\"holds\"} 12\ncryptvol_node_proofs 3\n";
        assert_eq!(count(text, "proofs_total{result=\"holds\"}").unwrap(), 12);
        assert_eq!(count(text, "proofs_total{result=\"broken\"}").unwrap(), 0);
        assert!(count("cryptvol_node_a x\n", "a").is_err());
    }
}
