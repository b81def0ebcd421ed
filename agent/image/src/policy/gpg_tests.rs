//! Signatures that GnuPG makes.

use std::process::{Command, Stdio};

use super::*;

/// GnuPG with a home of its own.
struct Gpg(tempfile::TempDir);

impl Gpg {
    fn new() -> Option<Gpg> {
        let found = Command::new("gpg").arg("--version").stdout(Stdio::null()).status().is_ok();
        if !found {
            println!("skipped: gpg is not installed");
        }
        found.then(|| Gpg(tempfile::tempdir().unwrap()))
    }

    fn run(&self, args: &[&str]) -> Vec<u8> {
        let mut command = Command::new("gpg");
        command.args(["--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""]);
        let output = command.args(args).env("GNUPGHOME", self.0.path()).output().unwrap();
        assert!(output.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn key(&self, name: &str, kind: &str, life: &str) {
        self.run(&["--quick-generate-key", name, kind, "sign", life]);
    }

    fn fingerprint(&self, name: &str) -> String {
        let listed = String::from_utf8(self.run(&["--with-colons", "--list-keys", name])).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().to_string()
    }

    fn export(&self, name: &str) -> Vec<Keyring> {
        vec![Keyring::parse(&self.run(&["--export", name])).unwrap()]
    }

    /// As containers/image signs: a message with the statement in it.
    fn sign(&self, name: &str, args: &[&str]) -> Vec<u8> {
        let file = self.0.path().join("statement");
        std::fs::write(&file, "statement").unwrap();
        let file = file.to_str().unwrap();
        self.run(&[args, &["--local-user", name, "--output", "-", "--sign", file]].concat())
    }

    fn revoke(&self, name: &str) {
        let fingerprint = self.fingerprint(name);
        let path = self.0.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
        // GnuPG puts a colon before it, so that nobody does this by accident.
        let text = std::fs::read_to_string(&path).unwrap().replace(":-----BEGIN", "-----BEGIN");
        std::fs::write(&path, text).unwrap();
        self.run(&["--import", path.to_str().unwrap()]);
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let end = Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", self.0.path()).status();
        drop(end); // its agent goes with its directory, too
    }
}

fn in_days(days: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(days * 86_400)
}

#[test]
fn a_message_says_what_a_key_of_the_policy_has_signed() {
    let Some(gpg) = Gpg::new() else { return };
    for (name, kind) in [("a@h.io", "ed25519"), ("b@h.io", "rsa2048"), ("c@h.io", "nistp256")] {
        gpg.key(name, kind, "0");
        for args in [&[][..], &["--compress-level", "0"], &["--digest-algo", "SHA512"], &["--armor"]] {
            let message = gpg.sign(name, args);
            let result = verify(&message, &gpg.export(name), SystemTime::now());
            if args == ["--armor"] {
                assert!(result.unwrap_err().contains("no signed OpenPGP message"));
            } else {
                assert_eq!(result.unwrap(), b"statement", "{kind} {args:?}");
            }
        }
    }
    let (message, keys) = (gpg.sign("a@h.io", &[]), gpg.export("a@h.io"));
    assert!(verify(&message, &gpg.export("b@h.io"), SystemTime::now()).unwrap_err().contains("no key of the policy"));
    let both = Keyring::parse(&gpg.run(&["--armor", "--export"])).unwrap();
    assert_eq!(verify(&gpg.sign("c@h.io", &[]), &[both], SystemTime::now()).unwrap(), b"statement");
    // Two signers, one of whom is trusted.
    let two = gpg.sign("b@h.io", &["--local-user", "a@h.io"]);
    assert_eq!(verify(&two, &keys, SystemTime::now()).unwrap(), b"statement");
}

#[test]
fn what_has_ended_or_was_revoked_vouches_for_nothing() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("short@h.io", "ed25519", "2d");
    gpg.key("long@h.io", "ed25519", "0");
    let refused = |message: &[u8], name: &str, now, why: &str| {
        let error = verify(message, &gpg.export(name), now).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    let message = gpg.sign("short@h.io", &[]);
    assert!(verify(&message, &gpg.export("short@h.io"), in_days(1)).is_ok());
    refused(&message, "short@h.io", in_days(3), "has expired");
    let message = gpg.sign("long@h.io", &["--default-sig-expire", "2d"]);
    assert!(verify(&message, &gpg.export("long@h.io"), in_days(1)).is_ok());
    refused(&message, "long@h.io", in_days(3), "it has expired");
    for other in [&["--digest-algo", "SHA1"][..], &["--textmode"]] {
        assert!(verify(&gpg.sign("long@h.io", other), &gpg.export("long@h.io"), in_days(0)).is_err(), "{other:?}");
    }
    gpg.revoke("long@h.io");
    refused(&gpg.sign("short@h.io", &[]), "long@h.io", in_days(0), "no key of the policy");
    refused(&message, "long@h.io", in_days(1), "revoked");
}

#[test]
fn a_key_for_signing_that_another_vouches_for_is_good_until_it_is_revoked() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("a@h.io", "ed25519", "0");
    gpg.key("b@h.io", "ed25519", "0");
    let fingerprint = gpg.fingerprint("a@h.io");
    gpg.run(&["--quick-add-key", &fingerprint, "ed25519", "sign", "2d"]);
    let message = gpg.sign("a@h.io", &[]); // the newest signs
    let keys = gpg.export("a@h.io");
    assert_eq!(verify(&message, &keys, in_days(1)).unwrap(), b"statement");
    assert!(verify(&message, &keys, in_days(3)).unwrap_err().contains("has expired"));
    // Whoever takes another's key for his own has no word of it that he has.
    let (Some(thief), Some(owner)) = (gpg.export("b@h.io").pop(), keys.into_iter().next()) else { panic!() };
    let mut stolen = thief.0.into_iter().next().unwrap();
    stolen.public_subkeys = owner.0.into_iter().next().unwrap().public_subkeys;
    let error = verify(&message, &[Keyring(vec![stolen])], in_days(1)).unwrap_err();
    assert!(error.contains("belongs to no other"), "{error}");
}

#[test]
fn what_is_no_key_or_no_message_is_refused() {
    for text in [&b""[..], b"key", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----\n"] {
        assert!(Keyring::parse(text).is_err());
        assert!(verify(text, &[], SystemTime::now()).is_err());
    }
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("a@h.io", "ed25519", "0");
    let (message, keys) = (gpg.sign("a@h.io", &["--compress-level", "0"]), gpg.export("a@h.io"));
    for length in 0..message.len() {
        assert!(verify(&message[..length], &keys, SystemTime::now()).is_err(), "{length}");
    }
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        // What is outside of the signature (a date, a name of a file) may change; what was signed may not.
        let result = verify(&changed, &keys, SystemTime::now());
        assert!(result.is_err() || result.unwrap() == b"statement", "{at}");
    }
    let file = gpg.0.path().join("large");
    std::fs::write(&file, vec![0; 4 << 20]).unwrap();
    let bomb = gpg.run(&["--local-user", "a@h.io", "--output", "-", "--sign", file.to_str().unwrap()]);
    assert!(bomb.len() < 64 << 10);
    assert!(verify(&bomb, &keys, SystemTime::now()).unwrap_err().contains("more than"));
}
