use std::fs;

use super::*;

const MINIMAL: &str = "name = \"x\"\ndescription = \"\"\npackages = [\"skopeo\"]\n[usr]\nprograms = []\n";

/// The recipe `x.toml` of a directory with these files.
fn read(files: &[(&str, &str)]) -> Result<Recipe, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), text).unwrap();
    }
    let read = Recipe::read(&dir.path().join("x.toml"));
    read.map_err(|error| format!("{error:#}").replace(&format!("{}/", dir.path().display()), ""))
}

fn file<'a>(recipe: &'a Recipe, path: &str) -> Option<&'a str> {
    recipe.entries.iter().find(|entry| entry.path == path).map(|entry| match &entry.content {
        Content::Own(Node::File(_, bytes)) => str::from_utf8(bytes).unwrap(),
        other => panic!("{path} is {other:?}"),
    })
}

#[test]
fn what_is_wrong_has_its_place() {
    let with = |more: &str| format!("{MINIMAL}{more}");
    let helper = |more: &str| {
        with(&format!("programs = [\"/usr/a\"]\n[[helpers]]\nname = \"a\"\n{more}")).replace("programs = []\n", "")
    };
    for (bad, error) in [
        (MINIMAL.replace("[usr]", "[user]"), "x.toml:4:2: unknown field `user`"),
        (MINIMAL.replace("[usr]", "[user]"), "did you mean `users`?"),
        (MINIMAL.replace("\"x\"", "\"../x\""), "x.toml:1:8: a name has small letters"),
        (MINIMAL.replace("skopeo", "-o=x"), "x.toml:3:13: \"-o=x\" is no Debian package's name"),
        (MINIMAL.replace("programs = []", "programs = 3"), "x.toml:5:12: invalid type"),
        (MINIMAL.replace("programs = []", "programs = [\"/bin/x\"]"), "x.toml:5:13: programs lie below /usr"),
        (MINIMAL.replace("name = ", "name = = "), "x.toml:1:8: "),
        (with("helpers = [\"../sh\"]"), "x.toml:6:12: \"../sh\" is no program of ours"),
        (with("[[files]]\npath = \"/a\"\n"), "x.toml:7:8: a file has content, a source, or a package"),
        (with("[[files]]\npath = \"/a/../b\"\ncontent = \"\"\n"), "x.toml:7:8: /a/../b: a path in an image has no"),
        (with("[[files]]\npath = \"/a\"\nmode = \"0789\"\ncontent = \"\"\n"), "x.toml:8:8: mode \"0789\" is no octal"),
        (with("[[files]]\npath = \"/a\"\nmode = \"10000\"\ncontent = \"\"\n"), "x.toml:8:8: mode"),
        (with("[[files]]\npath = \"/a\"\nsource = \"../x\"\n"), "x.toml:8:10: \"../x\" leads out of"),
        (with("[[files]]\npath = \"/a\"\nsource = \"/etc/passwd\"\n"), "x.toml:8:10: \"/etc/passwd\" leads out of"),
        (with("[[files]]\npath = \"/a\"\nsource = \"none\"\n"), "x.toml:8:10: read none: No such file"),
        (with("[[files]]\npath = \"/init\"\ncontent = \"\"\n"), "x.toml:7:8: /init: stands there already (the agent)"),
        (
            with("[[files]]\npath = \"/etc/group\"\ncontent = \"\"\n"),
            "users of x: /etc/group: stands there already (x.toml:7:8)",
        ),
        (with("[[symlinks]]\npath = \"/a\"\ntarget = \"\"\n"), "x.toml:8:10: a link leads somewhere"),
        (with("[[users]]\nname = \"A\"\nuid = 1\ngid = 1\n"), "x.toml:7:8: a user's name"),
        (with("[[users]]\nname = \"a\"\nuid = 0\ngid = 1\n"), "x.toml:7:8: there is a user a or a uid 0 already"),
        (with("[[users]]\nname = \"a\"\nuid = 1\ngid = 1\nhome = \"a:b\"\n"), "is no whole path"),
        (format!("policy = \"maybe\"\n{MINIMAL}"), "x.toml:1:10: a policy is"),
        (format!("policy = \"../x.rego\"\n{MINIMAL}"), "x.toml:1:10: \"../x.rego\" leads out of"),
        (format!("extends = \"../x\"\n{MINIMAL}"), "x.toml:1:11: extends names a recipe"),
        (format!("extends = \"x\"\n{MINIMAL}"), "x.toml:1:11: a recipe can't extend itself"),
        (format!("extends = \"y\"\n{MINIMAL}"), "x.toml:1:11: extends \"y\": read y.toml: No such file"),
        (with("[kernel]\nparameters = [\"a b\"]\n"), "x.toml:7:15: \"a b\" is no single word"),
        (with("[outputs]\nfloppy = true\n"), "x.toml:7:1: unknown field `floppy`"),
        (helper("program = \"a\"\n"), "x.toml:8:11: a program and a socket are whole paths"),
        (helper("program = \"/usr/a\"\nready = \"run/x\"\n"), "x.toml:9:9: a program and a socket are whole paths"),
        (helper("program = \"/usr/b\"\n"), "x.toml:7:8: its program /usr/b is not in the image"),
        (
            helper("program = \"/usr/a\"\nafter = [\"b\"]\n"),
            "x.toml:7:8: helper \"a\": it is to start after one that is not there",
        ),
        (helper("program = \"/usr/a\"\nafter = [\"a\"]\n"), "or that is to start after it"),
        (helper("program = \"/usr/a\"\noom_score_adj = -998\n"), "x.toml:9:17: oom_score_adj"),
        (
            helper("program = \"/usr/a\"\n[[helpers]]\nname = \"a\"\nprogram = \"/usr/a\"\n"),
            "x.toml:10:8: there is a helper \"a\"",
        ),
        (helper("program = \"/usr/a\"\n").replace("\"a\"", "\"A\""), "x.toml:7:8: a helper's name"),
    ] {
        let said = read(&[("x.toml", &bad)]).unwrap_err();
        assert!(said.contains(error), "{said}, not {error}");
    }
}

