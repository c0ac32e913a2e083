//! The agreement: what coordinator and client must hold byte for byte and number for number.
//!
//! Pure and synchronous: no clock, no randomness that is not an argument, no I/O.

pub mod adaptation;
pub mod architecture;
pub mod augment;
pub mod bags;
pub mod check;
pub mod checkup;
pub mod contract;
pub mod dataset;
pub mod digest;
pub mod head;
pub mod initial;
pub mod layout;
pub mod manifest;
pub mod name;
pub mod objective;
pub mod outcome;
pub mod privacy;
pub mod problems;
pub mod refusal;
pub mod task;
pub mod tensors;
pub mod terms;
pub mod text;
pub mod timestamp;
pub mod tlog;
pub mod training;
