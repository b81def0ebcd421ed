//! Our own server of containers-image-proxy's protocol, version 0.2.8: what a worker talks to a registry through, unless a recipe ships skopeo.
//!
//! It is a process of its own, as skopeo is: requests come over the socket that is its standard input, one packet of JSON each; what is large goes
//! over pipes. What a registry sends is checked here and again by the worker.

mod body;
mod http;
mod layout;
mod lookaside;
pub(crate) mod manifest;
mod options;
mod registry;
mod signatures;
mod stripes;
mod tls;
mod wire;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::confine::Confinement;
use crate::error::{Error, Kind, Result, quoted};
use body::Source;
use manifest::Manifest;
use options::Options;
use wire::{Reply, Request, Socket};

/// The protocol's version.
const VERSION: &str = "0.2.8";

/// The most images that are open, and pipes that wait to be finished, at once.
const MOST_OPEN: usize = 256;

/// Serves the socket that is standard input until it is closed. `args` are the server's own and those that the client appends.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let served = Options::parse(args).and_then(|options| {
        Confinement::of_server(options.user)?.process()?;
        Server::new(options).serve(&Socket::stdin()?)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error}\n").as_bytes()); // the client quotes it
            ExitCode::FAILURE
        }
    }
}

/// The answer to `FindEvidence`, which no library asks for, is standard output, up to its end.
fn print(found: Result<Value>) {
    let text = found.map_or_else(|error| error.to_wire(wire::MAX_ERROR), |value| value.to_string());
    let mut out = std::io::stdout();
    let _ = std::io::Write::write_all(&mut out, text.as_bytes()); // who asked may be gone
    std::process::exit(0);
}

/// What is open.
struct Server {
    options: Options,
    images: HashMap<u64, Image>,
    pipes: HashMap<u64, JoinHandle<Result<()>>>,
    last: u64,
}

/// An image: where its blobs are, and its manifest.
struct Image {
    source: Arc<dyn Source>,
    manifest: Manifest,
}

impl Server {
    fn new(options: Options) -> Server {
        Server { options, images: HashMap::new(), pipes: HashMap::new(), last: 0 }
    }

    fn serve(mut self, socket: &Socket) -> Result<()> {
        while let Some(request) = socket.receive()? {
            if request.method == "Shutdown" {
                return socket.send(&Reply::value(Value::Null));
            }
            let reply = self.answer(&request).unwrap_or_else(|error| Reply::failed(&error));
            socket.send(&reply)?;
        }
        Ok(())
    }

    fn answer(&mut self, request: &Request) -> Result<Reply> {
        match request.method.as_str() {
            "Initialize" => Ok(Reply::value(json!(VERSION))),
            "OpenImage" => self.open(request.text(0)?).map(|id| Reply::value(json!(id))),
            "OpenImageOptional" => match self.open(request.text(0)?) {
                Err(error) if error.kind == Kind::NotFound => Ok(Reply::value(json!(0))),
                opened => opened.map(|id| Reply::value(json!(id))),
            },
            "CloseImage" => {
                self.images.remove(&request.number(0)?);
                Ok(Reply::value(Value::Null))
            }
            "GetManifest" => {
                let image = self.image(request)?;
                let (digest, bytes) = (json!(image.manifest.digest), image.manifest.bytes.clone());
                self.pipe(digest, move |pipe| body::give(&pipe, &bytes))
            }
            "GetFullConfig" => {
                let image = self.image(request)?;
                let bytes = body::small(image.source.as_ref(), &image.manifest.config)?;
                self.pipe(Value::Null, move |pipe| body::give(&pipe, &bytes))
            }
            // One answer at a time goes over the socket, so what may take time is done by the blob's own thread. Nothing is known of the length then.
            "GetBlob" => {
                let (source, digest, size) = (self.source(request)?, request.text(1)?.to_string(), request.number(2)?);
                crate::reference::sha256(&digest)?;
                self.pipe(json!(-1), move |pipe| body::copy_checked(&source, &digest, size, &pipe))
            }
            "GetRawBlob" => {
                let (source, digest) = (self.source(request)?, request.text(1)?.to_string());
                crate::reference::sha256(&digest)?;
                let (data, theirs) = wire::pipe()?;
                let (errors, their_errors) = wire::pipe()?;
                std::thread::spawn(move || {
                    let copied = body::copy(&source, &digest, &theirs);
                    drop(theirs);
                    wire::tell(&their_errors, copied);
                });
                Ok(Reply::value(json!(-1)).with(vec![data, errors], 0))
            }
            "GetLayerInfo" => Ok(Reply::value(self.image(request)?.manifest.layer_info()?)),
            "GetLayerInfoPiped" => {
                let bytes = self.image(request)?.manifest.layer_info()?.to_string().into_bytes();
                self.pipe(Value::Null, move |pipe| body::give(&pipe, &bytes))
            }
            "FinishPipe" => {
                let unknown = || Error::new(Kind::Internal, "there is no such pipe");
                let thread = self.pipes.remove(&request.number(0)?).ok_or_else(unknown)?;
                thread.join().map_err(|_| Error::new(Kind::Internal, "a thread of the registry client ended"))??;
                Ok(Reply::value(Value::Null))
            }
            "FindEvidence" => {
                let (signed, store) = (request.text(1)? == "signed", request.text(2)?);
                let store = Some(store).filter(|store| !store.is_empty());
                print(registry::Registry::find_evidence(request.text(0)?, signed, store, &self.options));
                Ok(Reply::value(Value::Null))
            }
            other => Err(Error::new(Kind::Internal, format!("method {} is unknown", quoted(other)))),
        }
    }

    fn open(&mut self, name: &str) -> Result<u64> {
        if self.images.len() >= MOST_OPEN {
            return Err(Error::new(Kind::Internal, "too many images are open"));
        }
        let (source, manifest) = body::find(name, &self.options)?;
        self.last += 1;
        self.images.insert(self.last, Image { source, manifest });
        Ok(self.last)
    }

    fn image(&self, request: &Request) -> Result<&Image> {
        let unknown = || Error::new(Kind::Internal, "there is no such image");
        self.images.get(&request.number(0)?).ok_or_else(unknown)
    }

    fn source(&self, request: &Request) -> Result<Arc<dyn Source>> {
        Ok(self.image(request)?.source.clone())
    }

    /// A pipe that `write` fills in a thread of its own, for `FinishPipe` to ask about.
    fn pipe(&mut self, value: Value, write: impl FnOnce(OwnedFd) -> Result<()> + Send + 'static) -> Result<Reply> {
        if self.pipes.len() >= MOST_OPEN {
            return Err(Error::new(Kind::Internal, "too many pipes are open"));
        }
        let (data, theirs) = wire::pipe()?;
        self.last += 1;
        self.pipes.insert(self.last, std::thread::spawn(move || write(theirs)));
        Ok(Reply::value(value).with(vec![data], self.last))
    }
}
