//! The wire: messages, conversions, and the identity a channel carries.

pub mod v1 {
    //! Generated from `proto/tributary/v1/tributary.proto`.
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::too_many_lines,
        clippy::wildcard_enum_match_arm,
        clippy::allow_attributes
    )]
    tonic::include_proto!("tributary.v1");
}

pub mod calls;
pub mod channel;
pub mod convert;
pub mod private;
