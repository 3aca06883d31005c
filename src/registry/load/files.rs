//! Lists and reads the registry's files, within limits.
//!
//! Symbolic links are followed only to files below the registry's own directory, such as those of a
//! mounted ConfigMap. A link to another place could show any file of the machine in a diagnostic.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

use super::super::code::Code;
use super::super::diagnostic::{Diagnostic, Diagnostics};

/// Maximum number of rule files of a registry.
const MAX_FILES: usize = 10_000;

/// Maximum size of one rule file, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Maximum size of all rule files, in bytes.
const MAX_REGISTRY_BYTES: u64 = 64 * 1024 * 1024;

/// Maximum number of names in the directories. The worker lists them every second.
const MAX_NAMES: usize = 100_000;

/// Maximum nesting of directories.
const MAX_DIRECTORY_DEPTH: usize = 16;

/// List of the rule files of a directory, without their content. Equal lists mean that nothing
/// changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileList {
    /// Files in byte order of their paths.
    files: Vec<RuleFile>,
}

impl FileList {
    /// Returns the path of the first file that was added, changed or removed since an earlier list.
    pub fn first_change<'l>(&'l self, earlier: &'l Self) -> Option<&'l str> {
        let (now, before) = (&self.files, &earlier.files);
        let place = now.iter().zip(before).take_while(|(now, before)| now == before).count();
        let changed = match (now.get(place), before.get(place)) {
            (Some(now), Some(before)) if before.path < now.path => Some(before),
            (now, before) => now.or(before),
        };
        changed.map(|file| file.shown_path.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RuleFile {
    /// Path below the registry's directory, with `/`.
    path: String,
    /// Path that a user would open.
    shown_path: String,
    /// Path without links.
    real_path: PathBuf,
    version: FileVersion,
}

/// Properties that change whenever a file's content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileVersion {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file, read.
pub(super) struct ReadFile {
    /// Path below the registry's directory, with `/`.
    pub(super) path: String,
    /// Path that a user would open.
    pub(super) shown_path: String,
    pub(super) bytes: Vec<u8>,
}

/// Lists the rule files below a directory.
///
/// # Errors
/// Files that cannot be listed, and links that lead out of the directory.
pub(super) fn list(schemas: &Path) -> Result<FileList, Diagnostics> {
    let root = match std::fs::canonicalize(schemas) {
        Ok(root) => root,
        Err(error) => {
            let help = "set UNSTALE_SCHEMAS to the directory of the rule files";
            let message = format!("the registry cannot be read: {}", reason(&error));
            return Err(Diagnostics(vec![Diagnostic::of_path(
                Code::FileUnreadable,
                schemas.display().to_string(),
                message,
                help,
            )]));
        }
    };
    let mut walk = Walk {
        root: &root,
        visited: HashSet::new(),
        linked: VecDeque::new(),
        files: BTreeMap::new(),
        names_left: MAX_NAMES,
        bytes_left: MAX_REGISTRY_BYTES,
        problems: Vec::new(),
    };
    let top =
        Directory { shown: schemas.to_owned(), real: root.clone(), below: String::new(), depth: 0 };
    let mut walked = walk.directory(&top);
    // Each directory is visited once, by its own name if it has one. Paths of files therefore
    // depend on no order.
    while let (Ok(()), Some(directory)) = (&walked, walk.linked.pop_front()) {
        walked = walk.directory(&directory);
    }
    if let Err(TooMuch(message)) = walked {
        let help = "remove other files, or split the registry";
        walk.problems.push(Diagnostic::of_path(
            Code::RegistryTooLarge,
            schemas.display().to_string(),
            message,
            help,
        ));
    }
    if walk.files.is_empty() && walk.problems.is_empty() {
        let help =
            "put *.yaml, *.yml or *.json files there, or name another directory in UNSTALE_SCHEMAS";
        let message = "the registry is empty: this directory holds no rule file";
        walk.problems.push(Diagnostic::of_path(
            Code::RegistryEmpty,
            schemas.display().to_string(),
            message,
            help,
        ));
    }
    if walk.problems.is_empty() {
        Ok(FileList { files: walk.files.into_values().collect() })
    } else {
        Err(Diagnostics(walk.problems))
    }
}

/// Reads the files of a list.
///
/// # Errors
/// Every file that cannot be read.
pub(super) fn read(list: FileList) -> Result<Vec<ReadFile>, ReadError> {
    let mut problems = Vec::new();
    let mut files = Vec::with_capacity(list.files.len());
    let mut is_gone = false;
    for file in list.files {
        match read_bytes(&file) {
            Ok(bytes) => {
                files.push(ReadFile { path: file.path, shown_path: file.shown_path, bytes })
            }
            Err(error) => {
                is_gone |= error.kind() == io::ErrorKind::NotFound;
                problems.push(Diagnostic::of_path(
                    Code::FileUnreadable,
                    file.shown_path,
                    format!("the file cannot be read: {}", reason(&error)),
                    "",
                ));
            }
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(ReadError { problems, is_gone }) }
}

/// Error of reading files.
pub(super) struct ReadError {
    pub(super) problems: Vec<Diagnostic>,
    /// A listed file no longer exists, because the files are being replaced.
    pub(super) is_gone: bool,
}

fn read_bytes(file: &RuleFile) -> io::Result<Vec<u8>> {
    let mut bytes =
        Vec::with_capacity(usize::try_from(file.version.size_bytes).unwrap_or_default());
    // Since the list, a pipe or a link may have replaced the file. A pipe would block the opening,
    // and a link may lead out of the registry.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits();
    let opened =
        File::options().read(true).custom_flags(flags.cast_signed()).open(&file.real_path)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // The file may have grown too.
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it has more than {} MiB",
            MAX_FILE_BYTES / 1024 / 1024
        )));
    }
    Ok(bytes)
}

