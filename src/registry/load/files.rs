//! The registry's files: which there are, and their bytes, within bounds.
//!
//! Symbolic links are followed only to what lies beneath the registry's own directory, as those of
//! a mounted ConfigMap do. A link that leads elsewhere could show any file of the machine in a
//! diagnostic.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::super::diagnostic::{Problem, Problems};

/// Most rule files of a registry.
const MAX_FILES: usize = 10_000;

/// Most bytes of one rule file.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Most bytes of all rule files.
const MAX_REGISTRY_BYTES: u64 = 64 * 1024 * 1024;

/// Most names that the directories may hold, rule files or not: the worker looks at them every
/// second.
const MAX_NAMES: usize = 100_000;

/// The deepest nesting of directories.
const MAX_DIRECTORY_DEPTH: usize = 16;

/// The rule files of a directory, as far as can be told without reading them. Equal as long as
/// nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileList {
    /// In byte order of their paths.
    files: Vec<RuleFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RuleFile {
    /// Below the registry's directory, with `/`.
    path: String,
    /// As a person would open it.
    shown_path: String,
    /// Without links.
    real_path: PathBuf,
    version: FileVersion,
}

/// Changes whenever a file's content does.
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

/// A file that was read.
pub(super) struct ReadFile {
    /// Below the registry's directory, with `/`.
    pub(super) path: String,
    /// As a person would open it.
    pub(super) shown_path: String,
    pub(super) bytes: Vec<u8>,
}

