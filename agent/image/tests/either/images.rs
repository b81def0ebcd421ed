//! Images as they should be, and as they should not.

use std::fs;
use std::time::{Duration, Instant};

use nacre_pull::{Auth, Event, Kind, Request, Server, client};

use super::whoever_talks;
use crate::fixture::Compression::{Gzip, None as Plain, Zstd};
use crate::fixture::{self, Image, Middle, Moody, PASSWORD, Registry, USER, archive, noise};
use crate::{SILENCE, base64, count, plain, pull, secure, worker};

whoever_talks! {
    an_image_of_every_compression_is_pulled_and_its_layers_are_used_again
    an_image_is_found_by_digest_by_platform_and_in_dockers_format
    why_a_registry_gives_nothing_is_told_apart
    wrong_bytes_never_become_a_layer
    two_pulls_at_once_of_one_image_both_succeed
    a_registry_that_stops_in_the_middle_ends_the_pull_and_leaves_nothing
    what_a_killed_pull_leaves_is_not_taken_for_whole_and_goes_with_the_next
    a_transfer_that_breaks_off_goes_on_from_where_it_was
    a_blob_that_never_ends_is_cut_where_it_should_end
    a_layout_and_an_archive_of_one_are_images_too
    an_image_of_500_layers_is_pulled_in_order_and_one_of_more_is_refused
}

async fn an_image_of_every_compression_is_pulled_and_its_layers_are_used_again(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let big = noise(3 << 20);
    let lowest = (archive(&[("a", b"lowest"), ("big", &big)]), Plain);
    let layers =
        [lowest.clone(), (archive(&[("a", b"gzip")]), Gzip), (archive(&[(".wh.a", b"")]), Zstd), lowest.clone()];
    let image = Image::new(&layers, "amd64");
    registry.push("every:1", &[(&image, "amd64")], &["--preserve-digests"]);
    let store = tempfile::tempdir().unwrap();

    let mut events = Vec::new();
    let request = secure(server, &registry, "every:1", store.path());
    let pulled = client::pull(worker(server), request.clone(), |event| events.push(event.clone())).await.unwrap();
    assert_eq!(pulled.manifest_digest, image.manifest);
    // The lowest layer is hidden by the topmost, which is the same.
    let [gzip, zstd, plain] = &pulled.layers[..] else { panic!("{:?}", pulled.layers) };
    assert_eq!(fs::read(gzip.join("a")).unwrap(), b"gzip");
    assert!(fs::symlink_metadata(zstd.join("a")).is_ok_and(|meta| !meta.is_file()));
    assert!(fs::read(plain.join("big")).unwrap() == big);
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["/bin/true"]);
    let Some(Event::Resolved { bytes, layers: 3, .. }) = events.get(1) else { panic!("{events:?}") };
    let last = events.iter().rev().find_map(|event| match event {
        Event::Progress { layers_done, bytes_done } => Some((*layers_done, *bytes_done)),
        _ => None,
    });
    assert_eq!(last, Some((3, *bytes)));

    // What the store has is not fetched again.
    for layer in &image.layers[..3] {
        fs::remove_file(registry.blob(layer)).unwrap();
    }
    assert_eq!(pull(request).await.unwrap(), pulled);
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (3, 0));
}

async fn an_image_is_found_by_digest_by_platform_and_in_dockers_format(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"ours")]), Gzip)], "amd64");
    let other = Image::new(&[(archive(&[("a", b"other")]), Gzip)], "s390x");
    let index = registry.push("both:1", &[(&other, "s390x"), (&image, "amd64")], &["--preserve-digests"]);
    registry.push("docker:1", &[(&image, "amd64")], &["--format=v2s2"]);
    registry.push("other:1", &[(&other, "s390x")], &[]);
    let store = tempfile::tempdir().unwrap();
    let found = async |name: &str| {
        // Credentials come either way.
        let mut request = secure(server, &registry, name, store.path());
        if name == "docker:1" {
            let (host, _) = request.reference.split_once('/').unwrap();
            let auths = serde_json::json!({ host: { "auth": base64(format!("{USER}:{PASSWORD}").as_bytes()) } });
            request.auth_file = Some(serde_json::json!({ "auths": auths }).to_string());
            request.auth = None;
        }
        pull(request).await
    };
    for name in ["both:1", &format!("both@{index}"), &format!("both:1@{}", image.manifest), "docker:1"] {
        let pulled = found(name).await.unwrap();
        assert_eq!(fs::read(pulled.layers[0].join("a")).unwrap(), b"ours", "{name}");
    }
    assert_eq!(found("both:1").await.unwrap().manifest_digest, image.manifest);
    // What skopeo has converted can be judged by nobody.
    let policy = Some(serde_json::json!({ "default": [{ "type": "insecureAcceptAnything" }] }).to_string());
    let judged = Request { policy, ..secure(server, &registry, "docker:1", store.path()) };
    match (server, pull(judged).await) {
        (Server::Own, judged) => drop(judged.unwrap()),
        (Server::Skopeo, judged) => assert_eq!(judged.unwrap_err().kind(), Kind::Denied),
    }
    assert_eq!(found("other:1").await.unwrap_err().kind(), Kind::BadImage);
}

