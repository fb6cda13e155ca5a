//! Every encryptor and every flag: the kernel's table is the one that cryptsetup makes, but for where the key is.

use super::*;

/// What to make, and how cryptsetup is told to make the same.
struct Case {
    encryption: Value,
    activation: Value,
    cryptsetup: &'static str,
}

/// Fields of a table, without the key.
fn without_key(table: &str) -> Vec<&str> {
    let fields = table.split(' ').enumerate();
    fields.filter(|(i, _)| *i != 4).map(|(_, f)| f).collect()
}

impl Ground {
    fn open(device: &Value, expected: &Value, activation: &Value, blank: bool) -> Value {
        json!({"Open": [device, {
            "mapping_name": names::mapping_name(VOLUME_UID),
            "mapping_uuid": names::mapping_uuid(LUKS_UUID, VOLUME_UID),
            "expected": expected, "passphrase": PASSPHRASE, "activation": activation, "blank": blank,
        }]})
    }

    /// What a header says, or stands for one.
    async fn facts(&self, device: &Value, encryption: &Value) -> Result<Value> {
        if encryption["provider"] == "plain" {
            return Ok(json!({
                "provider": "plain", "hash": encryption["hash"], "luksUuid": LUKS_UUID, "cipher": "aes-xts-plain64",
                "keySize": encryption["keySize"], "sectorSize": 512, "dataOffset": 0, "digest": "",
            }));
        }
        let header = self.done(Self::format_with(device, encryption)).await?;
        ensure!(header["objections"] == json!([]), "{header}");
        Ok(header["facts"].clone())
    }

    async fn is_as_cryptsetup_makes_it(&self, case: &Case) -> Result<()> {
        let name = names::mapping_name(VOLUME_UID);
        // The data of the case before lies where a header of this one would.
        self.array.lun(IQN, 1)?.write_at(0, &vec![0; 16 << 20])?;
        let device = self.device().await?;
        let path = device["path"].as_str().context("path")?;
        let facts = self.facts(&device, &case.encryption).await?;
        let header = self.array.lun(IQN, 1)?.read_at(0, 4 << 20)?;
        let call = Self::open(&device, &facts, &case.activation, false);
        let mapping = self.done(call.clone()).await?;
        ensure!(self.done(call).await? == mapping, "another mapping");
        let ours = table(self, &name).await?;
        ensure!(ours.contains(":logon:cryptvol:"), "{ours}");
        let node = mapping["path"].as_str().context("path")?;
        self.sh(&format!(
            "printf 'seen by both' | dd of={node} conv=fsync status=none"
        ))
        .await?;
        self.done(Self::close_call()).await?;
        let cryptsetup = case.cryptsetup;
        self.sh(&format!(
            "printf {PASSPHRASE} | cryptsetup open {cryptsetup} --key-file - {path} theirs"
        ))
        .await?;
        let theirs = table(self, "theirs").await?;
        let read = self.sh("head -c 12 /dev/mapper/theirs").await?;
        self.sh("cryptsetup close theirs").await?;
        ensure!(read == "seen by both", "{read:?}");
        ensure!(
            without_key(&ours) == without_key(&theirs),
            "{ours}\n{theirs}"
        );
        // Policy is not written to the disk.
        if facts["provider"] != "plain" {
            let now = self.array.lun(IQN, 1)?.read_at(0, 2 << 20)?;
            ensure!(now == header[..2 << 20], "the header changed");
            self.done(json!({"Erase": [device, LUKS_UUID]})).await?;
        }
        self.done(json!({"DeleteDevice": device})).await?;
        self.done(self.logout().await?).await?;
        Ok(())
    }
}

#[tokio::test]
async fn every_encryptor_and_flag_makes_the_table_that_cryptsetup_makes() -> Result<()> {
    let ground = Ground::new("host-encryptors").await?;
    let cases = [
        Case {
            encryption: json!({"provider": "luks"}),
            activation: json!({}),
            cryptsetup: "--type luks1",
        },
        Case {
            encryption: json!({"provider": "luks", "keySize": 256}),
            activation: json!({"allowDiscards": true}),
            cryptsetup: "--type luks1 --allow-discards",
        },
        Case {
            encryption: json!({"provider": "luks2", "sectorSize": 4096}),
            activation: json!({
                "allowDiscards": true, "noReadWorkqueue": true, "noWriteWorkqueue": true, "sameCpuCrypt": true,
                "submitFromCryptCpus": true,
            }),
            cryptsetup: "--type luks2 --allow-discards --perf-no_read_workqueue --perf-no_write_workqueue \
                --perf-same_cpu_crypt --perf-submit_from_crypt_cpus",
        },
        Case {
            encryption: json!({"provider": "plain", "keySize": 512, "hash": "sha256"}),
            activation: json!({"noReadWorkqueue": true}),
            cryptsetup: "--type plain --cipher aes-xts-plain64 --key-size 512 --hash sha256 --perf-no_read_workqueue",
        },
        Case {
            encryption: json!({"provider": "plain", "keySize": 256, "hash": "ripemd160"}),
            activation: json!({}),
            cryptsetup: "--type plain --cipher aes-xts-plain64 --key-size 256 --hash ripemd160",
        },
    ];
    for case in &cases {
        ground
            .is_as_cryptsetup_makes_it(case)
            .await
            .with_context(|| format!("{} {}", case.encryption, case.activation))?;
    }
    what_the_kernel_does_not_know_is_said(&ground).await?;
    ground.work.passed()
}

/// A flag of newer kernels; and a disk that is not blank any more when it is to be taken for a new one.
async fn what_the_kernel_does_not_know_is_said(ground: &Ground) -> Result<()> {
    let device = ground.device().await?;
    let encryption = json!({"provider": "plain", "keySize": 512, "hash": "sha256"});
    let facts = ground.facts(&device, &encryption).await?;
    let version = ground
        .sh("dmsetup targets | sed -n 's/^crypt *v//p'")
        .await?;
    let mut numbers = version.trim().split('.').map(str::parse::<u32>);
    let (major, minor) = (
        numbers.next().context(version.clone())??,
        numbers.next().context(version.clone())??,
    );
    let call = Ground::open(&device, &facts, &json!({"highPriority": true}), false);
    if (major, minor) < (1, 26) {
        let message = ground.refused(Reason::ActivationUnsupported, call).await?;
        ensure!(
            message.contains("high_priority only since 1.26"),
            "{message}"
        );
    } else {
        let mapping = ground.done(call).await?;
        ensure!(
            mapping["table"]["options"] == json!(["high_priority"]),
            "{mapping}"
        );
        ground.done(Ground::close_call()).await?;
    }
    let sum = ground.array.lun(IQN, 1)?.sha256()?;
    let call = Ground::open(&device, &facts, &json!({}), true);
    ground.refused(Reason::DeviceNotBlank, call).await?;
    let mappings = ground.sh("dmsetup ls").await?;
    ensure!(mappings.contains("No devices found"), "{mappings}");
    ensure!(
        ground.array.lun(IQN, 1)?.sha256()? == sum,
        "something was written"
    );
    ground.detach(&device).await
}
