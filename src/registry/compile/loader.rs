//! Compiles loaders, and resolves a rule's `from` to one of them.

use std::collections::HashMap;

use super::super::code::Code;
use super::super::diagnostic::{Diagnostic, nearest};
use super::super::document::{LoaderDocument, Text};
use super::super::effect::LoaderId;
use super::super::model::{Loader, LoaderHeaders};
use super::texts::{Context, TextCompiler};

/// Maximum number of loaders that one hint names.
const LOADERS_SHOWN: usize = 10;

/// All loaders of a registry: those of the files, and one for each host of an absolute URL.
#[derive(Default)]
pub(super) struct Loaders {
    loaders: Vec<Loader>,
    /// Loaders by file and name.
    declared: HashMap<(usize, String), LoaderId>,
    /// Loaders of all files, by name.
    named: HashMap<String, Vec<LoaderId>>,
    /// Loaders of absolute URLs, by scheme and host.
    implicit: HashMap<String, LoaderId>,
}

impl Loaders {
    pub(super) fn declare(
        &mut self,
        file: usize,
        name: &Text,
        document: &LoaderDocument,
        compiler: &mut TextCompiler<'_, '_, '_>,
    ) {
        let problems = compiler.report.problems.len();
        let url = document.url.as_ref().and_then(|url| base_url(url, compiler));
        compiler.hide_lines(problems);
        let mut headers: Vec<(String, String)> = Vec::new();
        for (header, value) in &document.headers {
            let problems = compiler.report.problems.len();
            if !is_header_name(&header.text) {
                compiler.report.error(
                    Code::LoaderHeader,
                    header.at,
                    format!("`{}` is not a header name", header.text),
                );
            } else if ["host", "content-length", "transfer-encoding", "connection"]
                .contains(&header.text.to_ascii_lowercase().as_str())
            {
                compiler.report.error_with_help(
                    Code::LoaderHeader,
                    header.at,
                    format!("the header `{}` is set for each request", header.text),
                    "remove it",
                );
            }
            if let Some(filled) = compiler.literal(value, "a loader", true) {
                if filled.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
                    compiler.report.error(
                        Code::LoaderHeader,
                        value.at,
                        format!(
                            "the value of `{}` holds a character that headers do not allow",
                            header.text
                        ),
                    );
                }
                headers.push((header.text.clone(), filled));
            }
            compiler.hide_lines(problems);
        }
        let id = self.push(Loader {
            name: name.text.clone(),
            url: url.unwrap_or_default(),
            headers: LoaderHeaders(headers),
            timeout: document.timeout,
            concurrency: document.concurrency,
            rate: document.rate,
            max_bytes: document.max_bytes,
        });
        self.declared.insert((file, name.text.clone()), id);
        self.named.entry(name.text.clone()).or_default().push(id);
    }

    /// Resolves a rule's `from` to its loader, and to the path and query as a text of its own.
    pub(super) fn resolve(
        &mut self,
        from: &Text,
        context: &Context<'_>,
        compiler: &mut TextCompiler<'_, '_, '_>,
    ) -> Option<(LoaderId, Text)> {
        let text = &from.text;
        if let Some(host_at) = host_begins(text) {
            let ends = text[host_at..].find(['/', '?', '#']).map_or(text.len(), |at| host_at + at);
            let origin = Text { text: text[..ends].to_owned(), ..from.clone() };
            let url = base_url(&origin, compiler)?;
            let id = match self.implicit.get(&url) {
                Some(id) => *id,
                None => {
                    let id = self.push(Loader {
                        // As written: names are logged, and the value of a variable may be a
                        // secret.
                        name: origin.text,
                        url: url.clone(),
                        headers: LoaderHeaders::default(),
                        timeout: None,
                        concurrency: None,
                        rate: None,
                        max_bytes: None,
                    });
                    self.implicit.insert(url, id);
                    id
                }
            };
            let path = if text[ends..].starts_with('/') {
                from.tail(ends)
            } else {
                Text { at: from.at, text: format!("/{}", &text[ends..]), verbatim_from: None }
            };
            return Some((id, path));
        }
        let Some((name, _)) = text.split_once(':').filter(|(name, _)| !name.contains(['/', '{']))
        else {
            compiler.report.error_with_help(
                Code::LoaderUnknown,
                from.at,
                "this `from` names no loader",
                self.help(),
            );
            return None;
        };
        let id = self.find(name, context.file);
        match id {
            Ok(id) => Some((id, from.tail(name.len() + 1))),
            Err(message) => {
                let known = self.declared.keys().map(|(_, name)| name.as_str());
                let help = nearest(name, known)
                    .map_or_else(|| self.help(), |name| format!("did you mean `{name}`?"));
                compiler.report.error_with_help(Code::LoaderUnknown, from.at, message, help);
                None
            }
        }
    }

    /// Returns the file's own loader of that name, else the only one of the other files.
    fn find(&self, name: &str, file: usize) -> Result<LoaderId, String> {
        if let Some(id) = self.declared.get(&(file, name.to_owned())) {
            return Ok(*id);
        }
        match self.named.get(name).map(Vec::as_slice).unwrap_or_default() {
            [id] => Ok(*id),
            [_, _, ..] => Err(format!(
                "several other files declare a loader `{name}`: declare it in this one"
            )),
            [] => Err(format!("no loader is named `{name}`")),
        }
    }

    /// Returns the forms of a `from`, with the loaders that it may name.
    fn help(&self) -> String {
        let mut known: Vec<&str> = self.named.keys().map(String::as_str).collect();
        known.sort_unstable();
        let more = known.len().saturating_sub(LOADERS_SHOWN);
        known.truncate(LOADERS_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let name = if known.is_empty() {
            "declare a loader NAME under `loaders`, and write NAME:/path".to_owned()
        } else {
            format!("write NAME:/path with the NAME of a loader ({}{more})", known.join(", "))
        };
        format!("{name}; or write an absolute URL, whose host the event cannot choose")
    }

    fn push(&mut self, loader: Loader) -> LoaderId {
        self.loaders.push(loader);
        LoaderId(u32::try_from(self.loaders.len() - 1).unwrap_or(u32::MAX))
    }

    pub(super) fn finish(self) -> Vec<Loader> {
        self.loaders
    }
}

