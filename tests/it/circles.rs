//! No file of `src` needs a file that needs it back.
//!
//! The files are parsed by `syn`. A file needs another if a `use` or a path of its code leads there.
//! Re-exports are followed to the file of the item. Modules of tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Ident, Item, UseTree, Visibility};

/// Path of a module in the crate. The file of the root is the empty one.
type Module = Vec<String>;

/// Mentions of a file: paths as written, and its re-exports by name.
#[derive(Default)]
struct Mentions {
    paths: Vec<Vec<String>>,
    exports: BTreeMap<String, Vec<String>>,
}

impl Mentions {
    fn of(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap();
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let mut mentions = Self::default();
        mentions.visit_file(&parsed);
        mentions
    }

    fn add_tree(&mut self, before: &[String], tree: &UseTree, is_export: bool) {
        let extended = |ident: &Ident| [before, &[ident.to_string()]].concat();
        let (path, name) = match tree {
            UseTree::Path(path) => {
                return self.add_tree(&extended(&path.ident), &path.tree, is_export);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.add_tree(before, tree, is_export));
            }
            UseTree::Name(name) => (extended(&name.ident), name.ident.to_string()),
            UseTree::Rename(rename) => (extended(&rename.ident), rename.rename.to_string()),
            UseTree::Glob(_) => (before.to_vec(), "*".to_owned()),
        };
        if is_export {
            self.exports.insert(name, path);
        } else {
            self.paths.push(path);
        }
    }
}

fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<Ident>().is_ok_and(|of| of == "test")
    })
}

impl<'ast> Visit<'ast> for Mentions {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree, !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.paths.push(path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// Returns the files below a folder by their modules, without those of tests.
fn files() -> BTreeMap<Module, Mentions> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if matches!(name, "tests" | "main") {
                // The program is a user of the library.
            } else if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let within = path.strip_prefix(&root).unwrap().with_extension("");
                let mut module: Module =
                    within.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if matches!(name, "mod" | "lib") {
                    module.pop();
                }
                files.insert(module, Mentions::of(&path));
            }
        }
    }
    files
}

/// Returns the file that a path of a module leads to, or `None` if it leads out of the crate.
fn target(files: &BTreeMap<Module, Mentions>, from: &Module, path: &[String]) -> Option<Module> {
    let mut at = from.clone();
    match path.first()?.as_str() {
        "crate" => at.clear(),
        "self" => {}
        "super" => drop(at.pop()?),
        child => {
            if !files.contains_key(&[&from[..], &[child.to_owned()]].concat()) {
                return None;
            }
            at.push(child.to_owned());
        }
    }
    let mut rest = &path[1..];
    while let Some((name, after)) = rest.split_first() {
        let child = [&at[..], std::slice::from_ref(name)].concat();
        if name == "super" {
            at.pop()?;
        } else if files.contains_key(&child) {
            at = child;
        } else {
            // An item of this file, unless the file takes it from another.
            let exported = files.get(&at)?.exports.get(name);
            return match exported {
                Some(exported) => Some(target(files, &at, exported).unwrap_or(at)),
                None => Some(at),
            };
        }
        rest = after;
    }
    Some(at)
}

/// Returns whether a file needs another, directly or through others.
fn reaches(needs: &BTreeMap<&Module, BTreeSet<Module>>, from: &Module, to: &Module) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        open.extend(needs.get(module).into_iter().flatten().filter(|needed| seen.insert(needed)));
    }
    false
}

#[test]
fn no_file_needs_a_file_that_needs_it_back() {
    let files = files();
    assert!(files.len() > 200, "{} files", files.len());
    let mut needs: BTreeMap<&Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, mentions) in &files {
        let needed = mentions.paths.iter().filter_map(|path| target(&files, module, path));
        needs.insert(module, needed.filter(|needed| needed != module).collect());
    }
    let mut lines = Vec::new();
    for (module, of) in &needs {
        for needed in of.iter().filter(|needed| reaches(&needs, needed, module)) {
            lines.push(format!("{} needs {}", module.join("/"), needed.join("/")));
        }
    }
    assert!(lines.is_empty(), "these form circles:\n{}", lines.join("\n"));
}
