//! Short ways to say why a step did not succeed.

use cryptvol_crds::conditions::Reason;

use crate::host::StepError;

/// `StepFailed`: the kernel or a tool refused for a cause without a reason of its own.
pub fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> StepError {
    StepError::new(Reason::StepFailed, format!("{what}: {why}"))
}

/// `DeviceUnreadable`.
pub fn unreadable(what: impl std::fmt::Display, why: impl std::fmt::Display) -> StepError {
    StepError::new(Reason::DeviceUnreadable, format!("{what}: {why}"))
}

/// An error of a reason.
pub fn because(reason: Reason, message: impl Into<String>) -> StepError {
    StepError::new(reason, message)
}

/// `KernelModuleMissing`.
pub fn no_module(what_for: &str, module: &str) -> StepError {
    because(
        Reason::KernelModuleMissing,
        format!("for {what_for} the node's kernel lacks the module {module}"),
    )
}
