//! Reserves ports for servers that must return on the same port.

use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;

/// Range below the kernel's ports for outgoing connections (from 32768 on Linux). So no connection
/// takes a port while its server is down.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Returns a port on loopback that is free now. No other test process gets it while this one lives.
pub(crate) fn free() -> u16 {
    // The locks end with the process, and a child does not inherit them.
    static GIVEN: Mutex<Option<HashMap<u16, Option<File>>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap();
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let port = fastrand::u16(RANGE);
        if given.contains_key(&port) {
            continue;
        }
        let lock = match lock_file(port) {
            Ok(file) if file.try_lock().is_err() => continue,
            Ok(file) => Some(file),
            // The folder belongs to another user. Then only a bind shows whether the port is free.
            Err(_) => None,
        };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port, lock);
            return port;
        }
    }
    panic!("no free port in {RANGE:?}");
}

fn lock_file(port: u16) -> std::io::Result<File> {
    let path = lock_path(port);
    std::fs::create_dir_all(path.parent().expect("it is in a folder"))?;
    File::options().create(true).append(true).open(path)
}

/// Returns the file that the owner of a port keeps locked.
pub(crate) fn lock_path(port: u16) -> PathBuf {
    std::env::temp_dir().join("unstale-test-ports").join(port.to_string())
}
