//! Reads our variables from the environment as text.
//!
//! Values in files are read, `UNSTALE_VAR_*` are collected separately, and unknown names cause a
//! warning. `parse` checks the values.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use super::problem::{ConfigProblem, Warning};
use super::scope::Scope;
use super::settings::{self, FILE_SUFFIX, PREFIX, RawSettings, VAR_PREFIX};
use super::vars::Vars;

/// Our variables in the environment.
pub(super) struct Environment {
    pub(super) settings: RawSettings,
    pub(super) vars: Vars,
    pub(super) problems: Vec<ConfigProblem>,
    pub(super) warnings: Vec<Warning>,
}

/// A value as given: itself, the path of a file that contains it, or, by mistake, both.
#[derive(Default)]
struct Given {
    value: Option<OsString>,
    file: Option<OsString>,
}

impl Environment {
    pub(super) fn read(
        pairs: impl Iterator<Item = (OsString, OsString)>,
        read_file: impl Fn(&Path) -> io::Result<Vec<u8>>,
        scope: Scope,
    ) -> Self {
        let mut given: BTreeMap<String, Given> = BTreeMap::new();
        let mut warnings = Vec::new();
        for (name, value) in pairs {
            if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
                continue;
            }
            match name.to_str().and_then(classify) {
                Some(Form::Value(name)) => {
                    given.entry(name.to_owned()).or_default().value = Some(value)
                }
                Some(Form::File(name)) => {
                    given.entry(name.to_owned()).or_default().file = Some(value)
                }
                None => warnings.push(unknown(&name)),
            }
        }
        warnings.sort_by(|a, b| a.setting.cmp(&b.setting));

        let mut texts = Vec::new();
        let mut vars = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, given) in given {
            let var = name.strip_prefix(VAR_PREFIX);
            if var.is_none() && !scope.reads(&name) {
                continue;
            }
            match (resolve(&name, given, &read_file), var) {
                (Ok(text), Some(var)) => drop(vars.insert(var.to_owned(), text)),
                (Ok(text), None) => texts.push((name, text)),
                (Err(problem), _) => problems.push(problem),
            }
        }
        // Every field is optional text and every name is known, so envy has nothing to refuse. Its
        // message would contain values.
        let settings = envy::prefixed(PREFIX).from_iter(texts).unwrap_or_else(|_| {
            problems.push(ConfigProblem {
                setting: format!("{PREFIX}*"),
                message: "the environment could not be read".to_owned(),
            });
            RawSettings::default()
        });
        Self { settings, vars: Vars(vars), problems, warnings }
    }
}

/// One of our variables, and the form of its value.
enum Form<'a> {
    Value(&'a str),
    File(&'a str),
}

fn classify(name: &str) -> Option<Form<'_>> {
    if let Some(var) = name.strip_prefix(VAR_PREFIX) {
        return match var.strip_suffix(FILE_SUFFIX) {
            Some("") => None,
            Some(_) => name.strip_suffix(FILE_SUFFIX).map(Form::File),
            None => (!var.is_empty()).then_some(Form::Value(name)),
        };
    }
    if settings::find(name).is_some() {
        return Some(Form::Value(name));
    }
    name.strip_suffix(FILE_SUFFIX).filter(|bare| settings::find(bare).is_some()).map(Form::File)
}

fn resolve(
    name: &str,
    given: Given,
    read_file: impl Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<String, ConfigProblem> {
    let problem =
        |setting: String, message: &str| ConfigProblem { setting, message: message.to_owned() };
    let file_name = || format!("{name}{FILE_SUFFIX}");
    match (given.value, given.file) {
        (Some(_), Some(_)) => Err(ConfigProblem {
            setting: name.to_owned(),
            message: format!("set twice, as {name} and as {name}{FILE_SUFFIX}: keep one of them"),
        }),
        (Some(value), None) => value
            .into_string()
            .map_err(|_| problem(name.to_owned(), "not UTF-8: set it as UTF-8 text")),
        (None, Some(path)) if path.is_empty() => {
            Err(problem(file_name(), "empty: expected the path of a file that contains the value"))
        }
        (None, Some(path)) => {
            let bytes = read_file(Path::new(&path)).map_err(|error| {
                let message = format!(
                    "its file cannot be read ({}): correct the path or the file's permissions",
                    reason(&error)
                );
                ConfigProblem { setting: file_name(), message }
            })?;
            let mut text = String::from_utf8(bytes).map_err(|_| {
                problem(file_name(), "its file is not UTF-8: write it as UTF-8 text")
            })?;
            if text.ends_with('\n') {
                text.pop();
                if text.ends_with('\r') {
                    text.pop();
                }
            }
            Ok(text)
        }
        (None, None) => Ok(String::new()),
    }
}

/// Returns the kind of the error only. A message may quote the path, which may be a secret in the
/// wrong variable.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        kind => kind.to_string(),
    }
}

fn unknown(name: &OsStr) -> Warning {
    // Escaped, since a name may contain anything except `=`.
    let shown = name.to_string_lossy().escape_debug().to_string();
    let message = if is_service_link(&shown) {
        "ignored: not a setting; Docker or Kubernetes probably set it for a service of that name"
            .to_owned()
    } else {
        match settings::nearest(&shown) {
            Some(nearest) if shown.ends_with(FILE_SUFFIX) => {
                format!("ignored: unknown setting; did you mean {nearest}{FILE_SUFFIX}?")
            }
            Some(nearest) => format!("ignored: unknown setting; did you mean {nearest}?"),
            None if shown.starts_with(VAR_PREFIX) => {
                format!("ignored: a name is missing after {VAR_PREFIX}")
            }
            None => "ignored: unknown setting".to_owned(),
        }
    };
    Warning { setting: shown, message }
}

/// Returns whether the orchestrator set the variable for a service with the name `unstale` or
/// `unstale-…`.
///
/// The names are `<SERVICE>_SERVICE_HOST`, `<SERVICE>_SERVICE_PORT…`, `<SERVICE>_PORT` and
/// `<SERVICE>_PORT_<n>_TCP…`. They are in the Kubernetes documentation ("Accessing the Service",
/// environment variables). Docker's legacy links have the same names.
fn is_service_link(name: &str) -> bool {
    let (_, after_port) = name.rsplit_once("_PORT").unwrap_or(("", "_"));
    let numbered = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && (rest[digits..].starts_with("_TCP") || rest[digits..].starts_with("_UDP"))
    });
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || after_port.is_empty()
        || numbered
}
