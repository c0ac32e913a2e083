//! Work that goes on after its caller has stopped waiting for it.

/// The process is shutting down; the work may or may not have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub struct Interrupted;

/// Runs `work` to its end on a task of its own. A site that is cut off takes the future of its
/// call with it; what that call has begun (a transaction, and the state in memory that follows
/// from it) must not be left half-done.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Interrupted> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result),
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Interrupted),
        },
    }
}
