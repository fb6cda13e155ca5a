use super::*;

fn facts() -> HeaderFacts {
    HeaderFacts {
        luks_uuid: "0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11".into(),
        cipher: "aes-xts-plain64".into(),
        key_size: 512,
        sector_size: 4096,
        data_offset: 16 << 20,
        digest: String::new(),
        ..HeaderFacts::default()
    }
}

#[test]
fn a_table_of_authenticated_sectors_is_that_of_cryptsetup() {
    use cryptvol_crds::v1alpha1::{Integrity, IntegrityFacts};
    let facts = HeaderFacts {
        integrity: Some(IntegrityFacts {
            kind: Integrity::HmacSha256,
            data_bytes: 225_728 * 512,
        }),
        ..facts()
    };
    let plan = Plan {
        name: "cryptvol-x",
        uuid: "CRYPTVOL-x",
        dev: "8:16",
        size_bytes: 128 << 20,
        facts: &facts,
        activation: Activation::default(),
    };
    assert_eq!(plan.length(), 225_728);
    let params = plan.params(&plan.key_reference(), Some("253:0"));
    assert_eq!(
        params,
        "capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:cryptvol:0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11 0 253:0 0 2 \
         integrity:32:aead sector_size:4096"
    );
    let table = crypt_table("crypt", &params);
    assert_eq!(table.cipher, "aes-xts-plain64");
    assert_eq!(table.integrity, Some(Integrity::HmacSha256));
    assert_eq!((table.sector_size, table.data_offset), (4096, 0));
    // Without the tags it is another cipher, and none that a header names.
    let bare = crypt_table(
        "crypt",
        &params.replace("integrity:32:aead", "integrity:32:none"),
    );
    assert_eq!(bare.integrity, None);
    assert!(bare.cipher.starts_with("capi:"));
    let below = "7:0 32768 32 J 7 block_size:4096 journal_sectors:1848 interleave_sectors:32768 buffer_sectors:128 \
                 journal_watermark:50 commit_time:10000 fix_padding";
    let table = crypt_table("integrity", below);
    assert_eq!(
        (&table.dev[..], table.data_offset, table.sector_size),
        ("7:0", 16 << 20, 4096)
    );
    // Without the journal, or without any check at all.
    for mode in ["D", "R", "B"] {
        assert_eq!(
            crypt_table("integrity", &below.replace(" J ", &format!(" {mode} "))).dev,
            ""
        );
    }
}

#[test]
fn tables_read_as_they_are_written() {
    let facts = facts();
    let plan = Plan {
        name: "cryptvol-x",
        uuid: "CRYPTVOL-x",
        dev: "8:16",
        size_bytes: (64 << 20) + 512,
        facts: &facts,
        activation: Activation::default(),
    };
    assert_eq!(plan.length(), (48 << 20) / 512);
    let params = plan.params(&plan.key_reference(), None);
    assert_eq!(
        params,
        "aes-xts-plain64 :64:logon:cryptvol:0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11 0 8:16 32768 1 sector_size:4096"
    );
    let mut mapping = Mapping {
        name: "cryptvol-x".into(),
        uuid: "CRYPTVOL-x".into(),
        path: "/dev/dm-0".into(),
        dev: "253:0".into(),
        deps: vec!["8:16".into()],
        table: Some(crypt_table("crypt", &params)),
        suspended: false,
        open_count: 0,
        size_bytes: 48 << 20,
    };
    assert!(plan.is(&mapping));
    let plan = Plan {
        activation: Activation {
            allow_discards: true,
            no_read_workqueue: true,
            high_priority: true,
            ..Activation::default()
        },
        ..plan
    };
    assert!(!plan.is(&mapping));
    let params = plan.params(&plan.key_reference(), None);
    assert!(
        params.ends_with(" 4 allow_discards no_read_workqueue high_priority sector_size:4096"),
        "{params}"
    );
    mapping.table = Some(crypt_table("crypt", &params));
    assert!(plan.is(&mapping));
    mapping.deps = vec!["8:0".into()];
    assert!(!plan.is(&mapping));
    mapping.deps = vec!["8:16".into()];
    mapping.table = Some(crypt_table("crypt", &params.replace(":64:logon", "00ff")));
    assert!(!plan.is(&mapping));
    mapping.table = Some(crypt_table("linear", "8:16 32768"));
    assert!(!plan.is(&mapping));
}

#[test]
fn what_is_stacked_on_a_mapping_has_the_name_that_a_person_knows() {
    let tmp = tempfile::tempdir().unwrap();
    let holders = tmp.path().join("holders");
    assert_eq!(stacked(&holders), [""; 0]);
    std::fs::create_dir_all(holders.join("dm-3/dm")).unwrap();
    std::fs::write(holders.join("dm-3/dm/name"), "vg0-guest\n").unwrap();
    std::fs::create_dir_all(holders.join("md0")).unwrap();
    assert_eq!(stacked(&holders), ["dm-3 (vg0-guest)", "md0"]);
}
