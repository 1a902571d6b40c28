//! Labels of what was refused for who the caller is.

use super::LabelSet;

label_set! {
    /// Why a caller or its call was refused.
    AuthRefusal { "reason" } [
        /// A client certificate is missing, or not of the authority.
        Certificate = ["certificate"],
        /// Neither a token nor a certificate.
        TokenMissing = ["token_missing"],
        /// What is sent as a token is none.
        TokenMalformed = ["token_malformed"],
        /// Another algorithm than that of the key.
        Algorithm = ["algorithm"],
        /// A key that is not among those of the file.
        UnknownKey = ["unknown_key"],
        /// The signature is not that of the key.
        Signature = ["signature"],
        /// The token has expired.
        TokenExpired = ["token_expired"],
        /// It is not valid yet.
        NotYetValid = ["not_yet_valid"],
        /// It is for another service.
        Audience = ["audience"],
        /// It is from another issuer.
        Issuer = ["issuer"],
        /// The caller is known, and may not call this method.
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
