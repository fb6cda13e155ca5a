//! Certificates for a cluster without a certificate manager: an authority of our own and serving certificates, in
//! Secrets. Run as a Helm hook before the workloads; running it again changes nothing that is still good.

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    jiff::{SignedDuration, Timestamp, tz::TimeZone},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::cli::CertsArgs;

/// Annotation with the names that a certificate is for.
const NAMES: &str = "cryptvol.dev/certificate-names";
/// Annotation with the end of a certificate's life.
const NOT_AFTER: &str = "cryptvol.dev/certificate-not-after";
/// A certificate with less than this left is made anew.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Life of the authority.
const AUTHORITY_DAYS: i64 = 20 * 365;

/// Makes what is missing.
///
/// # Errors
/// When the API server refuses, or a Secret of that name holds something else.
pub async fn run(args: CertsArgs) -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client, &args.namespace);
    let authority = authority(&secrets, &args.ca_secret).await?;
    let ca_pem = text(&authority, "tls.crt")?;
    publish(&maps, &args.ca_configmap, &ca_pem).await?;
    serving(&secrets, &args, &authority, &ca_pem).await
}

async fn authority(secrets: &Api<Secret>, name: &str) -> anyhow::Result<Secret> {
    if let Some(found) = secrets.get_opt(name).await? {
        tracing::info!(secret = name, "authority is there");
        return Ok(found);
    }
    let key = KeyPair::generate()?;
    let cert = authority_params()?.self_signed(&key)?;
    let secret = tls_secret(name, cert.pem(), key.serialize_pem(), None);
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(made) => {
            tracing::info!(secret = name, "authority made");
            Ok(made)
        }
        // Another call was faster; there must be one authority.
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(secrets.get(name).await?),
        Err(e) => Err(e.into()),
    }
}

async fn publish(maps: &Api<ConfigMap>, name: &str, ca_pem: &str) -> anyhow::Result<()> {
    let wanted = Some([("ca.crt".to_owned(), ca_pem.to_owned())].into());
    match maps.get_opt(name).await? {
        Some(found) if found.data == wanted => {}
        Some(mut found) => {
            found.data = wanted;
            maps.replace(name, &PostParams::default(), &found).await?;
        }
        None => {
            let map = ConfigMap {
                metadata: named(name),
                data: wanted,
                ..ConfigMap::default()
            };
            maps.create(&PostParams::default(), &map).await?;
        }
    }
    Ok(())
}

async fn serving(
    secrets: &Api<Secret>,
    args: &CertsArgs,
    authority: &Secret,
    ca_pem: &str,
) -> anyhow::Result<()> {
    let mut names = args.dns.clone();
    names.sort();
    names.dedup();
    let found = secrets.get_opt(&args.secret).await?;
    if found.as_ref().is_some_and(|s| is_good(s, &names, ca_pem)) {
        tracing::info!(secret = args.secret, "certificate is there");
        return Ok(());
    }
    let (cert, key, not_after) = sign(authority, &names, i64::from(args.valid_days))?;
    let mut secret = tls_secret(&args.secret, cert, key, Some(ca_pem));
    secret.metadata.annotations = Some(
        [
            (NAMES.to_owned(), names.join(",")),
            (NOT_AFTER.to_owned(), not_after.to_string()),
        ]
        .into(),
    );
    match found {
        Some(old) if old.annotations().get(NAMES).is_none() => bail!(
            "the Secret {} is there and was not made by this command: name another one, or remove it",
            args.secret
        ),
        Some(old) => {
            secret.metadata.resource_version = old.resource_version();
            secrets
                .replace(&args.secret, &PostParams::default(), &secret)
                .await?;
        }
        None => {
            secrets.create(&PostParams::default(), &secret).await?;
        }
    }
    tracing::info!(secret = args.secret, ?names, %not_after, "certificate made");
    Ok(())
}

fn is_good(secret: &Secret, names: &[String], ca_pem: &str) -> bool {
    let notes = secret.annotations();
    let end = notes
        .get(NOT_AFTER)
        .and_then(|t| t.parse::<Timestamp>().ok());
    notes.get(NAMES) == Some(&names.join(","))
        && end.is_some_and(|end| end > Timestamp::now() + RENEW_BEFORE)
        && text(secret, "ca.crt").is_ok_and(|ca| ca == ca_pem)
}

