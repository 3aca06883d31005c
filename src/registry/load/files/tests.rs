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
    let look = || (list(root).unwrap(), read(list(root).unwrap()).ok().unwrap().remove(0).bytes);
    let (old_list, old) = look();
    symlink("..2026_02", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    let (new_list, new) = look();
    assert_eq!((old, new), (b"old".to_vec(), b"new".to_vec()));
    assert_ne!(old_list, new_list);
}

#[test]
fn symbolic_links_out_of_the_registry_are_refused_by_name() {
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
fn symbolic_links_to_parents_and_siblings_are_followed_once() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    fs::create_dir(root.join("common")).unwrap();
    fs::write(root.join("common/a.yaml"), "events: {}").unwrap();
    for name in ["again", "and-again", "common/up", "before"] {
        symlink(root, root.join(name)).unwrap();
    }
    symlink("common", root.join("also")).unwrap();
    symlink("common/a.yaml", root.join("b.yaml")).unwrap();
    assert_eq!(paths(root).unwrap(), ["b.yaml", "common/a.yaml"]);
    symlink("nowhere", root.join("broken.yaml")).unwrap();
    assert!(paths(root).unwrap_err().contains("cannot be followed"));
}

#[test]
fn large_rule_files_are_refused_without_reading_them() {
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
fn a_change_of_content_changes_the_file_list() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, "events: {}").unwrap();
    let first = list(root.path()).unwrap();
    assert_eq!(list(root.path()).unwrap(), first);
    fs::write(&file, "events: {} #").unwrap();
    assert_ne!(list(root.path()).unwrap(), first);
}

#[test]
fn a_file_that_became_a_pipe_or_a_link_since_the_list_is_not_read() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let pipe = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let link = |path: &Path| symlink(outside.path(), path).unwrap();
    for replace in [&pipe as &dyn Fn(&Path), &link] {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a.yaml");
        fs::write(&file, "events: {}").unwrap();
        let listed = list(root.path()).unwrap();
        fs::remove_file(&file).unwrap();
        replace(&file);
        assert!(read(listed).is_err());
    }
}

#[test]
fn a_link_that_cannot_be_followed_is_reported_whatever_its_name() {
    for name in ["a.yaml", "teams", "notes.txt"] {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("b.yaml"), "events: {}").unwrap();
        symlink("nowhere", root.path().join(name)).unwrap();
        let problem = paths(root.path()).unwrap_err();
        assert!(problem.contains(name) && problem.contains("cannot be followed"), "{problem}");
    }
}

#[test]
fn the_first_change_between_two_lists_is_found() {
    let root = tempfile::tempdir().unwrap();
    let file = |name: &str| root.path().join(name);
    let look = || list(root.path()).unwrap();
    fs::write(file("b.yaml"), "1").unwrap();
    fs::write(file("d.yaml"), "1").unwrap();
    let first = look();
    assert_eq!(first.first_change(&look()), None);
    let changed = |now: &FileList, before: &FileList| {
        now.first_change(before).map(|path| path.rsplit('/').next().unwrap().to_owned())
    };
    fs::write(file("d.yaml"), "12").unwrap();
    let second = look();
    assert_eq!(changed(&second, &first).as_deref(), Some("d.yaml"));
    fs::write(file("a.yaml"), "1").unwrap();
    let third = look();
    assert_eq!(changed(&third, &second).as_deref(), Some("a.yaml"));
    assert_eq!(changed(&second, &third).as_deref(), Some("a.yaml"));
    fs::remove_file(file("d.yaml")).unwrap();
    assert_eq!(changed(&look(), &third).as_deref(), Some("d.yaml"));
}
