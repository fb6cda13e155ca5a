//! What `kubectl apply` refuses, and the sentence that it answers with, on a real API server.

use anyhow::{Context, Result};
use cryptvol_crds::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume};
use cryptvol_e2e::control_plane::{ControlPlane, Options};
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::workdir::WorkDir;
use kube::CustomResourceExt;
use serde_json::{Value, json};

const KEY_ID: &str = "1f0d8a4e-3d5b-4f57-9c0e-6a6f5a3f7b11";

/// A change to a good manifest by JSON merge patch, and what the answer must say.
struct Case {
    what: &'static str,
    patch: Value,
    says: &'static str,
}

fn good_volume(name: &str) -> Value {
    json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "source": {"iscsi": {"portals": ["192.0.2.10:3260"], "iqn": "iqn.2026-11.dev.cryptvol:db-0", "lun": 1}},
            "credentials": {"secretName": "keystone", "cloudName": "tenant"},
        },
    })
}

fn good_key_service() -> Value {
    json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "KeyService", "metadata": {"name": "site"},
        "spec": {"authUrl": "https://keystone.example.com/identity/v3"},
    })
}

fn merge(base: &mut Value, patch: &Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, patch) => *base = patch.clone(),
    }
}

/// The error text of an apply that must fail.
async fn refusal(plane: &ControlPlane, manifest: &Value) -> Result<String> {
    let output = plane
        .kubectl_output(&["apply", "-f", "-"], Some(&manifest.to_string()))
        .await?;
    anyhow::ensure!(!output.status.success(), "this was accepted: {manifest}");
    Ok(String::from_utf8(output.stderr)?)
}