#[test]
fn what_is_extended_comes_along_and_can_be_overruled() {
    let base = "name = \"y\"\ndescription = \"\"\npackages = [\"skopeo\", \"bash\"]\npolicy = \"deny\"\n[usr]\nprograms = [\"/usr/bin/skopeo\"]\n\
                [kernel]\nimage = \"bzImage\"\nparameters = [\"agent.log=warn\"]\n[[directories]]\npath = \"/proc\"\n";
    let own = "name = \"x\"\ndescription = \"\"\nextends = \"y\"\npackages = [\"bash\", \"strace\"]\npolicy = \"allow\"\n\
               [kernel]\nparameters = [\"debug\"]\n";
    let recipe = read(&[("x.toml", own), ("y.toml", base)]).unwrap();
    let packages: Vec<_> = recipe.packages.iter().map(|package| package.value.as_str()).collect();
    assert_eq!((recipe.name.as_str(), packages.as_slice()), ("x", ["skopeo", "bash", "strace"].as_slice()));
    assert_eq!(recipe.kernel.parameters, ["agent.log=warn", "debug"]);
    assert_eq!(recipe.kernel.image, crate::outputs::KernelImage::BzImage);
    assert_eq!(file(&recipe, POLICY), None);
    assert_eq!(recipe.sha256, manifest::digest(format!("{base}{own}").as_bytes()));
    let clash = format!("{own}[[files]]\npath = \"/proc\"\ncontent = \"\"\n");
    let error = read(&[("x.toml", &clash), ("y.toml", base)]).unwrap_err();
    assert_eq!(error, "x.toml:9:8: /proc: stands there already (y.toml:11:8)");
    let ring = base.replace("packages", "extends = \"x\"\npackages");
    assert!(
        read(&[("x.toml", own), ("y.toml", &ring)]).unwrap_err().contains("y.toml:3:11: a recipe can't extend itself")
    );
}

#[test]
fn a_policy_seals_an_image_and_debug_opens_a_shell() {
    let deny = format!("policy = \"deny\"\n{MINIMAL}[kernel]\nparameters = [\"quiet\", \"agent.log=warn\"]\n");
    let recipe = read(&[("x.toml", &deny)]).unwrap();
    assert_eq!((file(&recipe, POLICY), file(&recipe, SEALED)), (Some(DENY), Some("agent.log=warn\n")));
    assert_eq!(file(&recipe, DEBUG_CONSOLE), None);
    let own = format!("policy = \"p.rego\"\ndebug = true\n{MINIMAL}");
    let recipe = read(&[("x.toml", &own), ("p.rego", "package agent_policy")]).unwrap();
    assert_eq!((file(&recipe, POLICY), file(&recipe, DEBUG_CONSOLE)), (Some("package agent_policy"), Some("")));
    assert_eq!(recipe.kernel.parameters, DEBUG_PARAMETERS);
    let recipe = read(&[("x.toml", MINIMAL)]).unwrap();
    assert_eq!((file(&recipe, POLICY), file(&recipe, SEALED), file(&recipe, DEBUG_CONSOLE)), (None, None, None));
}

#[test]
fn users_have_accounts_and_files_come_from_beside() {
    let more = "[[users]]\nname = \"a\"\nuid = 7\ngid = 8\nhome = \"/srv\"\n[[users]]\nname = \"b\"\nuid = 9\ngid = 8\n\
                [[files]]\npath = \"/etc/motd\"\nsource = \"files/motd\"\n";
    let recipe = read(&[("x.toml", &format!("{MINIMAL}{more}")), ("files/motd", "hello")]).unwrap();
    let passwd = "root:x:0:0:root:/:/sbin/nologin\na:x:7:8::/srv:/sbin/nologin\nb:x:9:8::/nonexistent:/sbin/nologin\n";
    assert_eq!(file(&recipe, "/etc/passwd"), Some(passwd));
    assert_eq!(file(&recipe, "/etc/group"), Some("root:x:0:\na:x:8:\n"));
    assert_eq!(file(&recipe, "/etc/motd"), Some("hello"));
}

/// As the agent reads it.
#[test]
fn helpers_are_written_whole() {
    let more = "args = [\"-x\"]\nenv = { K = \"V\" }\nuid = 1\ngid = 2\nrestart = \"never\"\noom_score_adj = 3\n";
    let program = MINIMAL.replace("[]", "[\"/usr/bin/a\"]");
    let text = format!("{program}[[helpers]]\nname = \"a\"\nprogram = \"/usr/bin/a\"\n{more}");
    let recipe = read(&[("x.toml", &text)]).unwrap();
    let table: serde_json::Value = serde_json::from_str(file(&recipe, HELPER_TABLE).unwrap()).unwrap();
    let expected = r#"[{"name":"a","program":"/usr/bin/a","args":["-x"],"env":{"K":"V"},"uid":1,"gid":2,"restart":"never","ready":null,"after":[],"oom_score_adj":3}]"#;
    assert_eq!(table, serde_json::from_str::<serde_json::Value>(expected).unwrap());
}