async fn why_a_registry_gives_nothing_is_told_apart(server: Server) {
    let Some(registry) = Registry::start() else { return };
    registry.push("a:1", &[(&Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64"), "amd64")], &[]);
    let store = tempfile::tempdir().unwrap();
    let good = secure(server, &registry, "a:1", store.path());
    let wrong = Auth { username: USER.into(), password: "wrong".into() };
    for (request, kind, advice) in [
        (Request { auth: Some(wrong), ..good.clone() }, Kind::Unauthorized, "password"),
        (Request { auth: None, ..good.clone() }, Kind::Unauthorized, "password"),
        (Request { ca_pem: None, ..good.clone() }, Kind::UntrustedCa, "--tls-ca"),
        (secure(server, &registry, "a:2", store.path()), Kind::NotFound, "name and tag"),
        (secure(server, &registry, "b:1", store.path()), Kind::NotFound, "name and tag"),
        (Request { reference: "127.0.0.1:1/a:1".into(), ..good.clone() }, Kind::Unreachable, "is it up"),
        (Request { reference: "-a".into(), ..good.clone() }, Kind::BadRequest, "registry/name:tag"),
    ] {
        let shown = format!("{request:?}");
        let error = pull(request).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error} {shown}");
        let text = error.to_string();
        assert!(text.contains(advice) && !text.contains('\n') && !text.contains("wrong"), "{text}");
    }
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (0, 0));
}

async fn wrong_bytes_never_become_a_layer(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let store = tempfile::tempdir().unwrap();
    let data = noise(1 << 20);
    for (name, compression) in [("plain:1", Plain), ("gzip:1", Gzip), ("zstd:1", Zstd)] {
        let image = Image::new(&[(archive(&[(name, &data)]), compression)], "amd64");
        registry.push(name, &[(&image, "amd64")], &["--preserve-digests"]);
        let blob = registry.blob(&image.layers[0]);
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let error = pull(secure(server, &registry, name, store.path())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{name}: {error}");
        fs::write(&blob, &data).unwrap();
        let error = pull(secure(server, &registry, name, store.path())).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::Stalled), "{name}: {error}");
    }
    let layer = (archive(&[("a", b"x")]), Gzip);
    let liar = Image::with_diff_ids(&[layer], "amd64", &[fixture::digest(b"something else")]);
    registry.push("liar:1", &[(&liar, "amd64")], &["--preserve-digests"]);
    let error = pull(secure(server, &registry, "liar:1", store.path())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BadImage, "{error}");
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (0, 0));
}

async fn two_pulls_at_once_of_one_image_both_succeed(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let layers = [(archive(&[("a", &noise(1 << 20))]), Zstd), (archive(&[("b", b"x")]), Gzip)];
    registry.push("a:1", &[(&Image::new(&layers, "amd64"), "amd64")], &[]);
    let store = tempfile::tempdir().unwrap();
    let request = secure(server, &registry, "a:1", store.path());
    let (first, second) = tokio::join!(pull(request.clone()), pull(request));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (2, 0));
}

async fn a_registry_that_stops_in_the_middle_ends_the_pull_and_leaves_nothing(server: Server) {
    let Some(_) = Registry::start() else { return };
    let layers = [(archive(&[("a", &noise(1 << 20))]), Gzip), (archive(&[("b", &noise(1 << 20))]), Plain)];
    let image = Image::new(&layers, "amd64");
    let store = tempfile::tempdir().unwrap();
    // skopeo waits for ever, and we for it: three silences and ten seconds.
    let longest = if server == Server::Own { 3 * SILENCE } else { 3 * SILENCE + Duration::from_secs(15) };
    for middle in [Middle::Closes, Middle::Stalls] {
        let moody = Moody::start(&image, &image.layers[0], middle);
        let begun = Instant::now();
        let error = pull(plain(server, &moody, store.path())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Stalled, "{error}");
        assert!(begun.elapsed() < longest, "{error}: after {:?}", begun.elapsed());
        assert_eq!(count(store.path(), "partial"), 0, "{error}");
        moody.change(Middle::Goes);
        let whole = pull(plain(server, &moody, store.path())).await.unwrap();
        assert_eq!(whole.layers.len(), 2);
        fs::remove_dir_all(store.path().join("layers")).unwrap();
    }
}

