//! Where a server with data of its own keeps them and listens.

use std::path::{Path, PathBuf};

use crate::account::{self, Account};
use crate::error::DevstackError;
use crate::files;
use crate::port;

/// A server's directory, the user that it runs as, and its port.
#[derive(Debug)]
pub struct Site {
    pub(crate) directory: PathBuf,
    pub(crate) account: Option<Account>,
    pub(crate) port: u16,
    /// Whether another port may be tried.
    pub(crate) any_port: bool,
}

impl Site {
    /// Makes the directory: as wanted, or elsewhere when the account cannot reach that. Port 0 is any.
    pub(crate) fn prepare(wanted: &Path, port: u16, account: Option<Account>) -> Result<Self, DevstackError> {
        let wanted = std::path::absolute(wanted).map_err(DevstackError::file("find", wanted))?;
        let directory = account::place(&wanted, account.as_ref());
        files::make_directory(&directory, 0o700, account.as_ref())?;
        Ok(Self {
            directory,
            account,
            port,
            any_port: port == 0,
        })
    }

    /// Settles the port: the one that it has, if nobody listens there.
    pub(crate) fn claim_port(&mut self, server: &str) -> Result<(), DevstackError> {
        if self.port == 0 {
            self.port = port::free().unwrap_or(0);
        } else if !port::is_free(self.port) {
            return Err(self.port_taken(server));
        }
        match self.port {
            0 => Err(self.port_taken(server)),
            _ => Ok(()),
        }
    }

    fn port_taken(&self, server: &str) -> DevstackError {
        DevstackError::PortTaken {
            server: server.to_owned(),
            port: self.port,
        }
    }

    /// The failure of a start that this output gives away.
    pub(crate) fn failure(&self, server: &str, said: &str) -> Option<DevstackError> {
        let said = said.to_lowercase();
        if said.contains("address already in use") {
            return Some(self.port_taken(server));
        }
        files::says_disk_full(&said).then(|| DevstackError::DiskFull {
            server: server.to_owned(),
            directory: self.directory.clone(),
        })
    }
}
