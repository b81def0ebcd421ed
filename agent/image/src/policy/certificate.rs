//! Certificates of those who sign: whether an authority of the policy vouches for one, and for whom.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use spki::ObjectIdentifier;
use spki::der::{Decode as _, Encode as _};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

use super::json::Result;
use super::key::Key;

/// The purpose "code signing", 1.3.6.1.5.5.7.3.3.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];

/// Where Fulcio writes who vouched for the subject: as it is, and, since its second version, as UTF-8 of ASN.1.
const ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.1");
const ISSUER_V2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.8");

/// The most certificates of a chain, and of the authorities.
pub(super) const MAX_CHAIN: usize = 8;
const MAX_AUTHORITIES: usize = 64;

/// Authorities, and certificates between them and those who sign.
#[derive(Debug)]
pub(super) struct Authorities {
    roots: Vec<CertificateDer<'static>>,
    between: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Reads certificates in PEM.
    pub(super) fn parse(pem: &[u8]) -> Result<Authorities> {
        let roots = chain(pem, MAX_AUTHORITIES)?;
        if roots.is_empty() {
            return Err("it holds no certificate (PEM)".into());
        }
        for root in &roots {
            anchor_from_trusted_cert(root).map_err(|error| format!("one of its certificates is none: {error}"))?;
        }
        Ok(Authorities { roots, between: Vec::new() })
    }

    /// With certificates that these have signed and that signatures need not bring.
    pub(super) fn with(self, between: Option<Authorities>) -> Authorities {
        Authorities { between: between.map_or_else(Vec::new, |between| between.roots), ..self }
    }

    /// The signer's certificate, the first of `certificates`, if an authority vouched for it at that time, by way of the others.
    pub(super) fn verify(&self, certificates: &[CertificateDer<'_>], time: SystemTime) -> Result<Signer> {
        let [leaf, chain @ ..] = certificates else { return Err("it has no certificate".into()) };
        let bad = |error: webpki::Error| format!("no authority of the policy vouches for its certificate: {error}");
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let anchors = self.roots.iter().map(anchor_from_trusted_cert).collect::<std::result::Result<Vec<_>, _>>();
        let anchors = anchors.map_err(bad)?;
        let chain: Vec<_> = chain.iter().chain(&self.between).cloned().collect();
        let (time, usage) = (UnixTime::since_unix_epoch(since), KeyUsage::required_if_present(CODE_SIGNING));
        let certificate = EndEntityCert::try_from(leaf).map_err(bad)?;
        certificate.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &chain, time, usage, None, None).map_err(bad)?;
        let signer = Signer::parse(leaf)?;
        signer.is_for_signing().map(|()| signer)
    }
}

/// The certificates of a PEM text, in their order.
pub(super) fn chain(pem: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).take(most + 1).collect::<std::result::Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| format!("it is no PEM: {error}"))?;
    if certificates.len() > most {
        return Err(format!("it holds more than {most} certificates"));
    }
    Ok(certificates)
}

/// The certificates that a signature brings.
pub(super) fn brought(certificate: Option<&str>, chain_text: Option<&str>) -> Result<Vec<CertificateDer<'static>>> {
    let mut all = chain(certificate.unwrap_or_default().as_bytes(), 1)?;
    if !all.is_empty() {
        all.extend(chain(chain_text.unwrap_or_default().as_bytes(), MAX_CHAIN)?);
    }
    Ok(all)
}

/// Who signed, by a certificate that an authority vouches for.
#[derive(Debug)]
pub(super) struct Signer {
    der: Vec<u8>,
    certificate: Certificate,
}

impl Signer {
    fn parse(der: &[u8]) -> Result<Signer> {
        let certificate = Certificate::from_der(der).map_err(|error| format!("its certificate is none: {error}"))?;
        Ok(Signer { der: der.to_vec(), certificate })
    }

    /// Of authorities no purpose means any; of those who sign it does not.
    fn is_for_signing(&self) -> Result<()> {
        let purposes = self.certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>();
        match purposes {
            Ok(Some((_, purposes))) if purposes.0.iter().any(|purpose| purpose.as_bytes() == CODE_SIGNING) => Ok(()),
            _ => Err("its certificate is not for signing code".into()),
        }
    }

    pub(super) fn key(&self) -> Result<Key> {
        let info = self.certificate.tbs_certificate().subject_public_key_info().to_der();
        let info = info.map_err(|error| format!("its certificate is none: {error}"))?;
        Key::from_der(&info).map_err(|why| format!("the key of its certificate: {why}"))
    }

    /// Whether it is this address's.
    pub(super) fn is_for_email(&self, email: &str) -> Result<()> {
        let names = self.certificate.tbs_certificate().get_extension::<SubjectAltName>();
        let names = names.map_err(|error| format!("the names in its certificate make no sense: {error}"))?;
        let names = names.map_or_else(Vec::new, |(_, names)| names.0);
        let is_it = |name: &GeneralName| matches!(name, GeneralName::Rfc822Name(found) if found.as_str() == email);
        if names.iter().any(is_it) { Ok(()) } else { Err(format!("its certificate is not for {email}")) }
    }

    /// Whether it is this host's.
    pub(super) fn is_for_host(&self, host: &str) -> Result<()> {
        let wrong = |_| format!("its certificate is not for {host}");
        let der = CertificateDer::from(self.der.as_slice());
        let certificate = EndEntityCert::try_from(&der).map_err(|error| format!("its certificate is none: {error}"))?;
        let name = ServerName::try_from(host).map_err(|_| format!("{host} is no host"))?;
        certificate.verify_is_valid_for_subject_name(&name).map_err(wrong)
    }

    /// Whether this OpenID provider vouched for the subject. Where the certificate says it twice, it must say the same.
    pub(super) fn is_vouched_for_by(&self, issuer: &str) -> Result<()> {
        let extensions = self.certificate.tbs_certificate().extensions().map_or(&[][..], Vec::as_slice);
        let mut found = Vec::new();
        for extension in extensions {
            let bytes = extension.extn_value.as_bytes();
            if extension.extn_id == ISSUER {
                found.push(String::from_utf8_lossy(bytes).into_owned());
            } else if extension.extn_id == ISSUER_V2 {
                let text = String::from_der(bytes).map_err(|_| "the issuer in its certificate is no text")?;
                found.push(text);
            }
        }
        if !found.is_empty() && found.iter().all(|found| found == issuer) {
            return Ok(());
        }
        Err(format!("{issuer} has not vouched for its subject"))
    }
}
