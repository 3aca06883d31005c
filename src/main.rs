//! The program `unstale`: runs the command line and turns its result into an exit code.

use std::process::ExitCode;

use unstale::cli::{self, Exit};

fn main() -> ExitCode {
    // The panic hook has reported the panic.
    std::panic::catch_unwind(|| cli::main(std::env::args_os())).unwrap_or(Exit::Internal).into()
}
