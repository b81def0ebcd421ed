//! `nacre-image measure`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use sha2::{Sha256, Sha384};

use super::firmware::Firmware;
use super::{Kernel, initdata, pcr, snp, tdx};

const MAX_FILE: u64 = 4 << 30;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Measure {
    /// The launch digest of SEV-SNP guests: one for each number and each type of processors
    #[command(after_help = "Example:
  nacre-image measure snp --firmware OVMF.amdsev.fd --vcpus 1,2,4 --cpu EPYC-Milan-v2,EPYC-Genoa \\
    --kernel bzImage --initrd minimal.initrd --command-line \"$(jq -r .command_lines.initrd minimal.manifest.json)\"")]
    Snp {
        /// OVMF, as QEMU gets it with -bios
        #[arg(long, value_name = "FILE")]
        firmware: PathBuf,
        /// Numbers of processors
        #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
        vcpus: Vec<u32>,
        /// Types of processors, as QEMU gets them with -cpu
        #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "EPYC-v4")]
        cpu: Vec<String>,
        /// SEV_FEATURES, as the host's kernel sets them
        #[arg(long, value_name = "BITS", value_delimiter = ',', default_value = "0x1", value_parser = bits)]
        guest_features: Vec<u64>,
        /// What is booted directly
        #[command(flatten)]
        boot: Boot,
        /// Say how each digest came about
        #[arg(long)]
        explain: bool,
    },
    /// MRTD, RTMR 1 and RTMR 2 of trust domains
    #[command(after_help = "Example:
  nacre-image measure tdx --firmware OVMF.inteltdx.fd --kernel bzImage --command-line \"console=hvc0\"")]
    Tdx {
        /// OVMF, as QEMU gets it with -bios
        #[arg(long, value_name = "FILE")]
        firmware: PathBuf,
        /// What is booted directly
        #[command(flatten)]
        boot: Boot,
    },
    /// PCRs 4, 9 and 11 of a TPM, for a unified kernel image or for a kernel that QEMU hands to OVMF
    #[command(after_help = "Examples:
  nacre-image measure pcr confidential.efi
  nacre-image measure pcr --kernel bzImage --command-line \"console=ttyS0\"")]
    Pcr {
        /// The image
        #[arg(required_unless_present = "kernel", conflicts_with = "kernel")]
        uki: Option<PathBuf>,
        /// What is booted directly
        #[command(flatten)]
        boot: Boot,
    },
    /// The digest of initdata, and the fields of reports that have it
    #[command(after_help = "Example:
  nacre-image measure initdata initdata.toml --json")]
    Initdata {
        /// The document, neither compressed nor encoded
        file: PathBuf,
    },
}

/// What is booted directly.
#[derive(Debug, Args)]
pub struct Boot {
    /// The kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Its command line: each byte counts
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    command_line: String,
}

/// A digest for a shape.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    shape: snp::Shape,
    digest: String,
}

/// Measures, and says the result as text or as JSON.
///
/// # Errors
/// Files that can't be read or are not what they have to be.
pub fn run(what: &Measure, as_json: bool) -> Result<String> {
    match what {
        Measure::Snp { firmware, vcpus, cpu, guest_features, boot, explain } => {
            let mut shapes = Vec::new();
            for cpu in cpu {
                for (&vcpus, &features) in vcpus.iter().flat_map(|n| guest_features.iter().map(move |bits| (n, bits))) {
                    shapes.push(snp::Shape { vcpus, cpu: cpu.clone(), features });
                }
            }
            launches(firmware, shapes, boot, *explain, as_json)
        }
        Measure::Tdx { firmware, boot } => {
            let bytes = read(firmware)?;
            let parsed = Firmware::parse(&bytes).with_context(|| firmware.display().to_string())?;
            let mut values = vec![("mrtd".into(), tdx::mrtd(&parsed).with_context(|| firmware.display().to_string())?)];
            if let Some([first, second]) = boot.with(tdx::rtmrs)? {
                values.extend([("rtmr1".into(), first), ("rtmr2".into(), second)]);
            }
            render(&values, &tdx::NOT_PREDICTED, as_json)
        }
        Measure::Pcr { uki, boot } => {
            let values = match uki {
                Some(uki) => of_unified(&read(uki)?).with_context(|| uki.display().to_string())?,
                None => boot.with(of_direct)?.unwrap_or_default(),
            };
            render(&values, &pcr::NOT_PREDICTED, as_json)
        }
        Measure::Initdata { file } => {
            let text = String::from_utf8(read(file)?).with_context(|| format!("{} is no text", file.display()))?;
            let values = initdata::initdata(&text).with_context(|| file.display().to_string())?;
            let values: Vec<_> = values.into_iter().map(|(name, value)| (name.into(), value)).collect();
            render(&values, &[], as_json)
        }
    }
}

