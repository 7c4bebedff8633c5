//! Floodway as a user runs it: processes on real servers, with faults.
#![allow(missing_docs)]

mod delivery;
mod groups;
mod kill;
mod outage;
mod shutdown;
mod startup;
