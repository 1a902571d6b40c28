//! The scope that each method requires.

use std::fmt;

use crate::metrics::Method;

/// A permission. No scope implies another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Read products and hot keys.
    Read,
    /// Create, update and delete products.
    Write,
    /// Call the AdminService.
    Admin,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The name in tokens.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "products.read",
            Self::Write => "products.write",
            Self::Admin => "hotshelf.admin",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A set of scopes, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Parses names separated by spaces.
    ///
    /// # Errors
    /// Names the first one that is not a scope.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut scopes = Self::default();
        for name in text.split_whitespace() {
            let scope = Scope::of_name(name);
            scopes.insert(scope.ok_or_else(|| {
                let known = Scope::ALL.map(Scope::name).join(", ");
                format!("{name} is not a scope; use {known}, separated by spaces")
            })?);
        }
        Ok(scopes)
    }

    /// The scopes of a token; names that belong to other services are ignored.
    pub(super) fn of_token<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut scopes = Self::default();
        names.flat_map(str::split_whitespace).filter_map(Scope::of_name).for_each(|scope| {
            scopes.insert(scope);
        });
        scopes
    }

    fn insert(&mut self, scope: Scope) {
        self.0 |= 1 << scope as u8;
    }

    pub(super) fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Scope::ALL.iter().filter(|scope| self.contains(**scope))).finish()
    }
}

/// What a method requires of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// No authentication.
    Nothing,
    /// An authenticated caller.
    Caller,
    /// An authenticated caller with this scope.
    Scope(Scope),
}

impl Needs {
    pub(super) fn of(method: Method) -> Self {
        match method {
            Method::GetProduct | Method::BatchGetProducts | Method::StreamHotKeys => {
                Self::Scope(Scope::Read)
            }
            Method::UpdateProduct | Method::CreateProduct | Method::DeleteProduct => {
                Self::Scope(Scope::Write)
            }
            Method::ExplainProduct => Self::Scope(Scope::Admin),
            // Load balancers and kubelets have no tokens.
            Method::HealthCheck | Method::HealthWatch => Self::Nothing,
            // Its responses are public, because the protos are; but its streams cost memory.
            Method::Reflection => Self::Caller,
            // Answered with UNIMPLEMENTED.
            Method::Other => Self::Caller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::DESCRIPTORS;
    use prost::Message;
    use prost_types::FileDescriptorSet;

    /// A method that is missing in [`Method`] would need no scope.
    #[test]
    fn every_method_of_the_protos_needs_a_scope() {
        let files =
            FileDescriptorSet::decode(DESCRIPTORS).expect("build.rs generates valid descriptors");
        let mut methods = 0;
        for file in files.file.iter().filter(|file| file.package() == "hotshelf.v1") {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/hotshelf.v1.{}/{}", service.name(), method.name());
                    let needs = Needs::of(Method::of_path(&path));
                    assert!(matches!(needs, Needs::Scope(_)), "{path} needs {needs:?}");
                    methods += 1;
                }
            }
        }
        assert!(methods >= 7, "{methods}");
    }

    #[test]
    fn no_scope_implies_another() {
        let read = Scopes::parse("products.read").expect("a scope");
        assert!(read.contains(Scope::Read) && !read.contains(Scope::Write));
        let write = Scopes::of_token(["products.write openid", "email"].into_iter());
        assert!(write.contains(Scope::Write) && !write.contains(Scope::Read));
        assert!(Scopes::parse("products.reed").is_err());
        assert!(Scopes::of_token(["products.readx", "xhotshelf.admin"].into_iter()).is_empty());
    }
}
