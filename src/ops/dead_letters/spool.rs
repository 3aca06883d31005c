//! Texts on disk, to be written in order of time. The bodies of 100,000 letters do not fit in
//! memory.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::causes::Explain;

/// A temporary file without a name, which no other process can open, and the places of the texts in
/// it.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
    texts: Vec<Kept>,
    end: u64,
}

#[derive(Debug)]
struct Kept {
    time: Option<Timestamp>,
    offset: u64,
    len: usize,
}

/// Failure to create the temporary file of a spool.
#[derive(Debug, thiserror::Error)]
#[error("cannot create a temporary file in {}", .folder.display())]
pub struct SpoolError {
    folder: PathBuf,
    source: io::Error,
}

impl Explain for SpoolError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some("set TMPDIR to another folder".into())
    }
}

impl Spool {
    /// Creates an empty spool in the system's folder for temporary files.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new() -> Result<Self, SpoolError> {
        let folder = std::env::temp_dir();
        Self::new_in(&folder).map_err(|source| SpoolError { folder, source })
    }

    fn new_in(folder: &Path) -> io::Result<Self> {
        let path =
            folder.join(format!("unstale-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file: BufWriter::new(file), texts: Vec::new(), end: 0 })
    }

    /// Adds a text.
    ///
    /// # Errors
    /// The text cannot be written, as when the disk is full.
    pub fn push(&mut self, time: Option<Timestamp>, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.texts.push(Kept { time, offset: self.end, len: text.len() });
        self.end += text.len() as u64;
        Ok(())
    }

    /// Keeps only the first texts, so many.
    pub fn truncate(&mut self, texts: usize) {
        self.texts.truncate(texts);
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns true if there is no text.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Writes the oldest texts, at most `limit`, in order of time. Texts of the same time stay in
    /// the order in which they were added, and texts without a time come first.
    ///
    /// # Errors
    /// Reading or writing fails.
    pub fn write_to(mut self, limit: usize, out: &mut impl Write) -> io::Result<()> {
        self.texts.sort_by_key(|kept| kept.time);
        let mut file =
            BufReader::new(self.file.into_inner().map_err(io::IntoInnerError::into_error)?);
        let mut at = u64::MAX;
        for kept in self.texts.iter().take(limit) {
            // Texts are mostly in order already, and a seek would drop the buffer.
            if at != kept.offset {
                file.seek(SeekFrom::Start(kept.offset))?;
            }
            io::copy(&mut file.by_ref().take(kept.len as u64), out)?;
            at = kept.offset + kept.len as u64;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_writes_its_texts_in_order_of_time() {
        assert!(Spool::new_in(Path::new("/no such folder")).is_err());
        let mut spool = Spool::new().unwrap();
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        for (time, text) in [
            (at(3), "c\n"),
            (at(1), "first a\n"),
            (at(1), "second a\n"),
            (None, "none\n"),
            (at(2), "b\n"),
        ] {
            spool.push(time, text).unwrap();
        }
        assert_eq!(spool.len(), 5);
        let mut out = Vec::new();
        spool.write_to(4, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "none\nfirst a\nsecond a\nb\n");
    }
}
