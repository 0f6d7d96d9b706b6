//! The program `syncd`.

use std::process::ExitCode;

use syncd::cli;

/// glibc's allocator took a fifth of the CPU of a drain and kept what its threads had freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Both stores' TLS takes the process' default provider; installing it twice is the only way this can fail.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing else installs a provider");
    ExitCode::from(cli::run(std::env::args_os()))
}
