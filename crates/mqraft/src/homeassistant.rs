//! `mqraft homeassistant remove`.

use raft_over_mqtt::remove_from_home_assistant;
use serde_json::json;

use crate::cli::Format;
use crate::exit::Failure;
use crate::output;
use crate::settings::Connection;

/// Removes the cluster's device from Home Assistant.
pub(crate) async fn remove(
    connection: Connection,
    discovery_prefix: &str,
    format: Format,
) -> Result<(), Failure> {
    let Connection {
        mqtt,
        prefix,
        cluster,
        timeout,
        ..
    } = connection;
    remove_from_home_assistant(mqtt, &prefix, &cluster, discovery_prefix, timeout).await?;
    output::answer(
        format,
        || format!("{cluster} is removed from Home Assistant"),
        || json!({ "removed": cluster }),
    );
    Ok(())
}