struct Directory {
    shown: PathBuf,
    real: PathBuf,
    /// Path below the registry's directory, with `/`.
    below: String,
    depth: usize,
}

struct Walk<'r> {
    root: &'r Path,
    /// Devices and inodes of directories.
    visited: HashSet<(u64, u64)>,
    /// Targets of links to directories.
    linked: VecDeque<Directory>,
    files: BTreeMap<String, RuleFile>,
    names_left: usize,
    bytes_left: u64,
    problems: Vec<Diagnostic>,
}

/// A limit is exceeded, and the walk ends.
struct TooMuch(String);

impl Walk<'_> {
    fn directory(&mut self, directory: &Directory) -> Result<(), TooMuch> {
        let names = match self.names(directory) {
            Ok(names) => names?,
            Err(error) => {
                self.problems.push(unlisted(&directory.shown, &error));
                return Ok(());
            }
        };
        for name in names {
            let shown = directory.shown.join(&name);
            let Some(name) = name.to_str() else {
                self.problem(
                    Code::FileEncoding,
                    &shown,
                    "the name is not UTF-8",
                    "rename the file",
                );
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let real = directory.real.join(name);
            let below = if directory.below.is_empty() {
                name.to_owned()
            } else {
                format!("{}/{name}", directory.below)
            };
            let is_rule_file =
                [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
            match std::fs::symlink_metadata(&real) {
                Ok(metadata) if metadata.is_symlink() => {
                    self.link(&real, shown, below, is_rule_file, directory.depth)?
                }
                Ok(metadata) if metadata.is_dir() => {
                    if directory.depth == MAX_DIRECTORY_DEPTH {
                        self.problem(
                            Code::FileTooLarge,
                            &shown,
                            format!("directories are nested deeper than {MAX_DIRECTORY_DEPTH}"),
                            "",
                        );
                    } else {
                        self.directory(&Directory {
                            shown,
                            real,
                            below,
                            depth: directory.depth + 1,
                        })?;
                    }
                }
                Ok(metadata) if is_rule_file => self.file(below, shown, real, &metadata)?,
                // A name that is no rule file's may be a directory's.
                Err(error) if is_rule_file || error.kind() != io::ErrorKind::NotFound => self
                    .problem(
                        Code::FileUnreadable,
                        &shown,
                        format!("it cannot be read: {}", reason(&error)),
                        "",
                    ),
                // The other names are no rule files, or have vanished.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the names in a directory in byte order, or none if it was visited before.
    fn names(&mut self, directory: &Directory) -> io::Result<Result<Vec<OsString>, TooMuch>> {
        let metadata = std::fs::metadata(&directory.real)?;
        if !self.visited.insert((metadata.dev(), metadata.ino())) {
            return Ok(Ok(Vec::new()));
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&directory.real)? {
            let Some(left) = self.names_left.checked_sub(1) else {
                return Ok(Err(TooMuch(format!(
                    "the directories hold more than {MAX_NAMES} names"
                ))));
            };
            self.names_left = left;
            names.push(entry?.file_name());
        }
        names.sort_unstable();
        Ok(Ok(names))
    }

    fn link(
        &mut self,
        link: &Path,
        shown: PathBuf,
        below: String,
        is_rule_file: bool,
        depth: usize,
    ) -> Result<(), TooMuch> {
        let target = std::fs::canonicalize(link)
            .and_then(|target| std::fs::metadata(&target).map(|metadata| (target, metadata)));
        let (target, metadata) = match target {
            Ok(found) => found,
            Err(error) => {
                // It may be a link to a directory of rule files.
                self.problem(
                    Code::FileUnreadable,
                    &shown,
                    format!("the symbolic link cannot be followed: {}", reason(&error)),
                    "correct its target, or remove the link",
                );
                return Ok(());
            }
        };
        if !metadata.is_dir() && !is_rule_file {
            return Ok(());
        }
        if !self.is_inside(&target) {
            let help = format!(
                "link only to files inside {} that are not hidden, or copy the file there",
                self.root.display()
            );
            self.problem(
                Code::FileLink,
                &shown,
                "this symbolic link leads out of the registry",
                &help,
            );
        } else if !metadata.is_dir() {
            self.file(below, shown, target, &metadata)?;
        } else if depth == MAX_DIRECTORY_DEPTH {
            self.problem(
                Code::FileTooLarge,
                &shown,
                format!("directories are nested deeper than {MAX_DIRECTORY_DEPTH}"),
                "",
            );
        } else {
            self.linked.push_back(Directory { shown, real: target, below, depth: depth + 1 });
        }
        Ok(())
    }

    /// Returns whether a path is in the registry, and not in a hidden place such as `.git`.
    /// Kubernetes keeps a ConfigMap's files in `..2026_01_31`.
    fn is_inside(&self, target: &Path) -> bool {
        let is_shown = |name: &str| !name.starts_with('.') || name.starts_with("..");
        let is_followed = |part: Component<'_>| matches!(part, Component::Normal(name) if name.to_str().is_none_or(is_shown));
        target.strip_prefix(self.root).is_ok_and(|below| below.components().all(is_followed))
    }

    fn file(
        &mut self,
        path: String,
        shown: PathBuf,
        real_path: PathBuf,
        metadata: &Metadata,
    ) -> Result<(), TooMuch> {
        if !metadata.is_file() {
            self.problem(Code::FileUnreadable, &shown, "this is not a regular file", "");
            return Ok(());
        }
        if metadata.len() > MAX_FILE_BYTES {
            let message = format!("the file has more than {} MiB", MAX_FILE_BYTES / 1024 / 1024);
            self.problem(
                Code::FileTooLarge,
                &shown,
                message,
                "split it: the events of all files are added together",
            );
            return Ok(());
        }
        if self.files.len() == MAX_FILES {
            return Err(TooMuch(format!("the registry has more than {MAX_FILES} rule files")));
        }
        let Some(left) = self.bytes_left.checked_sub(metadata.len()) else {
            return Err(TooMuch(format!(
                "the rule files have more than {} MiB",
                MAX_REGISTRY_BYTES / 1024 / 1024
            )));
        };
        self.bytes_left = left;
        let file = RuleFile {
            shown_path: shown.display().to_string(),
            real_path,
            version: FileVersion::of(metadata),
            path,
        };
        self.files.insert(file.path.clone(), file);
        Ok(())
    }

    fn problem(&mut self, code: Code, shown: &Path, message: impl Into<String>, help: &str) {
        self.problems.push(Diagnostic::of_path(code, shown.display().to_string(), message, help));
    }
}

fn unlisted(directory: &Path, error: &io::Error) -> Diagnostic {
    let is_file = error.kind() == io::ErrorKind::NotADirectory;
    let help = if is_file {
        "give the directory that it is in: a registry is a directory of rule files"
    } else {
        ""
    };
    Diagnostic::of_path(
        Code::FileUnreadable,
        directory.display().to_string(),
        format!("the directory cannot be read: {}", reason(error)),
        help,
    )
}

/// Returns the meaning of a file system error, without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
