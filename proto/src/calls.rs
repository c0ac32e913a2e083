//! The calls of the wire by name, generated from the proto: a `match` over them does not build while
//! a call is missing.

include!(concat!(env!("OUT_DIR"), "/calls.rs"));

impl Call {
    /// The call of an HTTP/2 request's path; `None` where there is none such.
    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.path() == path)
    }
}
