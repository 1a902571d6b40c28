//! Labels of authentication and authorization.

use super::LabelSet;

label_set! {
    /// Why a handshake or a call was refused.
    AuthRefusal { "reason" } [
        /// The client certificate is missing, or another authority issued it.
        Certificate = ["certificate"],
        /// The call has no token, and its connection no certificate.
        TokenMissing = ["token_missing"],
        /// The `authorization` metadata holds no token that can be parsed.
        TokenMalformed = ["token_malformed"],
        /// The algorithm of the token is not that of its key.
        Algorithm = ["algorithm"],
        /// The key of the token is not in the file of keys.
        UnknownKey = ["unknown_key"],
        /// The key does not verify the signature.
        Signature = ["signature"],
        /// Too many tokens of the connection have failed; further ones are not verified for a moment.
        TooManyInvalid = ["too_many_invalid"],
        TokenExpired = ["token_expired"],
        NotYetValid = ["not_yet_valid"],
        /// The token is for another audience.
        Audience = ["audience"],
        /// The token is from another issuer.
        Issuer = ["issuer"],
        /// The caller is authenticated and lacks the scope of the method.
        ScopeMissing = ["scope_missing"],
    ]
}

impl AuthRefusal {
    /// The value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}
