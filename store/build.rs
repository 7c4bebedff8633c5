//! Compiles the crate again when a migration is added, not only when one is edited.

// Build scripts talk to Cargo over standard output.
#![allow(clippy::print_stdout)]

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
