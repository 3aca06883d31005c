//! Texts that are to be written in order of time, kept on disk meanwhile: the bodies of 100,000
//! letters have no place in memory.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::Timestamp;

/// A file without a name, in the system's folder for temporary files, which nobody else can open;
/// and what stands where.
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

impl Spool {
    /// An empty one.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn new() -> io::Result<Self> {
        let folder = std::env::temp_dir();
        Self::new_in(&folder).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "no temporary file can be made in {}: {error}; TMPDIR names another folder",
                    folder.display()
                ),
            )
        })
    }

    fn new_in(folder: &Path) -> io::Result<Self> {
        let path =
            folder.join(format!("unstale-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file: BufWriter::new(file), texts: Vec::new(), end: 0 })
    }

    /// Keeps a text.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, time: Option<Timestamp>, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.texts.push(Kept { time, offset: self.end, len: text.len() });
        self.end += text.len() as u64;
        Ok(())
    }

    /// How many it keeps.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Writes the oldest texts, `limit` at most, in order of time; those of the same time in the
    /// order they came, those without one first.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn write_to(mut self, limit: usize, out: &mut impl Write) -> io::Result<()> {
        self.texts.sort_by_key(|kept| kept.time);
        let mut file =
            BufReader::new(self.file.into_inner().map_err(io::IntoInnerError::into_error)?);
        let mut at = u64::MAX;
        for kept in self.texts.iter().take(limit) {
            // Mostly they came in order already: then the buffer goes on.
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
    fn texts_come_out_by_time() {
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
