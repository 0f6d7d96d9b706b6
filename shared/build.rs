//! Makes cargo notice a new migration: they are embedded by a macro, which it can't see through.

fn main() {
    println!("cargo::rerun-if-changed=../migrations");
}
