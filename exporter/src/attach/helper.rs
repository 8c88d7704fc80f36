//! Helper functions of the kernel's that something takes and an older kernel may lack.

use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};

/// With the kind of program that calls it.
pub(crate) struct Helper(ProgramType, BpfHelper);

/// Tells a uprobe's program which probe was hit.
pub(crate) const ATTACH_COOKIE: Helper = Helper(ProgramType::KProbe, BpfHelper::BPF_FUNC_get_attach_cookie);
/// Finds the file that is mapped at an address.
pub(crate) const FIND_VMA: Helper = Helper(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_find_vma);

impl Helper {
    /// By loading a program that calls it.
    pub fn is_there(&self) -> Result<bool, ProgramError> {
        is_helper_supported(self.0, self.1)
    }
}
