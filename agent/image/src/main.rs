//! `nacre-pull`: the image engine on a command line, for use and measurement outside a VM.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nacre_pull::{Auth, Request, Server, seal, worker};

const HELP: &str = "\
Pulls an image: verified, unpacked layers in a directory, and its configuration as JSON on standard output.

  nacre-pull pull [--store DIR] [--ca FILE] [--creds-file FILE | --auth-file FILE] [--registries-conf FILE]
                  [--policy FILE] [--registries-d DIR] [--require-digest] [--decryption-key FILE]... [--key-providers FILE]
                  [--insecure] [--skopeo] [--silence SECONDS] [--blob-cache ADDRESS] REFERENCE
  nacre-pull seal --out DIR [--manifest NAME] [as pull] REFERENCE
  nacre-pull worker [SECONDS]
  nacre-pull proxy|skopeo experimental-image-proxy

  --store DIR         where layers are kept; the default is ./nacre-layers
  --ca FILE           certificates to trust besides the system's (PEM)
  --creds-file FILE   who asks: USER:PASSWORD in the file's first line
  --auth-file FILE    who asks: containers-auth.json(5)
  --registries-conf FILE
                      mirrors, blocks and aliases: containers-registries.conf(5)
  --decryption-key FILE
                      a private key for encrypted layers (PEM); may be given more than once
  --key-providers FILE
                      programs that unwrap the keys of encrypted layers: ocicrypt's configuration
  --insecure          take any certificate, or none
  --policy FILE       which images may be used: containers-policy.json(5)
  --registries-d DIR  where signatures by GPG are kept: containers-registries.d(5)
  --require-digest    refuse a name without a digest
  --skopeo            let skopeo (1.19 or later) talk to the registry
  --blob-cache ADDRESS
                      a cache of blobs to ask first, which need not be trusted: unix:///PATH or vsock://CID:PORT
  --silence SECONDS   how long the registry may send nothing; the default is 30

Sealed layers can be attached to guests, which then fetch and unpack nothing (nacre run --layers DIR):
  --out DIR           where each layer becomes a file, named by the root hash that proves its content. What is there already is not made again
  --manifest NAME     the file in DIR that the manifest goes to, with the root hashes; the default is manifest.json. Push it, for instance by
                      oras manifest push registry.example/app:1 DIR/manifest.json
Without --store, nothing else is kept.

A worker reads its request from standard input, as the agent writes it, and takes that time as its argument. A proxy serves
the protocol of skopeo's experimental-image-proxy on its standard input, a socket; so does skopeo, which is confined first.

Example:
  nacre-pull pull --store /var/tmp/layers registry.example/app:1
";

/// How long the registry may send nothing.
const SILENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    nacre_sys::heap::keep_small();
    let mut args = std::env::args().skip(1);
    let result = match args.next().as_deref() {
        Some("pull") => parse(args).and_then(|(request, silence)| pull(&request, silence)),
        Some("seal") => make_ready(args),
        Some("proxy") => Ok(nacre_pull::proxy::main(args)),
        Some("skopeo") => Ok(nacre_pull::skopeo::main(args)),
        Some("worker") => args.next().map_or(Ok(SILENCE), |text| seconds(&text)).map(worker::run),
        Some("--help" | "-h" | "help") | None => {
            let _ = std::io::stdout().write_all(HELP.as_bytes()); // who closed it does not want it
            Ok(ExitCode::SUCCESS)
        }
        Some(other) => Err(format!("there is no command {other:?}")),
    };
    result.unwrap_or_else(|reason| {
        eprintln!("nacre-pull: {reason}; see nacre-pull --help");
        ExitCode::from(2)
    })
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<(Request, Duration), String> {
    let mut request = Request {
        reference: String::new(),
        store: PathBuf::from("nacre-layers"),
        auth: None,
        ca_pem: None,
        skip_tls_verification: false,
        auth_file: None,
        registries: None,
        decryption_keys: Vec::new(),
        key_providers: None,
        policy: None,
        lookaside: Vec::new(),
        require_digest: false,
        server: Server::Own,
        attached: Vec::new(),
        known: Vec::new(),
        blob_cache: None,
    };
    let mut silence = SILENCE;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--auth-file" => request.auth_file = Some(read(&value()?)?),
            "--registries-conf" => request.registries = Some(read(&value()?)?),
            "--decryption-key" => request.decryption_keys.push(read(&value()?)?),
            "--key-providers" => request.key_providers = Some(read(&value()?)?),
            "--require-digest" => request.require_digest = true,
            "--registries-d" => request.lookaside = nacre_pull::access::lookaside::read(Path::new(&value()?))?,
            "--policy" => request.policy = Some(read(&value()?)?),
            "--blob-cache" => request.blob_cache = Some(value()?),
            "--skopeo" => request.server = Server::Skopeo,
            "--insecure" => request.skip_tls_verification = true,
            "--store" => request.store = value()?.into(),
            "--silence" => silence = seconds(&value()?)?,
            "--ca" => request.ca_pem = Some(read(&value()?)?),
            "--creds-file" => {
                let text = read(&value()?)?;
                let line = text.lines().next().unwrap_or_default();
                let (username, password) = line.split_once(':').ok_or("the credentials are not USER:PASSWORD")?;
                request.auth = Some(Auth { username: username.into(), password: password.into() });
            }
            option if option.starts_with('-') => return Err(format!("there is no option {option}")),
            _ if request.reference.is_empty() => request.reference = arg,
            _ => return Err(format!("one reference too many: {arg}")),
        }
    }
    if request.reference.is_empty() { Err("which image?".into()) } else { Ok((request, silence)) }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is no number of seconds from 1 to 3600"))
}

/// Takes its own options out and leaves the others to be read as those of a pull.
fn make_ready(mut args: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let (mut out, mut manifest, mut others) = (None, String::from("manifest.json"), Vec::new());
    let mut has_store = false;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--out" => out = Some(PathBuf::from(value()?)),
            "--manifest" => manifest = value()?,
            _ => {
                has_store |= arg == "--store";
                others.push(arg);
            }
        }
    }
    let out = out.ok_or("where to? Give --out DIR")?;
    if manifest.is_empty() || manifest.contains('/') || manifest == "layers" || manifest.ends_with(".erofs") {
        return Err(format!("{manifest:?} is no name for a manifest"));
    }
    let (mut request, silence) = parse(others.into_iter())?;
    if has_store {
        return Ok(seal::run(request, silence, &out, &manifest));
    }
    fs::create_dir_all(&out).map_err(|error| format!("create {}: {error}", out.display()))?;
    let store = tempfile::tempdir_in(&out).map_err(|error| format!("make a store for layers: {error}"))?;
    request.store = store.path().into();
    Ok(seal::run(request, silence, &out, &manifest))
}

/// The worker's events go to standard output as they are.
fn pull(request: &Request, silence: Duration) -> Result<ExitCode, String> {
    let run = || -> std::io::Result<bool> {
        let mut worker = Command::new(std::env::current_exe()?);
        worker.arg("worker").arg(silence.as_secs().to_string()).stdin(Stdio::piped());
        nacre_sys::lifeline::die_with_parent(&mut worker);
        let mut child = worker.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(request)?)?;
        }
        Ok(child.wait()?.success())
    };
    let whole = run().map_err(|error| format!("run a worker: {error}"))?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