/// Lists the rule files below a directory.
///
/// # Errors
/// Everything that cannot be listed, and every link that leads out of the directory.
pub(super) fn list(schemas: &Path) -> Result<FileList, Problems> {
    let root = match std::fs::canonicalize(schemas) {
        Ok(root) => root,
        Err(error) => {
            let hint = "UNSTALE_SCHEMAS names the directory of schema files";
            let message = format!("the registry cannot be read: {}", reason(&error));
            return Err(Problems(vec![Problem::of_path(
                schemas.display().to_string(),
                message,
                hint,
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
    // Each directory is visited once, by its own name if it has one: so the files' paths depend on
    // no order.
    while let (Ok(()), Some(directory)) = (&walked, walk.linked.pop_front()) {
        walked = walk.directory(&directory);
    }
    if let Err(TooMuch(message)) = walked {
        let hint = "remove what is no rule file, or split the registry";
        walk.problems.push(Problem::of_path(schemas.display().to_string(), message, hint));
    }
    if walk.files.is_empty() && walk.problems.is_empty() {
        let hint =
            "put *.yaml, *.yml or *.json files there, or name another directory in UNSTALE_SCHEMAS";
        let message = "the registry is empty: no schema file stands in this directory";
        walk.problems.push(Problem::of_path(schemas.display().to_string(), message, hint));
    }
    if walk.problems.is_empty() {
        Ok(FileList { files: walk.files.into_values().collect() })
    } else {
        Err(Problems(walk.problems))
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
                problems.push(Problem::of_path(
                    file.shown_path,
                    format!("the file cannot be read: {}", reason(&error)),
                    "",
                ));
            }
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(ReadError { problems, is_gone }) }
}

/// Why files could not be read.
pub(super) struct ReadError {
    pub(super) problems: Vec<Problem>,
    /// A listed file is gone: the files are being replaced just now.
    pub(super) is_gone: bool,
}

fn read_bytes(file: &RuleFile) -> io::Result<Vec<u8>> {
    let mut bytes =
        Vec::with_capacity(usize::try_from(file.version.size_bytes).unwrap_or_default());
    // It may have grown since it was listed.
    File::open(&file.real_path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
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
    /// Its path below the registry's directory, with `/`.
    below: String,
    depth: usize,
}

struct Walk<'r> {
    root: &'r Path,
    /// Devices and inodes of directories.
    visited: HashSet<(u64, u64)>,
    /// Directories that links lead to.
    linked: VecDeque<Directory>,
    files: BTreeMap<String, RuleFile>,
    names_left: usize,
    bytes_left: u64,
    problems: Vec<Problem>,
}

/// The registry is beyond a limit: nothing more is looked at.
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
                self.problem(&shown, "the name is not UTF-8", "rename the file");
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
                Err(error) if is_rule_file => {
                    self.problem(&shown, format!("the file cannot be read: {}", reason(&error)), "")
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the names in a directory in byte order; none where it was visited before.
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
                if is_rule_file {
                    self.problem(
                        &shown,
                        format!("the symbolic link cannot be followed: {}", reason(&error)),
                        "",
                    );
                }
                return Ok(());
            }
        };
        if !metadata.is_dir() && !is_rule_file {
            return Ok(());
        }
        if !self.is_inside(&target) {
            let hint = format!(
                "links may lead to what lies in {}, and not to its hidden files: copy the files there",
                self.root.display()
            );
            self.problem(&shown, "this symbolic link leads out of the registry", &hint);
        } else if !metadata.is_dir() {
            self.file(below, shown, target, &metadata)?;
        } else if depth == MAX_DIRECTORY_DEPTH {
            self.problem(
                &shown,
                format!("directories are nested deeper than {MAX_DIRECTORY_DEPTH}"),
                "",
            );
        } else {
            self.linked.push_back(Directory { shown, real: target, below, depth: depth + 1 });
        }
        Ok(())
    }

    /// Whether a path lies in the registry, and not in a hidden place such as `.git`. Kubernetes
    /// keeps a ConfigMap's files in `..2026_01_31`.
    fn is_inside(&self, target: &Path) -> bool {
        let is_shown = |name: &str| !name.starts_with('.') || name.starts_with("..");
        target
            .strip_prefix(self.root)
            .is_ok_and(|below| below.components().all(|part| matches!(part, Component::Normal(name) if name.to_str().is_none_or(is_shown))))
    }

    fn file(
        &mut self,
        path: String,
        shown: PathBuf,
        real_path: PathBuf,
        metadata: &Metadata,
    ) -> Result<(), TooMuch> {
        if !metadata.is_file() {
            self.problem(&shown, "this is no regular file", "");
            return Ok(());
        }
        if metadata.len() > MAX_FILE_BYTES {
            let message = format!("the file has more than {} MiB", MAX_FILE_BYTES / 1024 / 1024);
            self.problem(&shown, message, "split it: events of several files add up");
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

    fn problem(&mut self, shown: &Path, message: impl Into<String>, hint: &str) {
        self.problems.push(Problem::of_path(shown.display().to_string(), message, hint));
    }
}

fn unlisted(directory: &Path, error: &io::Error) -> Problem {
    let is_file = error.kind() == io::ErrorKind::NotADirectory;
    let hint = if is_file {
        "give the directory that it is in: a registry is all the schema files of a directory"
    } else {
        ""
    };
    Problem::of_path(
        directory.display().to_string(),
        format!("the directory cannot be read: {}", reason(error)),
        hint,
    )
}

/// Returns what an error of the file system means, without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(root: &Path) -> Result<Vec<String>, String> {
        list(root)
            .map(|list| list.files.into_iter().map(|file| file.path).collect())
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_mounted_config_map_is_read_before_and_after_its_swap() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (version, text) in [("..2026_01", "old"), ("..2026_02", "new")] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("a.yaml"), text).unwrap();
        }
        symlink("..2026_01", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        let look =
            || (list(root).unwrap(), read(list(root).unwrap()).ok().unwrap().remove(0).bytes);
        let (old_list, old) = look();
        symlink("..2026_02", root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        let (new_list, new) = look();
        assert_eq!((old, new), (b"old".to_vec(), b"new".to_vec()));
        assert_ne!(old_list, new_list);
    }

    #[test]
    fn links_that_lead_out_are_refused_by_name() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "amqp://user:S3cret@rabbit").unwrap();
        fs::create_dir(outside.path().join("more")).unwrap();
        for (target, name) in [
            (outside.path().join("secret"), "b.yaml"),
            (outside.path().join("more"), "more"),
            (PathBuf::from("/dev/zero"), "zero.yaml"),
            (PathBuf::from(".git/config"), "config.yaml"),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join(".git")).unwrap();
            fs::write(root.path().join(".git/config"), "token: S3cret").unwrap();
            fs::write(root.path().join("a.yaml"), "events: {}").unwrap();
            symlink(target, root.path().join(name)).unwrap();
            let problem = paths(root.path()).unwrap_err();
            assert!(
                problem.contains(name) && problem.contains("leads out of the registry"),
                "{problem}"
            );
            assert!(!problem.contains("S3cret"), "{problem}");
        }
    }

    #[test]
    fn links_back_up_and_beside_are_followed_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir(root.join("common")).unwrap();
        fs::write(root.join("common/a.yaml"), "events: {}").unwrap();
        for name in ["again", "and-again", "common/up", "before"] {
            symlink(root, root.join(name)).unwrap();
        }
        symlink("common", root.join("also")).unwrap();
        symlink("nowhere", root.join("broken")).unwrap();
        symlink("common/a.yaml", root.join("b.yaml")).unwrap();
        assert_eq!(paths(root).unwrap(), ["b.yaml", "common/a.yaml"]);
        symlink("nowhere", root.join("broken.yaml")).unwrap();
        assert!(paths(root).unwrap_err().contains("cannot be followed"));
    }

    #[test]
    fn large_files_are_refused_unread() {
        let root = tempfile::tempdir().unwrap();
        File::create(root.path().join("a.yaml")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(paths(root.path()).unwrap_err().contains("more than 16 MiB"));
        for file in 0..=MAX_REGISTRY_BYTES / MAX_FILE_BYTES {
            File::create(root.path().join(format!("{file}.yaml")))
                .unwrap()
                .set_len(MAX_FILE_BYTES)
                .unwrap();
        }
        fs::remove_file(root.path().join("a.yaml")).unwrap();
        assert!(paths(root.path()).unwrap_err().contains("more than 64 MiB"));
    }

    #[test]
    fn a_change_of_content_changes_the_list() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a.yaml");
        fs::write(&file, "events: {}").unwrap();
        let first = list(root.path()).unwrap();
        assert_eq!(list(root.path()).unwrap(), first);
        fs::write(&file, "events: {} #").unwrap();
        assert_ne!(list(root.path()).unwrap(), first);
    }
}