async fn plane_with_crds(work: &WorkDir) -> Result<ControlPlane> {
    let parts = Parts::locate(Set::ControlPlane)?;
    let plane =
        ControlPlane::start(&work.dir("control-plane")?, &parts, Options::default()).await?;
    for crd in [
        EncryptedVolume::crd(),
        EncryptionClass::crd(),
        KeyService::crd(),
        NodeVolume::crd(),
    ] {
        plane.apply(&serde_json::to_string(&crd)?).await?;
    }
    plane
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd",
            "--all",
        ])
        .await?;
    Ok(plane)
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_apply_with_a_sentence() -> Result<()> {
    let work = WorkDir::new("validation")?;
    let plane = plane_with_crds(&work).await?;
    plane
        .apply(&good_volume("good").to_string())
        .await
        .context("the good manifest")?;
    plane
        .apply(&good_key_service().to_string())
        .await
        .context("the good KeyService")?;

    let iscsi = |patch: Value| json!({"spec": {"source": {"iscsi": patch}}});
    let spec = |patch: Value| json!({"spec": patch});
    let other = |mut source: Value| {
        source["iscsi"] = Value::Null;
        json!({"spec": {"source": source}})
    };
    let cases = [
        Case {
            what: "two sources",
            patch: spec(json!({"source": {"file": {"path": "/a", "size": "1Gi"}}})),
            says: "set exactly one of source.iscsi",
        },
        Case {
            what: "no source",
            patch: json!({"spec": {"source": {"iscsi": null}}}),
            says: "set exactly one of source.iscsi",
        },
        Case {
            what: "LUN over 16383",
            patch: iscsi(json!({"lun": 16384})),
            says: "a LUN is a number from 0 to 16383",
        },
        Case {
            what: "negative LUN",
            patch: iscsi(json!({"lun": -1})),
            says: "a LUN is a number from 0 to 16383",
        },
        Case {
            what: "LUN that is a word",
            patch: iscsi(json!({"lun": "one"})),
            says: "must be of type integer",
        },
        Case {
            what: "bad IQN",
            patch: iscsi(json!({"iqn": "iqn.26-11.dev:x"})),
            says: "write it like iqn.2026-11.com.example:volume-1",
        },
        Case {
            what: "IQN with month 13",
            patch: iscsi(json!({"iqn": "iqn.2026-13.dev:x"})),
            says: "not an iSCSI name",
        },
        Case {
            what: "IQN with a path in it",
            patch: iscsi(json!({"iqn": "iqn.2026-11.dev:../../x"})),
            says: "not an iSCSI name",
        },
        Case {
            what: "bad portal",
            patch: iscsi(json!({"portals": ["a b"]})),
            says: "a portal is address or address:port",
        },
        Case {
            what: "multipath with one portal",
            patch: iscsi(json!({"multipath": true, "portals": ["192.0.2.1"]})),
            says: "needs at least two portals",
        },
        Case {
            what: "multipath by name",
            patch: iscsi(json!({"multipath": true, "portals": ["192.0.2.1", "array.example"]})),
            says: "each portal is an IP address and stands there once",
        },
        Case {
            what: "multipath twice through one portal",
            patch: iscsi(
                json!({"multipath": true, "portals": ["[fd00::1]:3260", "[fd00::1]:3260"]}),
            ),
            says: "each portal is an IP address and stands there once",
        },
        Case {
            what: "multipath by an old name of udev's",
            patch: spec(json!({
                "source": {"iscsi": {"multipath": true, "portals": ["192.0.2.1", "192.0.2.2"]}},
                "link": {"shadow": "/dev/disk/by-id/wwn-0x1"},
            })),
            says: "link.shadow is not implemented together with source.iscsi.multipath",
        },
        Case {
            what: "discovery CHAP without a discovery",
            patch: iscsi(json!({"discoveryChapSecretRef": {"name": "x"}})),
            says: "is for a discovery and none is asked for",
        },
        Case {
            what: "discovery for one path",
            patch: iscsi(json!({"discovery": true})),
            says: "source.iscsi.discovery finds further portals for several paths",
        },
        Case {
            what: "discovery through a name",
            patch: iscsi(
                json!({"discovery": true, "multipath": true, "portals": ["array.example"]}),
            ),
            says: "each portal is an IP address and stands there once",
        },
        Case {
            what: "class and inline encryption",
            patch: spec(json!({"encryptionClassName": "a", "encryption": {}})),
            says: "set encryptionClassName or encryption, not both",
        },
        Case {
            what: "LUKS1 with large sectors",
            patch: spec(json!({"encryption": {"provider": "luks", "sectorSize": 4096}})),
            says: "knows no sectors but of 512 bytes",
        },
        Case {
            what: "hash of a header",
            patch: spec(json!({"encryption": {"hash": "ripemd160"}})),
            says: "hash is for provider plain alone",
        },
        Case {
            what: "detached header of LUKS1",
            patch: spec(json!({"encryption": {"provider": "luks", "detachedHeader": true}})),
            says: "detachedHeader is for provider luks2 alone",
        },
        Case {
            what: "detached header with integrity",
            patch: spec(
                json!({"encryption": {"detachedHeader": true, "integrity": "hmac-sha256"}}),
            ),
            says: "detachedHeader cannot be had with integrity",
        },
        Case {
            what: "detached header that is not kept",
            patch: spec(json!({"encryption": {"detachedHeader": true, "headerBackup": false}})),
            says: "headerBackup false cannot be had with detachedHeader",
        },
        Case {
            what: "detached header, key of its own without the header",
            patch: spec(
                json!({"encryption": {"detachedHeader": true}, "key": {"secretRef": KEY_ID}}),
            ),
            says: "name the secret with its header in key.headerSecretRef",
        },
        Case {
            what: "import of a detached header without the disk's WWID",
            patch: spec(json!({
                "encryption": {"detachedHeader": true}, "format": "Never",
                "key": {"secretRef": KEY_ID, "headerSecretRef": KEY_ID},
            })),
            says: "and the disk's wwid in source",
        },
        Case {
            what: "header without its key",
            patch: spec(
                json!({"encryption": {"detachedHeader": true}, "key": {"headerSecretRef": KEY_ID}}),
            ),
            says: "name that key as well",
        },
        Case {
            what: "header for a volume that has one on its disk",
            patch: spec(json!({
                "encryption": {"provider": "luks2"}, "format": "Never",
                "key": {"secretRef": KEY_ID, "headerSecretRef": KEY_ID},
            })),
            says: "is for volumes with encryption.detachedHeader",
        },
        Case {
            what: "erasure with a header that is not ours",
            patch: spec(json!({
                "deletionPolicy": "Erase", "format": "Never",
                "key": {"secretRef": KEY_ID, "headerSecretRef": KEY_ID},
            })),
            says: "are not cryptvol's to destroy",
        },
        Case {
            what: "integrity of LUKS1",
            patch: spec(json!({"encryption": {"provider": "luks", "integrity": "hmac-sha256"}})),
            says: "integrity is for provider luks2 alone",
        },
        Case {
            what: "unknown provider",
            patch: spec(json!({"encryption": {"provider": "veracrypt"}})),
            says: "Unsupported value: \"veracrypt\"",
        },
        Case {
            what: "a key of an encryptor without one",
            patch: spec(json!({"encryption": {"provider": "none"}, "key": {"generated": {}}})),
            says: "provider none has no key",
        },
        Case {
            what: "erasing without a key",
            patch: spec(json!({"encryption": {"provider": "none"}, "deletionPolicy": "Erase"})),
            says: "wipe the disk on the array",
        },
        Case {
            what: "erasing by a key of others",
            patch: spec(json!({
                "encryption": {"provider": "plain"}, "deletionPolicy": "Erase",
                "key": {"secretRef": KEY_ID},
            })),
            says: "is not cryptvol's to destroy",
        },
        Case {
            what: "import of a plain volume without its identity",
            patch: spec(json!({"encryption": {"provider": "plain"}, "format": "Never"})),
            says: "name its wwid in source",
        },
        Case {
            what: "device outside of /dev",
            patch: other(json!({"device": {"path": "/dev/../etc/passwd"}})),
            says: "a device is named by its path below /dev",
        },
        Case {
            what: "file without a header",
            patch: spec(json!({
                "source": {"iscsi": null, "file": {"path": "/var/lib/cryptvol/volumes/a", "size": "1Gi"}},
                "encryption": {"provider": "plain", "cipher": "aes-xts-plain64", "keySize": 256},
            })),
            says: "a volume without a header is known by the disk's WWID",
        },
        Case {
            what: "ephemeral with a header",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "encryption": {"cipher": "aes-xts-plain64"}}),
            ),
            says: "set encryption.provider to plain",
        },
        Case {
            what: "ephemeral and rotated",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "rotation": {"intervalDays": 3}}),
            ),
            says: "another one at each attachment",
        },
        Case {
            what: "ephemeral and erased",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "deletionPolicy": "Erase"}),
            ),
            says: "is the end of its key and data",
        },
        Case {
            what: "ephemeral and suspended",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "suspended": true}),
            ),
            says: "remove suspended",
        },
        Case {
            what: "ephemeral and failing closed",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "failClosed": true}),
            ),
            says: "remove failClosed",
        },
        Case {
            what: "ephemeral and imported",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "format": "Never"}),
            ),
            says: "it can only begin blank",
        },
        Case {
            what: "file outside of the directory",
            patch: other(
                json!({"file": {"path": "/var/lib/cryptvol/volumes/../x", "size": "1Gi"}}),
            ),
            says: "a file is directly in /var/lib/cryptvol/volumes/",
        },
        Case {
            what: "file of an odd size",
            patch: other(
                json!({"file": {"path": "/var/lib/cryptvol/volumes/a", "size": "33554433"}}),
            ),
            says: "at least 32Mi and a multiple of 4096 bytes",
        },
        Case {
            what: "file of no size",
            patch: other(json!({"file": {"path": "/var/lib/cryptvol/volumes/a", "size": "ten"}})),
            says: "at least 32Mi and a multiple of 4096 bytes",
        },
        Case {
            what: "ephemeral in two places",
            patch: other(json!({"ephemeral": {"device": "/dev/vg/lv", "size": "1Gi"}})),
            says: "set source.ephemeral.device or source.ephemeral.size",
        },
        Case {
            what: "ephemeral with a key",
            patch: spec(
                json!({"source": {"iscsi": null, "ephemeral": {"size": "1Gi"}}, "key": {"generated": {}}}),
            ),
            says: "random key that is stored nowhere",
        },
        Case {
            what: "null cipher",
            patch: spec(json!({"encryption": {"cipher": "cipher_null-ecb"}})),
            says: "cipher must be aes-xts-plain64",
        },
        Case {
            what: "short key",
            patch: spec(json!({"encryption": {"keySize": 128}})),
            says: "keySize must be 512",
        },
        Case {
            what: "odd sector",
            patch: spec(json!({"encryption": {"sectorSize": 1000}})),
            says: "sectorSize must be 512 or 4096 bytes",
        },
        Case {
            what: "back-end",
            patch: spec(json!({"encryption": {"controlLocation": "back-end"}})),
            says: "back-end would leave plaintext on the network",
        },
        Case {
            what: "two attachments",
            patch: spec(json!({"attachments": [{"nodeName": "a"}, {"nodeName": "b"}]})),
            says: "name one attachment",
        },
        Case {
            what: "migratable",
            patch: spec(json!({"access": "Migratable"})),
            says: "access Migratable is not implemented",
        },
        Case {
            what: "own link",
            patch: spec(json!({"link": {"path": "/dev/x"}})),
            says: "the device is at /dev/cryptvol/NAMESPACE/NAME",
        },
        Case {
            what: "the name of another disk by path",
            patch: spec(
                json!({"link": {"shadow": "/dev/disk/by-path/ip-192.0.2.1:3260-iscsi-iqn.2026-11.com.example:other-lun-1"}}),
            ),
            says: "not a by-path name of this volume's own disk",
        },
        Case {
            what: "a name by id without a WWID",
            patch: spec(json!({"link": {"shadow": "/dev/disk/by-id/wwn-0x6001"}})),
            says: "needs source.iscsi.wwid of the form naa.HEX",
        },
        Case {
            what: "a name that is none of udev's",
            patch: spec(json!({"link": {"shadow": "/dev/sda"}})),
            says: "a name as udev makes them",
        },
        Case {
            what: "rotation of a key of somebody else",
            patch: spec(
                json!({"rotation": {"intervalDays": 3}, "key": {"secretRef": "0b7b2f0e-54bc-4a0b-9d6d-8f3e0ed1f4a5"}}),
            ),
            says: "rotation needs a key that the key manager generates",
        },
        Case {
            what: "both kinds of key",
            patch: spec(
                json!({"key": {"generated": {}, "secretRef": "0b7b2f0e-54bc-4a0b-9d6d-8f3e0ed1f4a5"}}),
            ),
            says: "set key.generated or key.secretRef, not both",
        },
        Case {
            what: "bad key reference",
            patch: spec(json!({"key": {"secretRef": "x".repeat(40)}})),
            says: "the id (a UUID) or the href",
        },
        Case {
            what: "no credentials",
            patch: json!({"spec": {"credentials": null}}),
            says: "spec.credentials is needed",
        },
        Case {
            what: "long name",
            patch: json!({"metadata": {"name": "v".repeat(64)}}),
            says: "at most 63 characters",
        },
    ];
    for case in cases {
        let mut manifest = good_volume("bad");
        merge(&mut manifest, &case.patch);
        let answer = refusal(&plane, &manifest).await.context(case.what)?;
        assert!(answer.contains(case.says), "{}: {answer}", case.what);
    }

    for (what, patch, says) in [
        (
            "http",
            json!({"spec": {"authUrl": "http://keystone.example.com/v3"}}),
            "authUrl is an https URL",
        ),
        (
            "tenancy",
            json!({"spec": {"tenancy": "ProjectPerNamespace"}}),
            "use CredentialsPerNamespace",
        ),
        (
            "back end",
            json!({"spec": {"backend": "Vault"}}),
            "use Barbican",
        ),
    ] {
        let mut manifest = good_key_service();
        merge(&mut manifest, &patch);
        let answer = refusal(&plane, &manifest).await.context(what)?;
        assert!(answer.contains(says), "{what}: {answer}");
    }
    plane.check()
}

