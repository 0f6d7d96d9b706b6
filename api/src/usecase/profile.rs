//! Writing profiles.

use holdfast_shared::domain::{Body, Claims, Kind, ProfileState, Stamp};
use holdfast_shared::repository::{Repository, WriteError, Written};

use super::{Terms, write};

/// Sets some or all fields of the user's profile. Where there is none yet, it is made from the token's claims first,
/// so that the outcome doesn't depend on whether it was read before.
///
/// # Errors
/// As [`Repository::write`].
pub async fn change(
    repository: &Repository,
    terms: Terms,
    claims: &Claims,
    change: ProfileState,
) -> Result<Written, WriteError> {
    let provision = ProfileState::provisioned(claims, Stamp::ZERO);
    write(
        repository,
        terms,
        Kind::Update,
        Body::Profile {
            change: Box::new(change),
            provision: Box::new(provision),
        },
    )
    .await
}
