//! Templates: `user:{id}`.

/// A compiled template.
#[derive(Debug)]
pub struct Template;
/// A compiled value.
#[derive(Debug)]
pub struct ValueTemplate;
/// A compiled URL.
#[derive(Debug)]
pub struct UrlTemplate;