#[tokio::test]
async fn what_describes_the_disk_cannot_be_changed_later() -> Result<()> {
    let work = WorkDir::new("immutable")?;
    let plane = plane_with_crds(&work).await?;
    let mut volume = good_volume("fixed");
    merge(
        &mut volume,
        &json!({"spec": {"encryption": {"keySize": 512}, "source": {"iscsi": {"wwid": "naa.6001405aa"}},
            "key": {"secretRef": "0b7b2f0e-54bc-4a0b-9d6d-8f3e0ed1f4a5"}, "keyServiceName": "site"}}),
    );
    plane.apply(&volume.to_string()).await?;
    for (what, patch, says) in [
        (
            "iqn",
            json!({"spec": {"source": {"iscsi": {"iqn": "iqn.2026-11.dev.cryptvol:other"}}}}),
            "iqn and source.iscsi.lun are immutable",
        ),
        (
            "lun",
            json!({"spec": {"source": {"iscsi": {"lun": 2}}}}),
            "iqn and source.iscsi.lun are immutable",
        ),
        (
            "wwid",
            json!({"spec": {"source": {"iscsi": {"wwid": "naa.other"}}}}),
            "wwid is immutable once set",
        ),
        (
            "encryption",
            json!({"spec": {"encryption": {"keySize": 256}}}),
            "encryption is immutable",
        ),
        (
            "encryption removed",
            json!({"spec": {"encryption": null}}),
            "encryption is immutable",
        ),
        (
            "class added",
            json!({"spec": {"encryption": null, "encryptionClassName": "x"}}),
            "encryptionClassName is immutable",
        ),
        (
            "key",
            json!({"spec": {"key": {"secretRef": "1b7b2f0e-54bc-4a0b-9d6d-8f3e0ed1f4a5"}}}),
            "key is immutable",
        ),
        (
            "key service",
            json!({"spec": {"keyServiceName": "other"}}),
            "keyServiceName is immutable",
        ),
    ] {
        let mut manifest = volume.clone();
        merge(&mut manifest, &patch);
        let answer = refusal(&plane, &manifest).await.context(what)?;
        assert!(answer.contains(says), "{what}: {answer}");
    }
    // What does not describe the disk may change: where it is attached, by which way, with which credentials.
    merge(
        &mut volume,
        &json!({"spec": {"attachments": [{"nodeName": "node-2"}], "deletionPolicy": "Erase", "format": "Never",
            "source": {"iscsi": {"portals": ["192.0.2.99:3260"], "chapSecretRef": {"name": "chap"}}},
            "credentials": {"secretName": "other", "cloudName": "tenant"}}}),
    );
    plane.apply(&volume.to_string()).await?;

    // A file may be longer, and as short as it is on the node, never shorter.
    let file = |name: &str, size: &str| {
        let mut manifest = good_volume("in-a-file");
        let path = format!("/var/lib/cryptvol/volumes/{name}");
        let source = json!({"iscsi": null, "file": {"path": path, "size": size}});
        merge(&mut manifest, &json!({"spec": {"source": source}}));
        manifest
    };
    for size in ["1Gi", "3Gi", "2Gi"] {
        plane.apply(&file("a", size).to_string()).await?;
    }
    plane
        .kubectl(&[
            "patch",
            "encryptedvolume",
            "in-a-file",
            "--subresource=status",
            "--type=merge",
            "--patch",
            r#"{"status": {"sizeBytes": 2147483648}}"#,
        ])
        .await?;
    for size in ["4Gi", "2Gi"] {
        plane.apply(&file("a", size).to_string()).await?;
    }
    for (manifest, says) in [
        (file("a", "2047Mi"), "less than the file has"),
        (file("b", "2Gi"), "source.file.path is immutable"),
    ] {
        let answer = refusal(&plane, &manifest).await?;
        assert!(answer.contains(says), "{answer}");
    }

    let class = json!({"apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptionClass", "metadata": {"name": "std"}, "spec": {"encryption": {"keySize": 512}}});
    plane.apply(&class.to_string()).await?;
    let mut changed = class;
    merge(
        &mut changed,
        &json!({"spec": {"encryption": {"keySize": 256}}}),
    );
    let answer = refusal(&plane, &changed).await?;
    assert!(
        answer.contains("the spec of an EncryptionClass is immutable"),
        "{answer}"
    );
    let discards = json!({"apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptionClass", "metadata": {"name": "discards"},
        "spec": {"encryption": {"integrity": "hmac-sha256"}, "activation": {"allowDiscards": true}}});
    let answer = refusal(&plane, &discards).await?;
    assert!(
        answer.contains("allowDiscards cannot be had with encryption.integrity"),
        "{answer}"
    );
    plane.check()
}
