//! The volume key digest of a LUKS2 header: read out, and put into a header that is being made, so that a header that was written
//! anew is known by the same digest as the one that was lost.

pub use cryptvol_common::header::fingerprint;
use cryptvol_crds::v1alpha1::VolumeKeyDigest;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{BINARY, CHECKSUM, CHECKSUM_LEN, Luks, checksum, is_zero, text};

/// The digest of a header's only encrypted segment.
///
/// # Errors
/// When the header has another number of digests than one, or none of the usual form; says why.
pub fn read(luks: &Luks) -> Result<VolumeKeyDigest, String> {
    let (first, second) = luks.bytes.split_at(luks.copy_size());
    let copy = if is_zero(first) { second } else { first };
    let metadata = metadata(copy)?;
    let digests = metadata["digests"].as_object().ok_or("no digests")?;
    let mut digests = digests.values();
    let (Some(digest), None) = (digests.next(), digests.next()) else {
        return Err("it has not exactly one digest".into());
    };
    let text = |name: &str| digest[name].as_str().map(str::to_owned).ok_or("digest");
    Ok(VolumeKeyDigest {
        hash: text("hash")?,
        iterations: digest["iterations"].as_i64().ok_or("digest")?,
        salt: text("salt")?,
        digest: text("digest")?,
    })
}

/// Replaces the only digest in one copy of a header, and its checksum.
///
/// # Errors
/// When the copy has no single digest, or no room.
pub fn replace(copy: &mut [u8], digest: &VolumeKeyDigest) -> Result<(), String> {
    let mut metadata = metadata(copy)?;
    let digests = metadata["digests"].as_object_mut().ok_or("no digests")?;
    let mut digests = digests.values_mut();
    let (Some(place), None) = (digests.next(), digests.next()) else {
        return Err("it has not exactly one digest".into());
    };
    place["hash"] = json!(digest.hash);
    place["iterations"] = json!(digest.iterations);
    place["salt"] = json!(digest.salt);
    place["digest"] = json!(digest.digest);
    let json = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    if text(copy, 72, 32)? != "sha256" {
        return Err("another checksum than sha256".into());
    }
    let area = copy.get_mut(BINARY..).ok_or("cut off")?;
    if json.len() >= area.len() {
        return Err("no room for its metadata".into());
    }
    area.fill(0);
    area[..json.len()].copy_from_slice(&json);
    let sum = checksum::<Sha256>(copy);
    copy[CHECKSUM..CHECKSUM + CHECKSUM_LEN].fill(0);
    copy[CHECKSUM..CHECKSUM + sum.len()].copy_from_slice(&sum);
    Ok(())
}

fn metadata(copy: &[u8]) -> Result<Value, String> {
    let area = copy.get(BINARY..).ok_or("cut off")?;
    let end = area.iter().position(|b| *b == 0).unwrap_or(area.len());
    serde_json::from_slice(&area[..end]).map_err(|e| e.to_string())
}