/// Returns where the host begins in an absolute URL. The URL may begin with a variable.
fn host_begins(text: &str) -> Option<usize> {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || scheme.starts_with("{vars.")
    };
    match text.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) && !scheme.contains('/') => Some(scheme.len() + 3),
        _ => text.starts_with("{vars.").then_some(0),
    }
}

/// Returns scheme, host and path with variables filled in, without a slash at the end.
fn base_url(text: &Text, compiler: &mut TextCompiler<'_, '_, '_>) -> Option<String> {
    let problems = compiler.report.problems.len();
    let filled = compiler.literal(text, "the host", false)?;
    if compiler.report.problems.len() > problems {
        // A variable without a value stays as written: there is no URL to check.
        return Some(filled.trim_end_matches('/').to_owned());
    }
    let problem = match url::Url::parse(&filled) {
        Err(error) => Some(format!("not an absolute URL: {error}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            Some("a loader's URL must begin with http:// or https://".to_owned())
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            Some("a loader's URL cannot have a query or a fragment".to_owned())
        }
        Ok(_) => None,
    };
    if let Some(message) = problem {
        let problem = Diagnostic::at(Code::LoaderUrl, compiler.report.source, text.at, message)
            .help("such as https://api.example.com")
            .without_line();
        compiler.report.push(problem);
        return None;
    }
    Some(filled.trim_end_matches('/').to_owned())
}

/// Returns whether a text is a token (RFC 9110, section 5.6.2).
fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
