//! Volumes with `source.ephemeral`: the node makes their key and nobody else ever has it.

use cryptvol_crds::{
    EncryptedVolume,
    conditions::Reason,
    v1alpha1::{Activation, Encryption, Provider},
};

use super::world::Problem;

/// Whether the volume's key is random and held by the node's kernel alone.
pub fn is(volume: &EncryptedVolume) -> bool {
    volume.spec.source.ephemeral.is_some()
}

/// How the sectors of such a volume are encrypted: as its class says, without a header, which could only name a key that is not
/// there any more.
///
/// # Errors
/// A [`Problem`] where the class wants what only a header can say.
pub fn encryption(of_class: Encryption) -> Result<Encryption, Problem> {
    if of_class.integrity.is_some() {
        return Err(Problem::new(
            Reason::EncryptionClassNotFound,
            "source.ephemeral has no header, which integrity needs: name a class without it, or set spec.encryption with provider plain",
        ));
    }
    Ok(Encryption {
        provider: Provider::Plain,
        hash: None,
        detached_header: false,
        ..of_class
    })
}

/// How its mapping is made: what a guest frees is freed below, for nothing of it is of use to anybody.
pub fn activation(of_class: Activation) -> Activation {
    Activation {
        allow_discards: true,
        ..of_class
    }
}
