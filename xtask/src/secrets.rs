//! What the stack has to remember between two starts and show to nobody: `.daybook/secrets.json`, mode 0600.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use daybook_devstack::files::write_secret;
use serde::{Deserialize, Serialize};

/// The keys of a demo tenant and of the deployment's operators, one per kind of user, as `daybook bootstrap --output json`
/// prints them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(crate) tenant_id: String,
    pub(crate) service_key: String,
    pub(crate) frontend_key: String,
    pub(crate) auditor_key: String,
    pub(crate) operator_key: String,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    /// What the passwords of the services' database roles are derived from.
    role_secret: String,
    /// What consistency tokens and cursors are sealed with.
    sealing_key: String,
    /// The demo tenant of each database: the private one, and any of the user's own.
    tenants: BTreeMap<String, Tenant>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Tenant {
    keys: Keys,
    demo_loaded: bool,
}

/// The secrets of this checkout.
#[derive(Debug)]
pub(crate) struct Secrets {
    path: PathBuf,
    content: Content,
}

impl Secrets {
    /// Reads them, or makes them up the first time.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let path = directory.join("secrets.json");
        if let Ok(text) = std::fs::read_to_string(&path) {
            let content = serde_json::from_str(&text);
            let content = content
                .with_context(|| format!("{} is damaged: delete .daybook and start anew", path.display()));
            return Ok(Self {
                path,
                content: content?,
            });
        }
        let content = Content {
            role_secret: random_hex(),
            sealing_key: random_hex(),
            tenants: BTreeMap::new(),
        };
        let secrets = Self { path, content };
        secrets.save()?;
        Ok(secrets)
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.content).expect("strings and maps are always JSON");
        Ok(write_secret(&self.path, &text, None)?)
    }

    pub(crate) fn role_secret(&self) -> &str {
        &self.content.role_secret
    }

    pub(crate) fn sealing_key(&self) -> &str {
        &self.content.sealing_key
    }

    pub(crate) fn keys(&self, database: &str) -> Option<&Keys> {
        self.content.tenants.get(database).map(|tenant| &tenant.keys)
    }

    pub(crate) fn remember_keys(&mut self, database: &str, keys: Keys) -> Result<()> {
        self.content.tenants.insert(
            database.to_owned(),
            Tenant {
                keys,
                demo_loaded: false,
            },
        );
        self.save()
    }

    pub(crate) fn forget(&mut self, database: &str) {
        self.content.tenants.remove(database);
    }

    pub(crate) fn is_demo_loaded(&self, database: &str) -> bool {
        self.content
            .tenants
            .get(database)
            .is_some_and(|tenant| tenant.demo_loaded)
    }

    pub(crate) fn remember_demo(&mut self, database: &str) -> Result<()> {
        if let Some(tenant) = self.content.tenants.get_mut(database) {
            tenant.demo_loaded = true;
        }
        self.save()
    }
}

/// 256 random bits.
fn random_hex() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}
