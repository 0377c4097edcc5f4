//! The program `rvs`.

fn main() -> std::process::ExitCode {
    rvs::cli::main()
}
