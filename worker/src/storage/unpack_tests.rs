//! Hostile layers: each is refused, nothing appears outside the folder.

use std::io::Write as _;

use tar::{Builder, Header};

use super::*;

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header
}

/// Writes the name into the header unchecked, as an attacker would.
fn raw_name(header: &mut Header, name: &[u8]) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_cksum();
}

fn one(kind: EntryType, name: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = header(kind, data.len() as u64);
    raw_name(&mut header, name);
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, data).unwrap();
    builder.into_inner().unwrap()
}

fn unpack(layer: &[u8], limits: Limits) -> (Result<Digest, Error>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("in");
    std::fs::create_dir(&into).unwrap();
    let result = Unpacker::new("oci://h/m", &into, limits).layer(layer, false);
    (result, folder)
}

fn refusal(layer: &[u8], limits: Limits) -> String {
    let (result, folder) = unpack(layer, limits);
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing beside the folder"
    );
    match result.unwrap_err() {
        Error::Refused { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn files_and_folders_come_out_and_the_digest_is_of_the_whole_layer() {
    let mut builder = Builder::new(Vec::new());
    let mut dir = header(EntryType::Directory, 0);
    builder.append_data(&mut dir, "./sub/", std::io::empty()).unwrap();
    for (name, data) in [("./model.onnx", "m"), ("sub/weights.bin", "w")] {
        builder
            .append_data(&mut header(EntryType::Regular, 1), name, data.as_bytes())
            .unwrap();
    }
    let layer = builder.into_inner().unwrap();
    let (result, folder) = unpack(&layer, Limits::default());
    assert_eq!(result.unwrap(), Digest::of(&layer));
    assert_eq!(std::fs::read(folder.path().join("in/sub/weights.bin")).unwrap(), b"w");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&layer).unwrap();
    let again = tempfile::tempdir().unwrap();
    let digest = Unpacker::new("u", again.path(), Limits::default()).layer(&gz.finish().unwrap()[..], true);
    assert_eq!(digest.unwrap(), Digest::of(&layer));
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in [
        &b"../evil"[..],
        b"/etc/evil",
        b"a/../../evil",
        b"a\\..\\evil",
        b"a/\x07",
        b"\xff\xfe",
    ] {
        let why = refusal(&one(EntryType::Regular, name, b"x"), Limits::default());
        assert!(why.contains("the name"), "{why}");
    }
}

#[test]
fn long_names_are_checked_like_short_ones() {
    let mut builder = Builder::new(Vec::new());
    let long = format!("../{}", "x".repeat(150));
    let mut announce = header(EntryType::GNULongName, long.len() as u64);
    raw_name(&mut announce, b"././@LongLink");
    builder.append(&announce, long.as_bytes()).unwrap();
    let mut file = header(EntryType::Regular, 1);
    raw_name(&mut file, b"innocent");
    builder.append(&file, &b"x"[..]).unwrap();
    assert!(refusal(&builder.into_inner().unwrap(), Limits::default()).contains("climbs"));

    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", &b"../pax"[..])]).unwrap();
    let mut file = header(EntryType::Regular, 1);
    raw_name(&mut file, b"innocent");
    builder.append(&file, &b"x"[..]).unwrap();
    assert!(refusal(&builder.into_inner().unwrap(), Limits::default()).contains("climbs"));
}

#[test]
fn links_devices_and_sparse_files_are_refused() {
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::GNUSparse,
    ] {
        let why = refusal(&one(kind, b"model.onnx", b""), Limits::default());
        assert!(why.contains("regular files only"), "{why}");
    }
}

#[test]
fn bombs_are_refused() {
    let limits = Limits {
        files: 2,
        bytes: 10,
        depth: 1,
    };
    assert!(refusal(&one(EntryType::Regular, b"a", b"01234567890"), limits).contains("more than 10 bytes"));
    assert!(refusal(&one(EntryType::Regular, b"a/b/c", b""), limits).contains("levels deep"));
    assert!(refusal(&one(EntryType::XHeader, b"pax", &vec![b'0'; 70_000]), limits).contains("extension record"));
    let mut builder = Builder::new(Vec::new());
    for name in ["a", "b", "c"] {
        builder
            .append_data(&mut header(EntryType::Regular, 0), name, std::io::empty())
            .unwrap();
    }
    assert!(refusal(&builder.into_inner().unwrap(), limits).contains("more than 2 files"));
    // An entry that claims far more than the layer holds costs nothing.
    let mut claim = header(EntryType::Regular, 1 << 40);
    raw_name(&mut claim, b"a");
    let mut layer = claim.as_bytes().to_vec();
    layer.extend_from_slice(&[0; 512]);
    assert!(
        refusal(
            &layer,
            Limits {
                bytes: 1 << 41,
                ..limits
            }
        )
        .contains("cut short")
    );
    // Zeros after the archive are read, but not for ever.
    let endless = std::io::repeat(0).take(1 << 30);
    let folder = tempfile::tempdir().unwrap();
    assert!(Unpacker::new("u", folder.path(), limits).layer(endless, false).is_err());
}

#[test]
fn twins_collisions_whiteouts_and_cuts_are_refused() {
    let twice = |first: &str, second: &str| {
        let mut builder = Builder::new(Vec::new());
        for name in [first, second] {
            builder
                .append_data(&mut header(EntryType::Regular, 1), name, &b"x"[..])
                .unwrap();
        }
        builder.into_inner().unwrap()
    };
    assert!(refusal(&twice("a", "./a"), Limits::default()).contains("twice"));
    assert!(refusal(&twice("a", "a/b"), Limits::default()).contains("file and a folder"));
    assert!(refusal(&one(EntryType::Regular, b".wh.a", b""), Limits::default()).contains("lower layer"));
    let whole = one(EntryType::Regular, b"a", &[7; 2_000]);
    assert!(refusal(&whole[..1_000], Limits::default()).contains("cut short"));
    assert!(refusal(b"this is no archive at all", Limits::default()).contains("tar archive"));
}
