//! The command line comes in; man pages, and completions for shells, go out into a folder: `make pages`. No part of the program
//! itself, which stays small.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};

use namespan::cli::Cli;

const NAME: &str = "namespan";

fn main() -> ExitCode {
    match std::env::args_os().nth(1).map(PathBuf::from).context("usage: pages FOLDER").and_then(|place| write(&place)) {
        Ok(()) => ExitCode::SUCCESS,
        #[expect(clippy::print_stderr, reason = "for whoever builds")]
        Err(error) => {
            eprintln!("pages: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `man1/namespan.1`, a page for each subcommand, and `bash`, `zsh` and `fish`, each with the name that its shell looks for.
fn write(place: &Path) -> Result<()> {
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = place.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    };
    let pages = folder("man1")?;
    // `namespan help` says what `--help` says: no page.
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &pages).context("writing man pages")?;
    for (shell, name) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let written = generate_to(shell, &mut Cli::command(), NAME, folder(name)?).context("writing completions")?;
        if shell == Shell::Bash {
            fs::rename(&written, written.with_file_name(NAME)).context("naming bash's completions")?;
        }
    }
    complete(&pages, &Cli::command())
}

/// Nothing is missing: what is installed is a list of files.
fn complete(pages: &Path, cli: &Command) -> Result<()> {
    for subcommand in cli.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let page = pages.join(format!("{NAME}-{}.1", subcommand.get_name()));
        if !page.is_file() {
            bail!("{} is missing", page.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(place: &Path) -> String {
        fs::read_to_string(place).unwrap_or_else(|error| panic!("{}: {error}", place.display()))
    }

    #[test]
    fn each_subcommand_has_a_page_with_its_flags_and_is_completed_in_each_shell() {
        let place = tempfile::tempdir().unwrap();
        write(place.path()).unwrap();
        let whole = read(&place.path().join("man1/namespan.1"));
        let completions =
            ["bash/namespan", "zsh/_namespan", "fish/namespan.fish"].map(|name| (name, read(&place.path().join(name))));
        for subcommand in Cli::command().get_subcommands() {
            let name = subcommand.get_name();
            let page = read(&place.path().join(format!("man1/namespan-{name}.1")));
            assert!(page.contains(&format!(".TH namespan-{name} 1")), "{page}");
            assert!(whole.contains(&format!("namespan\\-{name}(1)")), "{name} in {whole}");
            for long in subcommand.get_arguments().filter_map(clap::Arg::get_long) {
                // Roff writes a hyphen so.
                let written = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(page.contains(&written), "{written} in {page}");
                for (shell, completion) in &completions {
                    assert!(completion.contains(long), "--{long} in {shell}");
                }
            }
        }
        assert!(!place.path().join("man1/namespan-help.1").exists());
    }

    #[test]
    fn a_page_that_is_missing_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = complete(place.path(), &Cli::command()).unwrap_err().to_string();
        assert!(error.ends_with("namespan-run.1 is missing"), "{error}");
    }
}
