//! A signature store: signatures by GPG as files on a web server, `PATH@sha256=HEX/signature-N` (containers-registries.d(5)).

use std::io::Read as _;

use ureq::http::StatusCode;

use super::http::Http;
use super::options::Options;
use crate::access::lookaside;
use crate::error::{Error, Kind, Result};

/// The store, as far as one repository is concerned.
#[derive(Debug)]
pub(super) struct Store {
    http: Http,
    base: String,
}

impl Store {
    /// `base` is the store's address and the repository's path.
    pub(super) fn new(base: &str, options: &Options) -> Result<Store> {
        Ok(Store { http: Http::new(options, options.insecure)?, base: base.into() })
    }

    /// The manifest's signature of this number, if there is one. Nobody's credentials are shown.
    pub(super) fn signature(&self, hex: &str, number: usize, limit: u64) -> Result<Option<Vec<u8>>> {
        let url = lookaside::place(&self.base, hex, number);
        let response = self.http.get(&url, &[]).map_err(|failed| failed.error)?.response;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            other => return Err(Error::new(Kind::Unreachable, format!("the signature store answers {other} [{url}]"))),
        }
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::new(Kind::Stalled, format!("read a signature: try again [{error}]")))?;
        Ok(Some(bytes))
    }
}
