//! Decides after each look at the rule files whether to read them.

/// Number of looks after which the contents are read even if no file seems to have changed. On a
/// network file system with times in whole seconds, a changed file may look unchanged.
const LOOKS_PER_READ: u64 = 60;

/// Number of looks in a row, each unlike the one before, after which the files are read all the
/// same. The roll-out of a directory takes less time.
const RESTLESS_LOOKS: u64 = 10;

/// The looks at the rule files. A look is their list (`L`), or the problems of listing them (`P`).
#[derive(Debug)]
pub(super) struct Looks<L, P> {
    seen: Option<Result<L, P>>,
    /// The look before the last one.
    before: Option<Result<L, P>>,
    judged: Option<Result<L, P>>,
    count: u64,
    /// Number of looks in a row that differed from the one before, since the files were judged.
    unsettled: u64,
    /// Number of looks in a row that equalled the one before.
    settled: u64,
    is_restless: bool,
}

/// Decision after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The files are as they were judged, or are being replaced.
    Wait,
    /// The files are to be read.
    Read,
    /// The files cannot be listed, which is to be reported.
    Report,
}

impl<L: PartialEq + Clone, P: PartialEq + Clone> Looks<L, P> {
    pub(super) fn new() -> Self {
        Self {
            seen: None,
            before: None,
            judged: None,
            count: 0,
            unsettled: 0,
            settled: 0,
            is_restless: false,
        }
    }

    /// Takes a look, and decides what follows from it.
    ///
    /// After two equal looks, no swap is in progress and no file is half-written. Files that change
    /// all the time must not stop the reload of others, so the worker then reads them as they are.
    pub(super) fn judge(&mut self, look: Result<L, P>) -> Judgement {
        self.count += 1;
        let is_settled = self.seen.as_ref() == Some(&look);
        let is_known = self.judged.as_ref() == Some(&look);
        // A file that vanishes while the directory is listed makes an error of one look.
        let is_lasting = look.is_ok() || matches!(self.seen, Some(Err(_)));
        let is_due = if is_settled {
            self.settled += 1;
            self.unsettled = 0;
            !is_known || self.count.is_multiple_of(LOOKS_PER_READ)
        } else {
            self.settled = 0;
            self.unsettled += 1;
            self.unsettled >= RESTLESS_LOOKS && is_lasting
        };
        if is_due && !is_settled {
            self.is_restless = true;
            self.unsettled = 0;
        } else if self.settled >= RESTLESS_LOOKS {
            self.is_restless = false;
        }
        let judgement = match (is_due, &look) {
            (false, _) => Judgement::Wait,
            (true, Ok(_)) => Judgement::Read,
            (true, Err(_)) => Judgement::Report,
        };
        if is_due {
            self.judged = Some(look.clone());
        }
        self.before = self.seen.replace(look);
        judgement
    }

    /// Returns the problems of the last look.
    pub(super) fn problems(&self) -> Option<&P> {
        self.seen.as_ref()?.as_ref().err()
    }

    /// Returns the lists of the last two looks.
    pub(super) fn last_lists(&self) -> Option<[&L; 2]> {
        Some([self.before.as_ref()?.as_ref().ok()?, self.seen.as_ref()?.as_ref().ok()?])
    }

    /// Lets the next look be judged, even if it equals the last one.
    pub(super) fn judge_again(&mut self) {
        self.judged = None;
    }

    /// Returns whether the files change all the time, and are read all the same.
    pub(super) fn is_restless(&self) -> bool {
        self.is_restless
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge_all(looks: &mut Looks<u32, u32>, all: &[Result<u32, u32>]) -> Vec<Judgement> {
        all.iter().map(|look| looks.judge(*look)).collect()
    }

    #[test]
    fn two_equal_looks_are_judged_once() {
        use Judgement::{Read, Report, Wait};
        let mut looks = Looks::new();
        let all = [Ok(1), Ok(1), Ok(1), Ok(2), Ok(3), Ok(3), Err(1), Ok(3), Err(1), Err(1), Err(1)];
        assert_eq!(
            judge_all(&mut looks, &all),
            [Wait, Read, Wait, Wait, Wait, Read, Wait, Wait, Wait, Report, Wait]
        );
        looks.judge_again();
        assert_eq!(judge_all(&mut looks, &[Err(1), Err(1)]), [Report, Wait]);
    }

    #[test]
    fn unchanged_files_are_read_each_minute() {
        let mut looks = Looks::<u32, u32>::new();
        let read = (0..600).filter(|_| looks.judge(Ok(1)) == Judgement::Read).count();
        assert_eq!(read, 11, "at the second look, and at every sixtieth");
    }

    #[test]
    fn files_that_change_at_each_look_are_read_at_every_tenth() {
        let mut looks = Looks::<u64, u64>::new();
        let read: Vec<u64> =
            (1..=30).filter(|&look| looks.judge(Ok(look)) == Judgement::Read).collect();
        assert_eq!(read, [10, 20, 30]);
        assert!(looks.is_restless());
        // One pause is not the end.
        assert_eq!(looks.judge(Ok(30)), Judgement::Wait);
        assert!(looks.is_restless());
        for _ in 0..RESTLESS_LOOKS {
            looks.judge(Ok(30));
        }
        assert!(!looks.is_restless());
    }

    #[test]
    fn among_changing_looks_an_error_of_one_look_is_not_reported() {
        let mut looks = Looks::<u64, u64>::new();
        for look in 0..9 {
            assert_eq!(looks.judge(Ok(look)), Judgement::Wait);
        }
        assert_eq!(looks.judge(Err(1)), Judgement::Wait);
        assert_eq!(looks.judge(Ok(10)), Judgement::Read);
        for look in 0..9 {
            assert_eq!(looks.judge(Err(look + 2)), Judgement::Wait);
        }
        assert_eq!(looks.judge(Err(20)), Judgement::Report, "each look has other problems");
    }
}
