//! The journey end to end, on a whole node: the very function that `cargo xtask demo` runs.

use xtask::demo;
use xtask::progress::Progress;

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_optimized_approved_rolled_out_rolled_back_and_seen_live() {
    let seen = Box::pin(demo::run(&demo::Options::default(), &Progress::stderr())).await;
    if let Err(error) = seen {
        panic!("{error:#}");
    }
}
