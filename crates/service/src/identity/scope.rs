//! The scopes, and those of a tenant's first keys.

use std::fmt;

/// Declares the scopes, each with its name.
macro_rules! scopes {
    ($($(#[$meta:meta])* $scope:ident = $name:literal;)+) => {
        /// A right that a credential can have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Scope {
            $($(#[$meta])* $scope,)+
        }

        impl Scope {
            /// Every scope.
            pub const ALL: &[Self] = &[$(Self::$scope),+];

            /// The scope as it is written: `orders:write`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$scope => $name,)+
                }
            }
        }
    };
}

scopes! {
    /// Commands on orders.
    OrdersWrite = "orders:write";
    /// Orders, lists and totals.
    OrdersRead = "orders:read";
    /// Commands on stock items.
    StockWrite = "stock:write";
    /// Stock levels.
    StockRead = "stock:read";
    /// Histories, for auditors.
    EventsRead = "events:read";
    /// The life of projections, for operators.
    ProjectionsOperate = "projections:operate";
    /// Tenants and their keys.
    TenantsAdmin = "tenants:admin";
}

impl Scope {
    /// The scope that is written like this; `None` when this version does not know it.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|scope| scope.as_str() == name)
    }

    /// Whether only the deployment's operators can have it. `event_store.api_key` has the same rule as a constraint.
    #[must_use]
    pub const fn is_deployments(self) -> bool {
        matches!(self, Self::ProjectionsOperate | Self::TenantsAdmin)
    }

    const fn bit(self) -> u64 {
        1 << self as u32
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The users of a key. A new area's scopes to read and to write go to the keys of those who need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Internal services: they read and write every area.
    Service,
    /// Frontends: they read every area.
    Frontend,
    /// Auditors: they read every area, and histories.
    Auditor,
    /// The deployment's operators.
    Operator,
}

impl Audience {
    /// The scopes of such a key.
    #[must_use]
    pub fn scopes(self) -> Vec<Scope> {
        Scope::ALL
            .iter()
            .copied()
            .filter(|scope| self.may(*scope))
            .collect()
    }

    fn may(self, scope: Scope) -> bool {
        if scope.is_deployments() {
            return self == Self::Operator;
        }
        let (reads, writes) = (
            scope.as_str().ends_with(":read"),
            scope.as_str().ends_with(":write"),
        );
        let reads_area = reads && scope != Scope::EventsRead;
        match self {
            Self::Service => reads_area || writes,
            Self::Frontend => reads_area,
            Self::Auditor => reads,
            Self::Operator => false,
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ScopeSet(u64);

impl ScopeSet {
    /// Whether the set holds the scope.
    #[must_use]
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Reads scopes as they are written. A name that this version does not know grants nothing.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().filter_map(Scope::by_name).collect()
    }

    /// The scopes in the set.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        let all = Scope::ALL.iter().copied();
        all.filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | scope.bit()))
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Scope::as_str)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_audience_has_the_scopes_of_its_work_and_no_others() {
        use Audience::{Auditor, Frontend, Operator, Service};

        let who_has = |scope| {
            let audiences = [Service, Frontend, Auditor, Operator].into_iter();
            audiences.filter(move |audience| audience.scopes().contains(&scope))
        };
        assert!(who_has(Scope::OrdersWrite).eq([Service]));
        assert!(who_has(Scope::OrdersRead).eq([Service, Frontend, Auditor]));
        assert!(who_has(Scope::EventsRead).eq([Auditor]));
        assert!(who_has(Scope::ProjectionsOperate).eq([Operator]));
        assert!(who_has(Scope::TenantsAdmin).eq([Operator]));
    }

    #[test]
    fn the_deployments_scopes_are_its_operators_alone_whatever_they_are_called() {
        use Audience::{Auditor, Frontend, Operator, Service};

        for audience in [Service, Frontend, Auditor, Operator] {
            let is_operator = audience == Operator;
            for scope in audience.scopes() {
                assert_eq!(scope.is_deployments(), is_operator, "{audience:?} has {scope}");
            }
        }
    }

    #[test]
    fn a_set_holds_what_was_put_into_it() {
        for &scope in Scope::ALL {
            let alone: ScopeSet = [scope].into_iter().collect();
            assert!(alone.iter().eq([scope]));
            assert_eq!(Scope::by_name(scope.as_str()), Some(scope));
        }
    }
}
