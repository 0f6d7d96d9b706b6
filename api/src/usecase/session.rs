//! Revoking sessions.

use holdfast_shared::domain::{Revocation, SessionId, Timestamp, UserId};
use holdfast_shared::repository::{Repository, WriteError, Written};

/// Revokes a session of this user's; `expires_at` is when its token ends, so that the revocation outlives it.
///
/// # Errors
/// As [`Repository::revoke`].
pub async fn revoke(
    repository: &Repository,
    user: &UserId,
    id: SessionId,
    expires_at: Timestamp,
) -> Result<Written, WriteError> {
    let revocation = Revocation::new(id, repository.now(), Some(expires_at));
    repository.revoke(user, revocation).await
}
