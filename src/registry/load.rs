//! Loads a directory of rule files into a [`LoadedRegistry`], or returns every reason why it
//! cannot.
//!
//! `files` lists and reads the files. Compiling is the task of [`compile`](super::compile).

mod files;

use sha2::{Digest, Sha256};

use super::code::Code;
use super::compile::{self, File};
use super::diagnostic::{Diagnostic, Diagnostics, Report, Severity, SourceFile};
use super::document::{self, Document};
use super::loaded::LoadedRegistry;
use super::model::Registry;
use super::options::LoadOptions;
use super::tree::{self, Allowance};
use crate::config::Vars;
use files::ReadFile;

pub use files::FileList;

impl Registry {
    /// Reads and compiles every `*.yaml`, `*.yml` and `*.json` file below the directory.
    ///
    /// Names that begin with a dot are skipped. Kubernetes keeps a mounted ConfigMap in `..data`,
    /// and links to its files.
    ///
    /// # Errors
    /// Every problem of every file, with warnings. For syntax errors, the first of each file.
    pub fn load(options: &LoadOptions) -> Result<LoadedRegistry, Diagnostics> {
        let (files, digest) = read_all(options)?;
        let mut problems = Vec::new();
        let mut sources = Vec::with_capacity(files.len());
        for ReadFile { path, shown_path, bytes } in files {
            match String::from_utf8(bytes) {
                Ok(text) => sources.push(SourceFile::new(path, shown_path, text)),
                Err(error) => problems.push(not_utf8(&shown_path, &error)),
            }
        }
        compile_sources(&sources, options, digest, problems)
    }
}

/// Returns the digest of the registry in this directory, without compiling it.
///
/// # Errors
/// Files that cannot be read.
pub fn digest_of(options: &LoadOptions) -> Result<String, Diagnostics> {
    read_all(options).map(|(_, digest)| digest)
}

/// Lists the registry's files without reading them. The list of an unchanged registry equals the
/// previous one.
///
/// # Errors
/// Files that cannot be listed, and links that lead out of the directory.
pub fn list_files(options: &LoadOptions) -> Result<FileList, Diagnostics> {
    files::list(&options.schemas)
}

/// Returns two bytes that depend on the names and values of the variables, which affect the effects
/// of an event.
///
/// More bytes would allow guesses at a secret value, because the digest is shown.
fn checksum(vars: &Vars) -> [u8; 2] {
    let mut all = Sha256::new();
    for part in vars.0.iter().flat_map(|(name, value)| [name, value]) {
        all.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.update(part);
    }
    let all = all.finalize();
    [all[0], all[1]]
}

/// Maximum number of listings if a listed file no longer exists. By then, the swap of a ConfigMap
/// is complete.
const MAX_LISTINGS: usize = 3;

/// Reads the files of a directory in byte order of their paths, and computes the digest.
fn read_all(options: &LoadOptions) -> Result<(Vec<ReadFile>, String), Diagnostics> {
    let mut listings = 1;
    let files = loop {
        match files::read(files::list(&options.schemas)?) {
            Ok(files) => break files,
            Err(error) if error.is_gone && listings < MAX_LISTINGS => listings += 1,
            Err(error) => return Err(Diagnostics(error.problems)),
        }
    };
    let mut digest = Sha256::new();
    for ReadFile { path, bytes, .. } in &files {
        for part in [path.as_bytes(), bytes] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
    }
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(checksum(&options.vars));
    Ok((files, digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Compiles files, which are in byte order of their paths.
pub(super) fn compile_sources(
    sources: &[SourceFile],
    options: &LoadOptions,
    digest: String,
    mut problems: Vec<Diagnostic>,
) -> Result<LoadedRegistry, Diagnostics> {
    let mut allowance = Allowance::default();
    let files = sources.iter().map(|source| read(source, &mut allowance)).collect();
    let compiled = compile::compile(files, &mut allowance, options, digest);
    problems.extend(compiled.problems);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Diagnostics(problems));
    }
    Ok(LoadedRegistry {
        registry: compiled.registry,
        warnings: problems,
        examples: compiled.examples,
        key_prefix: options.key_prefix.clone(),
    })
}

fn read<'s>(source: &'s SourceFile, allowance: &mut Allowance) -> File<'s> {
    let mut report = Report::new(source);
    let root = tree::parse(&mut report, allowance);
    let document = root
        .as_ref()
        .map_or_else(Document::default, |root| document::read::read(root, &mut report));
    File { report, root, document }
}

fn not_utf8(shown_path: &str, error: &std::string::FromUtf8Error) -> Diagnostic {
    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column =
        String::from_utf8_lossy(valid.rsplit(|&byte| byte == b'\n').next().unwrap_or_default())
            .chars()
            .count()
            + 1;
    let mut problem = Diagnostic::of_path(
        Code::FileEncoding,
        shown_path,
        "the file is not UTF-8",
        "save it as UTF-8",
    );
    problem.line = u32::try_from(line).unwrap_or(u32::MAX);
    problem.column = u32::try_from(column).unwrap_or(u32::MAX);
    problem
}

#[cfg(test)]
mod tests;
