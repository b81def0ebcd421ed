//! HTTP as registries need it: TLS by rustls, proxies by the environment, credentials that never follow a redirect to another host.

use std::time::Duration;

use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _, TcpConnector};
use ureq::{Agent, Body, http};

use super::options::Options;
use super::stripes::MOST;
use super::tls::Tls;
use crate::error::{Error, Kind, Result, quoted};

/// How long a registry may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(15);

/// The most redirects of one request.
const MAX_REDIRECTS: u32 = 5;

/// How much is read from the network at once.
const BUFFER: usize = 128 << 10;

/// An answer, its body still to be read.
pub(super) type Response = http::Response<Body>;

/// Who makes requests.
#[derive(Debug, Clone)]
pub(super) struct Http(Agent);

impl Http {
    /// One that talks plain HTTP, too, and to anybody, if `insecure`.
    pub(super) fn new(options: &Options, insecure: bool) -> Result<Http> {
        let tls = Tls::new(&options.trust, insecure)?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!insecure)
            .max_redirects(0) // they are followed here
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(options.silence))
            .timeout_per_write(Some(options.silence))
            .timeout_recv_response(Some(options.silence)) // also of headers that come drop by drop
            .input_buffer_size(BUFFER)
            .max_idle_connections_per_host(MOST) // each may have to wait for its next stripe
            .user_agent(concat!("nacre/", env!("CARGO_PKG_VERSION")))
            .build();
        // A proxy that HTTPS_PROXY names is asked to connect first.
        let connector = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default()).chain(tls);
        Ok(Http(Agent::with_parts(config, connector, DefaultResolver::default())))
    }

    /// Asks for `url`, wherever that leads. An answer of any other status is one. What authorises us goes to no other origin than the one that
    /// was asked: another port is another server.
    pub(super) fn get(&self, url: &str, headers: &[(&str, &str)]) -> std::result::Result<Answer, Failed> {
        let (mut from, mut headers) = (url.to_string(), headers.to_vec());
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.0.get(&from);
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let response = request.call().map_err(|error| sorted(&from, &error))?;
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                return Ok(Answer { response, from });
            };
            let next = follow(&from, location).ok_or_else(|| {
                unreachable(format!("the registry redirects to what is no address: {}", quoted(location)))
            })?;
            if origin(&next) != origin(&from) {
                headers.retain(|(name, _)| *name != "authorization");
            }
            from = next;
        }
        Err(unreachable("the registry redirects again and again".into()))
    }

    /// Sends a form.
    pub(super) fn post(&self, url: &str, form: &[(&str, &str)]) -> std::result::Result<Answer, Failed> {
        let response = self.0.post(url).send_form(form.iter().copied()).map_err(|error| sorted(url, &error))?;
        Ok(Answer { response, from: url.into() })
    }
}

/// An answer, and the address that gave it.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) from: String,
}

/// There is no answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// Because nobody said anything for too long.
    pub(super) silent: bool,
}

fn unreachable(message: String) -> Failed {
    Failed { error: Error::new(Kind::Unreachable, message), silent: false }
}

/// Where a redirect leads (RFC 9110 §10.2.2): an address, or a path of the same server. Whether it may be plain HTTP, the agent decides.
fn follow(from: &str, location: &str) -> Option<String> {
    let is_address = location.starts_with("https://") || location.starts_with("http://");
    match location {
        _ if is_address => Some(location.to_string()),
        path if path.starts_with('/') && !path.starts_with("//") => Some(format!("{}{path}", origin(from))),
        _ => None,
    }
}

/// Scheme, host and port.
pub(super) fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(host..).and_then(|rest| rest.find(['/', '?', '#'])).map_or(url.len(), |at| host + at);
    url.get(..end).unwrap_or(url)
}

/// What a failed request means to who asked for the image.
fn sorted(url: &str, error: &ureq::Error) -> Failed {
    let host = url.split('/').nth(2).unwrap_or_default();
    let (kind, meaning) = match (tls(error), error) {
        (Some(rustls::Error::InvalidCertificate(_)), _) => (
            Kind::UntrustedCa,
            "nobody this guest trusts has signed the registry's certificate for this name: give its CA (--tls-ca FILE)",
        ),
        (Some(rustls::Error::InvalidMessage(_)), _) => {
            (Kind::Unreachable, "the registry speaks no TLS: is the address right?")
        }
        (Some(_), _) | (None, ureq::Error::Tls(_)) => (Kind::Unreachable, "the registry and we find no TLS in common"),
        (None, ureq::Error::Timeout(ureq::Timeout::Connect))
        | (None, ureq::Error::HostNotFound | ureq::Error::ConnectionFailed) => (Kind::Unreachable, UNREACHABLE),
        (None, ureq::Error::Timeout(_)) => (Kind::Stalled, "the registry has sent nothing for too long: try again"),
        (None, ureq::Error::Io(error)) if refused(error) => (Kind::Unreachable, UNREACHABLE),
        (None, ureq::Error::Io(_)) => (Kind::Stalled, "the registry ended the transfer early: try again"),
        _ => (Kind::Unreachable, "the registry's answer makes no sense"),
    };
    let silent = matches!(error, ureq::Error::Timeout(why) if *why != ureq::Timeout::Connect);
    Failed { error: Error::new(kind, format!("{host:.200}: {meaning} [{error}]")), silent }
}

const UNREACHABLE: &str = "the registry can't be reached: is it up, and does the guest's network lead there?";

/// Whether reading ended because nothing came for too long.
pub(super) fn is_silence(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    error.kind() == std::io::ErrorKind::TimedOut || matches!(inner, Some(ureq::Error::Timeout(_)))
}

fn refused(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown | K::AddrNotAvailable
    )
}

fn tls(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_an_address_or_a_path_of_the_same_server() {
        let from = "https://h:5000/v2/a?b";
        assert_eq!(follow(from, "/c/d").as_deref(), Some("https://h:5000/c/d"));
        assert_eq!(follow(from, "https://h/c").as_deref(), Some("https://h/c"));
        for nothing in ["//evil/c", "ftp://h", "c", ""] {
            assert_eq!(follow(from, nothing), None, "{nothing}");
        }
        assert_eq!(
            (origin(from), origin("http://h?x"), origin("https://h")),
            ("https://h:5000", "http://h", "https://h")
        );
    }
}
