//! The attributes of `target_info`.

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;

/// The attributes under names that Prometheus can read. `OTEL_RESOURCE_ATTRIBUTES` may name anything, and with one bad name
/// Prometheus rejects the whole page: names begin with no digit, and those with two leading underscores are its own. The exporter
/// replaces the other characters.
pub(super) fn readable(resource: &Resource) -> Resource {
    let attributes = resource.iter().map(|(key, value)| {
        let name = key.as_str().trim_start_matches('_');
        let renamed =
            name != key.as_str() || name.starts_with(|first: char| first.is_ascii_digit());
        let key =
            if renamed || name.is_empty() { Key::new(format!("key_{name}")) } else { key.clone() };
        KeyValue::new(key, value.clone())
    });
    Resource::builder_empty().with_attributes(attributes).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_that_prometheus_reads() {
        let attributes = ["host.name", "my-key", "0x", "__name__", "_", ""];
        let attributes = attributes.map(|name| KeyValue::new(name, "value"));
        let resource = Resource::builder_empty().with_attributes(attributes).build();
        let readable = readable(&resource);
        let mut names: Vec<&str> = readable.iter().map(|(key, _)| key.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["host.name", "key_", "key_0x", "key_name__", "my-key"]);
    }
}
