//! Exit codes of both programs, so that a service manager or a script can tell a bad setting from a dead disk.
//! The numbers are those of BSD's `sysexits.h`.

/// Everything asked for was done.
pub const OK: u8 = 0;
/// The command line was wrong (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// Something this needs can't be reached (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// A defect in the program itself (`EX_SOFTWARE`).
pub const INTERNAL: u8 = 70;
/// Reading or writing a file failed (`EX_IOERR`).
pub const IO: u8 = 74;
/// Not now; the same call may succeed later (`EX_TEMPFAIL`).
pub const TRY_LATER: u8 = 75;
/// The configuration has faults (`EX_CONFIG`).
pub const CONFIG: u8 = 78;
