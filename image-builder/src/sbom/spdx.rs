//! SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3).

use serde_json::{Value, json};

use super::Component;

/// Nothing here has a time: the beginning of Unix's.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What nobody has looked into.
const UNKNOWN: &str = "NOASSERTION";

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-Image";

pub(super) fn document(name: &str, identity: &str, components: &[Component]) -> Value {
    let image = json!({
        "SPDXID": IMAGE, "name": name, "versionInfo": identity, "downloadLocation": UNKNOWN, "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM", "licenseConcluded": UNKNOWN, "licenseDeclared": UNKNOWN, "copyrightText": UNKNOWN,
    });
    let packages: Vec<_> = [image].into_iter().chain(components.iter().map(package)).collect();
    let related = |from: &str, how: &str, to: &str| json!({ "spdxElementId": from, "relationshipType": how, "relatedSpdxElement": to });
    let mut relationships = vec![related(DOCUMENT, "DESCRIBES", IMAGE)];
    for component in components {
        if component.is_program {
            relationships.push(related(IMAGE, "CONTAINS", &id(&component.purl)));
        }
        relationships
            .extend(component.holds.iter().map(|held| related(&id(&component.purl), "STATIC_LINK", &id(held))));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": name,
        "documentNamespace": format!("{}/spdx/{name}-{identity}", env!("CARGO_PKG_REPOSITORY")),
        "creationInfo": { "created": CREATED, "creators": [concat!("Tool: nacre-image-", env!("CARGO_PKG_VERSION"))] },
        "packages": packages,
        "relationships": relationships,
    })
}

fn package(component: &Component) -> Value {
    let mut package = json!({
        "SPDXID": id(&component.purl),
        "name": component.name,
        "versionInfo": component.version,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "primaryPackagePurpose": if component.is_program { "APPLICATION" } else { "LIBRARY" },
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
        "externalRefs": [{ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": component.purl }],
    });
    if let Some(sha256) = &component.sha256 {
        package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
    }
    if let Some(source) = &component.source {
        package["sourceInfo"] = format!("built from: {source}").into();
    }
    package
}

/// Letters, digits, `.` and `-` are what an identifier may have.
fn id(purl: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("SPDXRef-{}", purl.trim_start_matches("pkg:").chars().map(plain).collect::<String>())
}
