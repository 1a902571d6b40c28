//! What a caller needs for each method.

use std::fmt;

use crate::metrics::Method;

/// What a caller may do. None implies another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Reading products, and which are hot.
    Read,
    /// Changing products.
    Write,
    /// The AdminService.
    Admin,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// As tokens write it.
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

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Reads names that are separated by spaces.
    ///
    /// # Errors
    /// Which name is no scope.
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

    /// Those of a token, which may have others that are for other services.
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

    /// Whether there is none.
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

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// All may call it.
    Nothing,
    /// An authenticated caller.
    Caller,
    /// A caller with this scope.
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
            // What it tells is in this repository; but its streams cost memory.
            Method::Reflection => Self::Caller,
            // It is answered with UNIMPLEMENTED.
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

    /// A method that is served and not in the closed list would be called without a scope.
    #[test]
    fn every_method_of_the_contract_needs_a_scope() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).expect("build.rs made the descriptors");
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
    fn a_scope_is_not_another() {
        let read = Scopes::parse("products.read").expect("a scope");
        assert!(read.contains(Scope::Read) && !read.contains(Scope::Write));
        let write = Scopes::of_token(["products.write openid", "email"].into_iter());
        assert!(write.contains(Scope::Write) && !write.contains(Scope::Read));
        assert!(Scopes::parse("products.reed").is_err());
        assert!(Scopes::of_token(["products.readx", "xhotshelf.admin"].into_iter()).is_empty());
    }
}