async fn what_a_killed_pull_leaves_is_not_taken_for_whole_and_goes_with_the_next(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Gzip)], "amd64");
    let moody = Moody::start(&image, &image.layers[0], Middle::Stalls);
    let store = tempfile::tempdir().unwrap();
    {
        let (told, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        let told = move |event: &Event| {
            if matches!(event, Event::Resolved { .. }) {
                let _ = told.send(());
            }
        };
        tokio::select! {
            result = client::pull(worker(server), plain(server, &moody, store.path()), told) => panic!("{result:?}"),
            () = async {
                arrived.recv().await;
                while count(store.path(), "partial") == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await; // a directory that appears tells nobody
                }
            } => {}
        }
    }
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (0, 1));
    // The worker is dead once its lock can be had.
    let left = fs::read_dir(store.path().join("partial")).unwrap().next().unwrap().unwrap().path();
    rustix::fs::flock(fs::File::open(left).unwrap(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    moody.change(Middle::Goes);
    pull(plain(server, &moody, store.path())).await.unwrap();
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (1, 0));
}

async fn a_transfer_that_breaks_off_goes_on_from_where_it_was(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Plain)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, &image.layers[0], Middle::ClosesOnce);
    pull(plain(server, &moody, store.path())).await.unwrap();
    let ranges: Vec<_> = moody.asked().into_iter().filter(|asked| asked.contains("\nrange: bytes=")).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
}

async fn a_blob_that_never_ends_is_cut_where_it_should_end(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, &image.layers[0], Middle::NeverEnds);
    assert_eq!(pull(plain(server, &moody, store.path())).await.unwrap().layers.len(), 1);
}

async fn a_layout_and_an_archive_of_one_are_images_too(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Zstd)], "amd64");
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Image::write(&dir.path().join("layout"), &[(&image, "amd64")]);
    let tar = dir.path().join("archive.tar");
    let mut archive = tar::Builder::new(fs::File::create(&tar).unwrap());
    archive.append_dir_all(".", dir.path().join("layout")).unwrap();
    archive.finish().unwrap();
    let layout = format!("oci:{}:image", dir.path().join("layout").display());
    let plain = format!("dir:{}", dir.path().join("plain").display());
    let mut skopeo = std::process::Command::new("skopeo");
    fixture::run(skopeo.args(["copy", "--quiet", "--insecure-policy", &layout, &plain]));
    let of = |reference: &str| {
        let request = serde_json::json!({ "reference": reference, "store": store.path(),
            "skip_tls_verification": false, "server": server });
        pull(serde_json::from_value(request).unwrap())
    };
    for reference in [&layout, &format!("oci-archive:{}", tar.display()), &plain] {
        let pulled = of(reference).await;
        if *reference == plain && server == Server::Own {
            let error = pulled.unwrap_err();
            assert!(error.kind() == Kind::BadRequest && error.to_string().contains("skopeo"), "{error}");
            continue;
        }
        assert_eq!(fs::read(pulled.unwrap().layers[0].join("a")).unwrap(), b"x");
        fs::remove_dir_all(store.path().join("layers")).unwrap();
        // skopeo unpacks an archive, and nothing of that stays.
        assert_eq!(count(store.path(), "partial"), 0, "{reference}");
    }
}

async fn an_image_of_500_layers_is_pulled_in_order_and_one_of_more_is_refused(server: Server) {
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |count: usize| {
        let layers: Vec<_> = (0..count).map(|n| (archive(&[("a", n.to_string().as_bytes())]), Gzip)).collect();
        let layout = dir.path().join(count.to_string());
        Image::write(&layout, &[(&Image::new(&layers, "amd64"), "amd64")]);
        let reference = format!("oci:{}:image", layout.display());
        let request = serde_json::json!({ "reference": reference, "store": store.path(), "skip_tls_verification": false, "server": server });
        pull(serde_json::from_value(request).unwrap())
    };
    let pulled = of(500).await.unwrap();
    let found: Vec<_> = pulled.layers.iter().map(|layer| fs::read_to_string(layer.join("a")).unwrap()).collect();
    assert_eq!(found, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    let error = of(501).await.unwrap_err();
    assert!(error.kind() == Kind::BadImage && error.to_string().contains("at most 500"), "{error}");
}