fn sign(
    authority: &Secret,
    names: &[String],
    days: i64,
) -> anyhow::Result<(String, String, Timestamp)> {
    let ca_key = KeyPair::from_pem(&text(authority, "tls.key")?)
        .context("the authority's key cannot be read")?;
    // The same name and key as at its making, so this is the same authority.
    let issuer = Issuer::new(authority_params()?, ca_key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = common_name(names.first().map_or("cryptvol", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let not_after = life(&mut params, days)?;
    let cert = params.signed_by(&key, &issuer)?;
    Ok((cert.pem(), key.serialize_pem(), not_after))
}

fn authority_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name = common_name("cryptvol authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    life(&mut params, AUTHORITY_DAYS)?;
    Ok(params)
}

/// Good from yesterday, because clocks differ, for so many days.
fn life(params: &mut CertificateParams, days: i64) -> anyhow::Result<Timestamp> {
    let day = |t: Timestamp| {
        let d = t.to_zoned(TimeZone::UTC).date();
        date_time_ymd(
            d.year().into(),
            d.month().unsigned_abs(),
            d.day().unsigned_abs(),
        )
    };
    let now = Timestamp::now();
    let end = now
        .checked_add(SignedDuration::from_hours(days * 24))
        .map_err(|e| anyhow!("{days} days are too many: {e}"))?;
    params.not_before = day(now - SignedDuration::from_hours(24));
    params.not_after = day(end);
    Ok(end)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    // Longer ones are against the standard; clients look at the subject alternative names anyway.
    dn.push(
        DnType::CommonName,
        name.chars().take(64).collect::<String>(),
    );
    dn
}

fn tls_secret(name: &str, cert: String, key: String, ca: Option<&str>) -> Secret {
    let mut data = std::collections::BTreeMap::from([
        ("tls.crt".to_owned(), ByteString(cert.into_bytes())),
        ("tls.key".to_owned(), ByteString(key.into_bytes())),
    ]);
    if let Some(ca) = ca {
        data.insert("ca.crt".to_owned(), ByteString(ca.as_bytes().to_vec()));
    }
    Secret {
        metadata: named(name),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(
            [(
                "app.kubernetes.io/managed-by".to_owned(),
                "cryptvol-operator".to_owned(),
            )]
            .into(),
        ),
        ..ObjectMeta::default()
    }
}

fn text(secret: &Secret, key: &str) -> anyhow::Result<String> {
    let bytes = secret.data.as_ref().and_then(|d| d.get(key));
    let bytes = bytes.with_context(|| format!("the Secret {} has no {key}", secret.name_any()))?;
    String::from_utf8(bytes.0.clone())
        .with_context(|| format!("{key} in the Secret {} is not text", secret.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{RootCertStore, client::WebPkiServerVerifier, pki_types::ServerName};
    use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
    use std::sync::Arc;

    #[test]
    fn a_certificate_signed_later_chains_to_the_authority_made_earlier() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = KeyPair::generate().unwrap();
        let ca = authority_params().unwrap().self_signed(&key).unwrap();
        let authority = tls_secret("ca", ca.pem(), key.serialize_pem(), None);
        let names = [
            "cryptvol-operator.cryptvol-system.svc".to_owned(),
            "127.0.0.1".to_owned(),
        ];
        let (cert, _, _) = sign(&authority, &names, 10).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots))
            .build()
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let check = |name: &str| {
            use rustls::client::danger::ServerCertVerifier;
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
        };
        check(&names[0]).unwrap();
        check("127.0.0.1").unwrap();
        assert!(check("other.svc").is_err());
    }

    #[test]
    fn what_is_good_is_kept() {
        let names = ["a".to_owned(), "b".to_owned()];
        let mut secret = tls_secret("s", "c".into(), "k".into(), Some("CA"));
        let note = |secret: &mut Secret, names: &str, hours| {
            let end = Timestamp::now() + SignedDuration::from_hours(hours);
            secret.metadata.annotations = Some(
                [
                    (NAMES.to_owned(), names.to_owned()),
                    (NOT_AFTER.to_owned(), end.to_string()),
                ]
                .into(),
            );
        };
        assert!(!is_good(&secret, &names, "CA"));
        note(&mut secret, "a,b", 31 * 24);
        assert!(is_good(&secret, &names, "CA"));
        assert!(!is_good(&secret, &names, "another authority"));
        note(&mut secret, "a", 31 * 24);
        assert!(!is_good(&secret, &names, "CA"));
        note(&mut secret, "a,b", 29 * 24);
        assert!(!is_good(&secret, &names, "CA"));
    }
}
