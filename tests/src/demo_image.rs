//! The image of `make run` and of the pull benchmark: a small Debian, three layers, each compressed another way.

use std::path::{Path, PathBuf};

use anyhow::Result;
use nacre_image::packages::{self, Entry};
use serde_json::json;

use crate::image::{Compression, Image, Layer, Written};

/// Packages by layer, the lowest first.
const LIBRARIES: [&str; 7] = ["base-files", "libacl1", "libattr1", "libc6", "libgmp10", "libpcre2-8-0", "libselinux1"];
const PROGRAMS: [&str; 2] = ["coreutils", "dash"];

/// What an image does not need.
const LEFT_OUT: [&str; 5] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/lib/x86_64-linux-gnu/gconv"];

/// What the container says.
const GREETING: &str = "#!/bin/sh
. /etc/os-release
echo \"$PRETTY_NAME in a VM of its own: $(uname -s) $(uname -r), $(nproc) CPU, host name $(uname -n)\"
echo \"I am $(id -un 2>/dev/null || id -u), process $$, in $(pwd); my root has: $(echo /*)\"
";

/// Writes the image as an OCI layout into `dir`. Packages are kept in `cache`.
///
/// # Errors
/// A package that can't be had.
pub fn write(dir: &Path, cache: &Path) -> Result<Written> {
    let config =
        json!({ "Cmd": ["/usr/local/bin/greet"], "WorkingDir": "/srv", "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"] });
    let top = Layer::default()
        .file("usr/local/bin/greet", 0o755, GREETING.as_bytes())?
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?
        .directory("srv/", 0o755)?;
    Image::new(config)
        .layer(layer(&LIBRARIES, cache)?, Compression::Gzip)
        .layer(layer(&PROGRAMS, cache)?, Compression::Zstd)
        .layer(top.finish()?, Compression::None)
        .write(dir)
}

/// The files of some packages, in the order of their paths, below the links that lead into `/usr`.
///
/// # Errors
/// A package that can't be had.
pub fn layer(names: &[&str], cache: &Path) -> Result<Vec<u8>> {
    let contents = packages::contents_today(names, cache)?;
    let mut layer = Layer::default();
    for merged in ["bin", "lib", "lib64", "sbin"] {
        layer = layer.symlink(merged, &format!("usr/{merged}"))?;
    }
    for (path, entry) in
        contents.iter().filter(|(path, _)| !LEFT_OUT.iter().any(|out| Path::new(path).starts_with(out)))
    {
        layer = match entry {
            Entry::Symlink(target) => layer.symlink(path, target)?,
            Entry::Directory(mode) => layer.directory(&format!("{path}/"), *mode)?,
            Entry::File(mode, _) => layer.file(path, *mode, contents.file(&format!("/{path}"))?.1)?,
        };
    }
    layer.finish()
}

/// Where packages are kept between runs.
pub fn cache() -> PathBuf {
    let dir = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("nacre")
}
