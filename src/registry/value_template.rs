//! Values of `write`: JSON with templates in it.

use super::path::Path;
use super::template::Template;

/// A compiled value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueTemplate {
    /// Members in the order written, without those whose template is dropped (`{x?}`).
    Object(Vec<(String, ValueTemplate)>),
    /// Elements in order, without those whose template is dropped.
    Array(Vec<ValueTemplate>),
    /// A single placeholder keeps its JSON type. Any other template is a string.
    Text(Template),
    /// The text of a valid JSON number.
    Number(String),
    /// `true` or `false`
    Bool(bool),
    /// `null`
    Null,
}

impl ValueTemplate {
    /// Returns every template in the value, in order.
    pub fn templates(&self) -> Vec<&Template> {
        let mut found = Vec::new();
        self.collect(&mut found);
        found
    }

    /// Returns the paths that it reads, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.templates().into_iter().flat_map(Template::paths)
    }

    fn collect<'t>(&'t self, found: &mut Vec<&'t Template>) {
        match self {
            Self::Object(members) => members.iter().for_each(|(_, value)| value.collect(found)),
            Self::Array(elements) => elements.iter().for_each(|value| value.collect(found)),
            Self::Text(template) => found.push(template),
            Self::Number(_) | Self::Bool(_) | Self::Null => {}
        }
    }
}
