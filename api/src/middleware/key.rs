//! Keys that tokens are checked with. Each fixes its algorithm: what a token says of itself never chooses one.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use thiserror::Error;

/// Bytes of an HS256 secret: as many as the hash puts out (RFC 7518 §3.2).
const MIN_SECRET_BYTES: usize = 32;

/// Bytes of an RSA modulus: 2048 bits (RFC 7518 §3.3).
const MIN_MODULUS_BYTES: usize = 256;

/// Bytes of an uncompressed point on P-256.
const P256_POINT_BYTES: usize = 65;

/// Bytes of an Ed25519 public key.
const ED25519_BYTES: usize = 32;

/// Why a key can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The secret is too short to be safe.
    #[error("the secret has fewer than 32 bytes")]
    ShortSecret,
    /// The file is no PEM section `PUBLIC KEY`, or holds another kind of key.
    #[error("it is not one PEM section \"PUBLIC KEY\" with an RSA, P-256 or Ed25519 key")]
    NoPublicKey,
    /// An RSA key below 2048 bits.
    #[error("the RSA key has fewer than 2048 bits")]
    ShortRsa,
    /// A key of a set that isn't for checking signatures, or not by an algorithm used here.
    #[error("the key is not for RS256, ES256 or EdDSA signatures")]
    OtherPurpose,
    /// The values of a key of a set are malformed.
    #[error("the key is malformed")]
    Malformed,
}

/// A key and the one algorithm it is for.
#[derive(Clone)]
pub struct TokenKey {
    pub(super) decoding: DecodingKey,
    pub(super) algorithm: Algorithm,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl TokenKey {
    /// A secret, for HS256.
    ///
    /// # Errors
    /// [`KeyError::ShortSecret`].
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::ShortSecret);
        }
        Ok(TokenKey {
            decoding: DecodingKey::from_secret(secret),
            algorithm: Algorithm::HS256,
        })
    }

    /// A public key in PEM: RS256, ES256 or EdDSA by its kind.
    ///
    /// # Errors
    /// [`KeyError::NoPublicKey`], [`KeyError::ShortRsa`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        // The decoders below also take private keys and certificates, whose first bit string is something else.
        if !pem
            .windows(PUBLIC_KEY_MARK.len())
            .any(|window| window == PUBLIC_KEY_MARK)
        {
            return Err(KeyError::NoPublicKey);
        }
        let rsa = || Some((DecodingKey::from_rsa_pem(pem).ok()?, Algorithm::RS256));
        let ec = || Some((DecodingKey::from_ec_pem(pem).ok()?, Algorithm::ES256));
        let ed = || Some((DecodingKey::from_ed_pem(pem).ok()?, Algorithm::EdDSA));
        let (decoding, algorithm) = rsa().or_else(ec).or_else(ed).ok_or(KeyError::NoPublicKey)?;
        let key = TokenKey {
            decoding,
            algorithm,
        };
        key.check_size(KeyError::NoPublicKey)?;
        Ok(key)
    }

    /// A key of a JSON Web Key Set. `alg` may be missing, but must not be another one.
    ///
    /// # Errors
    /// [`KeyError::OtherPurpose`], [`KeyError::ShortRsa`], [`KeyError::Malformed`].
    pub fn from_jwk(jwk: &Jwk) -> Result<Self, KeyError> {
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return Err(KeyError::OtherPurpose),
        };
        let other_algorithm = jwk.common.key_algorithm.is_some_and(|own| own != named);
        if other_algorithm || !is_for_checking(jwk) {
            return Err(KeyError::OtherPurpose);
        }
        let decoding = DecodingKey::from_jwk(jwk).map_err(|_| KeyError::Malformed)?;
        let key = TokenKey {
            decoding,
            algorithm,
        };
        key.check_size(KeyError::Malformed)?;
        Ok(key)
    }

    /// Refuses what would fail, or be unsafe, at each token.
    fn check_size(&self, otherwise: KeyError) -> Result<(), KeyError> {
        if self.algorithm == Algorithm::RS256 {
            let bytes = self.modulus_bytes().ok_or(otherwise)?;
            return if bytes < MIN_MODULUS_BYTES {
                Err(KeyError::ShortRsa)
            } else {
                Ok(())
            };
        }
        let expected = if self.algorithm == Algorithm::ES256 {
            P256_POINT_BYTES
        } else {
            ED25519_BYTES
        };
        match self.decoding.try_get_as_bytes() {
            Ok(bytes) if bytes.len() == expected => Ok(()),
            _ => Err(otherwise),
        }
    }

    fn modulus_bytes(&self) -> Option<usize> {
        let jwk = Jwk::from_decoding_key(&self.decoding, None).ok()?;
        match jwk.algorithm {
            // Unpadded base64: four characters for three bytes.
            AlgorithmParameters::RSA(key) => Some(key.n.len() * 3 / 4),
            _ => None,
        }
    }
}

const PUBLIC_KEY_MARK: &[u8] = b"-----BEGIN PUBLIC KEY-----";

fn is_for_checking(jwk: &Jwk) -> bool {
    let used_so = jwk
        .common
        .public_key_use
        .as_ref()
        .is_none_or(|r#use| *r#use == PublicKeyUse::Signature);
    let operations = jwk.common.key_operations.as_ref();
    used_so && operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify))
}
