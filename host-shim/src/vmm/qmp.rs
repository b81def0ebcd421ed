//! QEMU's monitor (QMP, docs/interop/qmp-spec): one command, one answer.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// The longest line that QEMU may say.
const MAX_LINE: u64 = 1 << 20;

/// A conversation with QEMU.
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    pub(super) async fn connect(path: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(path).await.with_context(|| format!("connect to {}", path.display()))?;
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.line().await.context("hear QEMU's greeting")?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Have QEMU do `command`. What it tells of its own accord meanwhile is not looked at.
    ///
    /// # Errors
    /// What QEMU says against it, or that it is gone.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.0
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .await
            .with_context(|| format!("ask QEMU to {command}"))?;
        loop {
            let mut answer = self.line().await.with_context(|| format!("hear what became of {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU does not {command}: {}", error["desc"].as_str().unwrap_or("it does not say why"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    async fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if (&mut self.0).take(MAX_LINE).read_line(&mut line).await? == 0 {
            bail!("QEMU has hung up");
        }
        serde_json::from_str(&line).with_context(|| format!("read {line:?}"))
    }
}
