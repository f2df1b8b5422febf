//! What archives are, and what is none.

use gitopsd::config::agent::S3Config;
use gitopsd::types::{ImageRef, PinnedImage, Reason};
use serde_json::json;

use super::host;
use super::make::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_form_in_every_packing() {
    let image = small();
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let forms = [
        ("docker save", docker_save(&image)),
        ("oci", oci(&image, plain, <[u8]>::to_vec)),
        ("oci gzip", oci(&image, "application/vnd.oci.image.layer.v1.tar+gzip", gzip)),
        ("oci zstd", oci(&image, "application/vnd.oci.image.layer.v1.tar+zstd", zstd)),
    ];
    let packings: [(&str, Pack); 9] = [
        ("plain", <[u8]>::to_vec),
        ("gzip", gzip),
        ("zstd", zstd),
        ("xz", xz),
        ("two gzip members", |bytes| twice(gzip, bytes)),
        ("two zstd frames", |bytes| twice(zstd, bytes)),
        ("bzip2", bzip2),
        ("two bzip2 streams", |bytes| twice(bzip2, bytes)),
        ("two xz streams", |bytes| twice(xz, bytes)),
    ];
    for (form, archive) in forms {
        let mut identity = None;
        for (packing, pack) in packings {
            let host = host(S3Config::default());
            let (digest, _) = host
                .pull(&host.put("image", &pack(&archive)))
                .await
                .unwrap_or_else(|error| panic!("{form}, {packing}: {error}"));
            assert_eq!(host.file(&digest, "etc/base").as_deref(), Some(&b"base"[..]), "{form}, {packing}");
            assert_eq!(host.file(&digest, "srv/x"), Some(noise(70_000, 3)), "{form}, {packing}");
            assert_eq!(*identity.get_or_insert(digest.clone()), digest, "{form}, {packing}: its identity");
            host.assert_nothing_unfinished();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_file_system() {
    let root = tar(&[("etc/hostname", b"x"), ("bin/tool", &noise(10_000, 1))]);
    for pack in [<[u8]>::to_vec, gzip as Pack, xz] {
        let host = host(S3Config::default());
        let (digest, _) = host.pull(&host.put("root", &pack(&root))).await.unwrap();
        assert_eq!(host.file(&digest, "bin/tool"), Some(noise(10_000, 1)));
        host.assert_nothing_unfinished();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let image = small();
    let good = docker_save(&image);
    let mut flipped = good.clone();
    let at = flipped.windows(3).position(|part| part == b"app").unwrap();
    flipped[at] ^= 1;
    let outside = json!([{ "Config": "../../etc/passwd", "Layers": [] }]).to_string();
    let double = [("manifest.json", &b"[]"[..]), ("manifest.json", &b"[]"[..])];
    // Its last entry's header, without the two blocks of the end.
    let cut = good.len() - 1024 - 700;
    let root = tar(&[("etc/a", b"a"), ("srv/x", &noise(70_000, 3))]);
    let rows: Vec<(&str, Vec<u8>, Reason, &str)> = vec![
        ("a flipped bit", flipped, Reason::DigestMismatch, "digest"),
        ("cut off", good[..good.len() / 2].to_vec(), Reason::ImageInvalid, "cut short: "),
        (
            "cut off within a header",
            good[..cut].to_vec(),
            Reason::ImageInvalid,
            "cut short within the header",
        ),
        ("cut off, packed", gzip(&good)[..20_000].to_vec(), Reason::ImageInvalid, "it is cut short ("),
        ("cut off, as zstd", zstd(&good)[..20_000].to_vec(), Reason::ImageInvalid, "it is cut short ("),
        ("a root cut off", root[..5_000].to_vec(), Reason::ImageInvalid, "cut short: "),
        (
            "a page",
            b"<html>Sign in</html>".to_vec(),
            Reason::ImageInvalid,
            "no tar archive: it has only 20 bytes",
        ),
        ("text, packed", gzip(b"hello"), Reason::ImageInvalid, "no tar archive"),
        ("no images", tar(&[("manifest.json", b"[]")]), Reason::ImageInvalid, "names no image"),
        ("a way out", tar(&[("manifest.json", outside.as_bytes())]), Reason::ImageInvalid, "passwd"),
        ("two tables", tar(&double), Reason::ImageInvalid, "twice"),
        ("no archive", noise(4096, 9), Reason::ImageInvalid, "it is no tar archive"),
        ("only a layout", tar(&[("oci-layout", b"{}")]), Reason::ImageInvalid, "without index.json"),
        ("not a byte", Vec::new(), Reason::ImageInvalid, "is empty"),
        ("nothing, packed", gzip(b""), Reason::ImageInvalid, "holds nothing"),
        ("no entries", tar(&[]), Reason::ImageInvalid, "holds nothing"),
        ("no entries, packed", zstd(&tar(&[])), Reason::ImageInvalid, "holds nothing"),
        ("only a root", only_a_root(), Reason::ImageInvalid, "holds nothing"),
    ];
    for (what, bytes, reason, part) in rows {
        let host = host(S3Config::default());
        let error = host.pull(&host.put("image", &bytes)).await.unwrap_err();
        assert_eq!(error.reason, reason, "{what}: {error}");
        assert!(error.to_string().contains(part), "{what}: {error}");
        assert!(error.to_string().contains("/image"), "{what}: it is named: {error}");
        assert!(!error.to_string().contains("/store/tmp/"), "{what}: not the copy: {error}");
        host.assert_nothing_unfinished();
    }
    let host = host(S3Config::default());
    let error = host.pull("file:///nonexistent/image.tar").await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
}

/// An image archive with something else in it is never taken for a root file system.
#[tokio::test(flavor = "multi_thread")]
async fn strays_do_not_make_a_root_file_system() {
    let image = small();
    let forms = [docker_save(&image), oci(&image, "application/vnd.oci.image.layer.v1.tar+gzip", gzip)];
    for archive in forms {
        for stray in ["README.md", "var/lib/x", "blobs/sha512/x", "._manifest.json"] {
            for place in [0, 1, usize::MAX] {
                for pack in [<[u8]>::to_vec, gzip as Pack] {
                    let host = host(S3Config::default());
                    let with = insert(&archive, place, stray);
                    let error = host.pull(&host.put("image", &pack(&with))).await.unwrap_err();
                    assert_eq!(error.reason, Reason::ImageInvalid, "{stray} at {place}: {error}");
                    assert!(error.to_string().contains(stray), "{stray} at {place}: {error}");
                    host.assert_nothing_unfinished();
                }
            }
        }
    }
    // What only looks a little like one is one.
    let site =
        tar(&[("manifest.json", b"{}"), ("index.json", b"{}"), ("srv/x", b"x"), ("oci/oci-layout", b"")]);
    let host = host(S3Config::default());
    let (digest, _) = host.pull(&host.put("root", &site)).await.unwrap();
    assert_eq!(host.file(&digest, "manifest.json").as_deref(), Some(&b"{}"[..]));
}

/// Of several images none is taken by chance; one with several names, or several times there, is one.
#[tokio::test(flavor = "multi_thread")]
async fn one_image_with_one_or_more_names() {
    let (first, second) = (small(), image(vec![tar(&[("etc/other", b"other")])]));
    let media = "application/vnd.oci.image.layer.v1.tar";
    let two_names = [(&first, "app:1", false), (&first, "app:latest", false)];
    for archive in [
        oci_of(&two_names, media, <[u8]>::to_vec),
        oci_of(&[(&first, "app:1", true), (&first, "app:2", true)], media, <[u8]>::to_vec),
        docker_save_of(&[(&first, "app:1"), (&first, "app:latest")]),
    ] {
        let host = host(S3Config::default());
        let (digest, _) = host.pull(&host.put("image", &archive)).await.unwrap();
        assert_eq!(host.file(&digest, "etc/app").as_deref(), Some(&b"app"[..]));
    }
    for archive in [
        oci_of(&[(&first, "app:1", false), (&second, "app:2", false)], media, <[u8]>::to_vec),
        oci_of(&[(&first, "app:1", true), (&second, "app:2", true)], media, <[u8]>::to_vec),
        docker_save_of(&[(&first, "app:1"), (&second, "app:2")]),
    ] {
        let host = host(S3Config::default());
        let error = host.pull(&host.put("image", &archive)).await.unwrap_err();
        assert_eq!(error.reason, Reason::ImageInvalid, "{error}");
        for part in ["2 images", "app:1", "app:2", "with that one alone"] {
            assert!(error.to_string().contains(part), "`{part}`: {error}");
        }
    }
    // Another platform's beside it is no second image.
    let archive = oci_of(&[(&second, "app:1", false), (&first, "app:1", true)], media, <[u8]>::to_vec);
    let host = host(S3Config::default());
    let (digest, _) = host.pull(&host.put("image", &archive)).await.unwrap();
    assert_eq!(host.file(&digest, "etc/app").as_deref(), Some(&b"app"[..]));
}

/// Old archives name a layer that they have already by a link, of either kind.
#[tokio::test(flavor = "multi_thread")]
async fn layers_may_be_links() {
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
        let base = tar(&[("etc/base", b"base")]);
        let image = image(vec![base.clone(), tar(&[("etc/app", b"app")]), base]);
        let host = host(S3Config::default());
        let (digest, pulled) = host.pull(&host.put("image", &linked(&image, kind))).await.unwrap();
        assert_eq!(pulled.layers_total, 3);
        assert_eq!(host.file(&digest, "etc/base").as_deref(), Some(&b"base"[..]));
        assert_eq!(host.file(&digest, "etc/app").as_deref(), Some(&b"app"[..]));
    }
    // A link that leads out of it, to nothing, or in circles leads to nothing.
    for target in ["../../../../etc/passwd", "/etc/passwd", "none/layer.tar", "LOOP"] {
        let host = host(S3Config::default());
        let error = host.pull(&host.put("image", &linked_to(&small(), target))).await.unwrap_err();
        assert_eq!(error.reason, Reason::ImageInvalid, "{target}: {error}");
        assert!(error.to_string().contains("it has no "), "{target}: {error}");
    }
}

/// go-containerregistry, and what is built on it, saves layers as they are in a registry.
#[tokio::test(flavor = "multi_thread")]
async fn layers_saved_as_they_are_in_a_registry() {
    let image = small();
    let host = host(S3Config::default());
    let (digest, _) = host.pull(&host.put("image", &crane(&image))).await.unwrap();
    assert_eq!(host.file(&digest, "srv/x"), Some(noise(70_000, 3)));
    assert_eq!(digest.hex(), hex(&image.config));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_moves_does_not_move_a_host() {
    let host = host(S3Config::default());
    let url = host.put("image", &docker_save(&small()));
    let reference: ImageRef = url.parse().unwrap();
    let digest = host.registry.resolve(&reference).await.unwrap();
    host.put("image", &docker_save(&image(vec![tar(&[("other", b"x")])])));
    let pinned = PinnedImage { reference, digest };
    let error = host.registry.pull(&pinned, &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
}