fn of_unified(image: &[u8]) -> Result<Vec<(String, String)>> {
    Ok([named("sha256", pcr::unified::<Sha256>(image)?), named("sha384", pcr::unified::<Sha384>(image)?)].concat())
}

fn of_direct(kernel: &Kernel<'_>) -> Result<Vec<(String, String)>> {
    Ok([named("sha256", pcr::direct::<Sha256>(kernel)?), named("sha384", pcr::direct::<Sha384>(kernel)?)].concat())
}

fn named(bank: &str, pcrs: pcr::Pcrs) -> Vec<(String, String)> {
    pcrs.into_iter().map(|(number, value)| (format!("{bank}:{number}"), value)).collect()
}

fn launches(file: &Path, shapes: Vec<snp::Shape>, boot: &Boot, explain: bool, as_json: bool) -> Result<String> {
    let bytes = read(file)?;
    let firmware = Firmware::parse(&bytes).with_context(|| file.display().to_string())?;
    let (mut rows, mut text) = (Vec::new(), String::new());
    for shape in shapes {
        let launch = match boot.with(|kernel| snp::launch(&firmware, &shape, Some(kernel)))? {
            Some(launch) => launch,
            None => snp::launch(&firmware, &shape, None)?,
        };
        let digest = hex::encode(launch.digest);
        let _ = writeln!(text, "{:<14} {:>4} {:#06x} {digest}", shape.cpu, shape.vcpus, shape.features); // can't fail
        if explain {
            text += &snp::explain(&launch);
        }
        rows.push(Row { shape, digest });
    }
    if as_json { pretty(&rows) } else { Ok(text) }
}

impl Boot {
    /// Reads what is to be booted, if something is.
    fn with<T>(&self, measure: impl FnOnce(&Kernel<'_>) -> Result<T>) -> Result<Option<T>> {
        let Some(kernel) = &self.kernel else { return Ok(None) };
        let (image, initrd) = (read(kernel)?, self.initrd.as_deref().map(read).transpose()?);
        let kernel = Kernel { image: &image, initrd: initrd.as_deref(), command_line: &self.command_line };
        measure(&kernel).map(Some)
    }
}

fn render(values: &[(String, String)], not_predicted: &[(&str, &str)], as_json: bool) -> Result<String> {
    if as_json {
        let map =
            |pairs: &mut dyn Iterator<Item = (String, String)>| pairs.collect::<std::collections::BTreeMap<_, _>>();
        let others = map(&mut not_predicted.iter().map(|(name, why)| ((*name).into(), (*why).into())));
        return pretty(&json!({ "values": map(&mut values.iter().cloned()), "not_predicted": others }));
    }
    let values = values.iter().map(|(name, value)| format!("{name} {value}\n"));
    let others = not_predicted.iter().map(|(name, why)| format!("{name} is not predicted: {why}\n"));
    Ok(values.chain(others).collect())
}

fn pretty(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("write JSON")? + "\n")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(length <= MAX_FILE, "{} has {length} bytes, of {MAX_FILE} at most", path.display());
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn bits(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16))
}
