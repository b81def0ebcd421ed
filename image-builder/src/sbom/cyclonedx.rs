//! CycloneDX 1.5 as JSON (https://cyclonedx.org/docs/1.5/json).

use serde_json::{Value, json};

use super::Component;

pub(super) fn document(name: &str, identity: &str, components: &[Component]) -> Value {
    let image = format!("image:{name}");
    let programs: Vec<_> = components.iter().filter(|one| one.is_program).map(|one| &one.purl).collect();
    let mut dependencies = vec![json!({ "ref": image, "dependsOn": programs })];
    dependencies.extend(components.iter().map(|one| json!({ "ref": one.purl, "dependsOn": one.holds })));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", uuid(identity)),
        "version": 1,
        "metadata": {
            "tools": { "components": [{ "type": "application", "name": "nacre-image", "version": env!("CARGO_PKG_VERSION") }] },
            "component": { "type": "operating-system", "bom-ref": image, "name": name, "version": identity },
        },
        "components": components.iter().map(component).collect::<Vec<_>>(),
        "dependencies": dependencies,
    })
}

fn component(component: &Component) -> Value {
    let mut value = json!({
        "type": if component.is_program { "application" } else { "library" },
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
    });
    if let Some(sha256) = &component.sha256 {
        value["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    if let Some(source) = &component.source {
        value["properties"] = json!([{ "name": "debian:source", "value": source }]);
    }
    value
}

/// 32 hex digits in the groups of RFC 9562, as version 8: made by a rule of our own.
fn uuid(identity: &str) -> String {
    let part = |from: usize, to: usize| identity.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}
