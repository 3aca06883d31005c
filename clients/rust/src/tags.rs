//! Tags that are known before the load, or only from the loaded value.

/// The tags of a loaded value: an array, slice or vector of names, or a function of the value.
pub trait Tags<T> {
    /// Returns the tags. It is called once, after the load.
    fn of(&self, value: &T) -> Vec<String>;
}

impl<T, F: Fn(&T) -> Vec<String>> Tags<T> for F {
    fn of(&self, value: &T) -> Vec<String> {
        self(value)
    }
}

impl<T, S: AsRef<str>> Tags<T> for &[S] {
    fn of(&self, _: &T) -> Vec<String> {
        names(self)
    }
}

impl<T, S: AsRef<str>, const N: usize> Tags<T> for [S; N] {
    fn of(&self, _: &T) -> Vec<String> {
        names(self)
    }
}

impl<T, S: AsRef<str>> Tags<T> for Vec<S> {
    fn of(&self, _: &T) -> Vec<String> {
        names(self)
    }
}

/// No tags.
impl<T> Tags<T> for () {
    fn of(&self, _: &T) -> Vec<String> {
        Vec::new()
    }
}

fn names<S: AsRef<str>>(tags: &[S]) -> Vec<String> {
    tags.iter().map(|tag| tag.as_ref().to_owned()).collect()
}
