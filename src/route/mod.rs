//! Steps 2 and 3, match and price: which operation a call is, and what it costs.
//!
//! Knows no limits, no stores, no sockets.

pub mod canonical;
pub mod pricing;
pub mod table;

pub use table::{RouteTable, TableError};

use std::borrow::Cow;

/// Which of its two equivalent addresses an app was called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `/{org_name}/{app_name}/…`
    AppKey,
    /// `/app-id/{app_id}/…`
    AppId,
}

/// An app's address, cut off the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRef<'p> {
    /// The form.
    pub form: Form,
    /// `org#app`, or the App ID, as the canonical path spells it.
    pub name: Cow<'p, str>,
}
