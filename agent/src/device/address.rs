//! PCI addresses: what the host's are in this guest.
//!
//! A device plugin on the host tells a container of its devices in variables whose names begin with `PCIDEVICE_`. They hold the host's
//! addresses: a list with commas, or JSON where the name ends with `_INFO`.

use std::collections::BTreeMap;

use oci_spec::runtime::Process;

use super::Error;

const PREFIX: &str = "PCIDEVICE_";
const INFO: &str = "_INFO";

/// The length of `DDDD:BB:DD.F`.
const LENGTH: usize = 12;

/// The host's addresses, and what they are here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(BTreeMap<String, String>);

impl Addresses {
    /// The device that is at `host` there is at `guest` here.
    pub(super) fn insert(&mut self, host: String, guest: String) {
        self.0.insert(host, guest);
    }

    /// Have the variables of `process` tell the guest's addresses. A container without such devices keeps its own.
    pub fn translate(&self, process: &mut Process) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        for variable in process.env_mut().iter_mut().flatten() {
            let Some((name, value)) = variable.split_once('=').filter(|(name, _)| name.starts_with(PREFIX)) else {
                continue;
            };
            if !name.ends_with(INFO) {
                let unknown = value.split(',').find(|address| !self.0.contains_key(&address.to_ascii_lowercase()));
                if let Some(unknown) = unknown {
                    return Err(Error::invalid("PCIDEVICE_*:", unknown, "is no PCI device of this container's"));
                }
            }
            *variable = format!("{name}={}", self.in_text(value));
        }
        Ok(())
    }

    /// `text` with every address that is known translated, and nothing translated twice.
    fn in_text(&self, mut text: &str) -> String {
        let mut translated = String::with_capacity(text.len());
        while let Some(c) = text.chars().next() {
            let address = text.get(..LENGTH).and_then(parse).and_then(|host| self.0.get(&host));
            let step = if address.is_some() { LENGTH } else { c.len_utf8() };
            let (read, rest) = text.split_at(step);
            translated.push_str(address.map_or(read, String::as_str));
            text = rest;
        }
        translated
    }
}

/// A PCI address, in lower case.
pub fn parse(text: &str) -> Option<String> {
    let fits = |(i, b): (usize, u8)| match i {
        4 | 7 => b == b':',
        10 => b == b'.',
        _ => b.is_ascii_hexdigit(),
    };
    (text.len() == LENGTH && text.bytes().enumerate().all(fits)).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(env: &str) -> Result<String, Error> {
        let mut addresses = Addresses::default();
        addresses.insert("0000:1a:01.0".into(), "0000:1a:01.1".into());
        addresses.insert("0000:1a:01.1".into(), "0000:00:02.0".into());
        let mut process = Process::default();
        process.set_env(Some(vec!["PATH=0000:1a:01.0".into(), env.into()]));
        addresses.translate(&mut process)?;
        let [path, env] = process.env().clone().unwrap().try_into().unwrap();
        assert_eq!(path, "PATH=0000:1a:01.0");
        Ok(env)
    }

    #[test]
    fn variables_tell_the_guests_addresses() {
        for (host, guest) in [
            ("PCIDEVICE_X=0000:1A:01.0", "PCIDEVICE_X=0000:1a:01.1"),
            ("PCIDEVICE_X=0000:1a:01.0,0000:1a:01.1", "PCIDEVICE_X=0000:1a:01.1,0000:00:02.0"),
            (
                "PCIDEVICE_X_INFO={\"0000:1a:01.1\":\"é 0000:1b:00.0\"}",
                "PCIDEVICE_X_INFO={\"0000:00:02.0\":\"é 0000:1b:00.0\"}",
            ),
            ("PCIDEVICE_X", "PCIDEVICE_X"),
        ] {
            assert_eq!(translated(host).unwrap(), guest);
        }
    }

    #[test]
    fn an_address_that_is_not_the_containers_is_refused() {
        for env in ["PCIDEVICE_X=0000:1b:00.0", "PCIDEVICE_X=0000:1a:01.0,", "PCIDEVICE_X="] {
            assert!(translated(env).unwrap_err().is_invalid(), "{env}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_addresses_stays_as_it_is(text in "[0-9a-é:.]{0,60}") {
            let mut addresses = Addresses::default();
            addresses.insert("0000:41:00.0".into(), String::new());
            proptest::prop_assume!(!text.contains("0000:41:00.0"));
            assert_eq!(addresses.in_text(&text), text);
        }
    }

    #[test]
    fn without_devices_nothing_is_translated() {
        let mut process = Process::default();
        process.set_env(Some(vec!["PCIDEVICE_X=a".into()]));
        Addresses::default().translate(&mut process).unwrap();
        assert_eq!(process.env().as_deref(), Some(&["PCIDEVICE_X=a".into()][..]));
    }
}
