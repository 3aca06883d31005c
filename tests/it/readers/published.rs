//! The published protocol: the page and the packages for other languages have the scripts of
//! `clients/rust`, and the example of the page runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use unstale_reader::protocol::scripts::READER_SCRIPTS;

use crate::docs::{blocks, commands};
use crate::support::Redis;

const PAGE: &str = "docs/reference/reader-scripts.md";
const FOLDERS: [&str; 3] =
    ["clients/lua", "clients/python/src/unstale_reader/lua", "clients/node/lua"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The page with each script under its heading.
fn printed(page: &str) -> String {
    let mut page = page.to_owned();
    for (name, source) in READER_SCRIPTS {
        let heading = format!("\n### {name}.lua\n");
        let (before, rest) = page
            .split_once(&heading)
            .unwrap_or_else(|| panic!("{PAGE} has no heading for {name}.lua"));
        let (between, rest) = rest.split_once("```lua\n").unwrap();
        let (_, after) = rest.split_once("```\n").unwrap();
        page = [before, &heading, between, "```lua\n", source, "```\n", after].concat();
    }
    page
}

/// `UNSTALE_BLESS=1` writes them instead.
#[test]
fn the_page_and_the_clients_have_the_scripts_of_the_rust_package() {
    let page = root().join(PAGE);
    let mut expected: Vec<(PathBuf, String)> = vec![(page.clone(), printed(&read(&page)))];
    for folder in FOLDERS {
        expected.extend(READER_SCRIPTS.map(|(name, source)| {
            (root().join(folder).join(format!("{name}.lua")), source.to_owned())
        }));
    }
    for (path, text) in expected {
        if std::env::var_os("UNSTALE_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        } else {
            assert!(
                read(&path) == text,
                "{} differs: UNSTALE_BLESS=1 cargo test --test it readers::published",
                path.display()
            );
        }
    }
    for folder in FOLDERS {
        assert_eq!(
            std::fs::read_dir(root().join(folder)).unwrap().count(),
            READER_SCRIPTS.len(),
            "{folder} has a script too many"
        );
    }
}

#[tokio::test]
async fn the_example_by_hand_prints_what_the_page_shows() {
    let server = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let client = folder.path().join("redis-cli");
    // As on a terminal, and on the test's own server.
    std::fs::write(
        &client,
        format!(
            "#!/bin/sh\nexec /usr/bin/env PATH=\"$REST\" redis-cli -p {} --no-raw \"$@\"\n",
            server.port()
        ),
    )
    .unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&client).status().unwrap().success());
    let path = std::env::var("PATH").unwrap();
    let mut ran = 0;
    for block in
        blocks(&read(&root().join(PAGE))).into_iter().filter(|block| block.language == "console")
    {
        for (command, printed) in commands(&block.text) {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("exec 2>&1; {command}")])
                .current_dir(root().join("clients/lua"));
            shell.env("REST", &path).env("PATH", format!("{}:{path}", folder.path().display()));
            let output = shell.output().unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout).trim_end(),
                printed.trim_end(),
                "{PAGE}:{}: {command}",
                block.line
            );
            ran += 1;
        }
    }
    assert!(ran > 10, "only {ran} commands were found");
}
