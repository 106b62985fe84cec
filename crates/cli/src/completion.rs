//! `daybook completion`: lets a shell complete what is typed.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output::print_raw;

/// Prints a script that completes the command line in a shell.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the verb for the command line `C`.
pub(crate) fn run<C: CommandFactory>(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut C::command(), "daybook", &mut script);
    print_raw(&script)
}
