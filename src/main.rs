//! `unstale`: parse, log, dispatch, exit code.

use std::process::ExitCode;

use unstale::cli::{self, Exit};

fn main() -> ExitCode {
    // The panic itself has been reported by the hook.
    std::panic::catch_unwind(|| cli::main(std::env::args_os())).unwrap_or(Exit::Internal).into()
}
