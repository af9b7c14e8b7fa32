//! later
use crate::cli::DemoArgs;
use crate::exit::Failure;
pub(crate) async fn run(_args: DemoArgs) -> Result<(), Failure> {
    Err(Failure::usage("not yet"))
}
