//! Ancestors of a process, as far as a bounded walk finds them.

use namespan_ebpf::wire::Counter;

use crate::identity::number;
use crate::kernel::{Access, Ptr, Typed, copy, off, pointer};

/// Processes looked at for one that exec'd. Nearly always it is the first or the second.
const ANCESTORS: u32 = 32;
/// Processes looked at for the one whose image ran.
const IMAGES: u32 = 12;

/// The nearest process that has exec'd since its fork, `first` or one above it: tgid and start; zeros if there is none
/// within the walk. `first` is the first thread of its process.
///
/// `copy_process` in kernel/fork.c hands `self_exec_id` on and keeps the parent's as `parent_exec_id`; each exec adds one. A
/// process made with `CLONE_PARENT` or as a thread keeps its maker's `parent_exec_id` instead, and may look as if it had
/// exec'd: what is below it has a parent that nobody knows.
#[inline(always)]
pub fn nearest_exec<A: Access>(first: Ptr) -> Result<(u32, u64), Counter> {
    let mut process = first;
    let mut step = 0;
    while step < ANCESTORS {
        let tgid = number::<A, u32>(process, off!(task_tgid))?;
        if tgid == 0 {
            break;
        }
        let own = number::<A, u64>(process, off!(task_self_exec_id))?;
        if own != number::<A, u64>(process, off!(task_parent_exec_id))? {
            return Ok((tgid, number::<A, u64>(process, off!(task_start_boottime))?));
        }
        let Some(parent) = parent::<A>(process) else { break };
        process = parent;
        step += 1;
    }
    Ok((0, 0))
}

/// The first thread of the process's parent.
#[inline(always)]
pub fn parent<A: Access>(process: Ptr) -> Option<Ptr> {
    pointer::<A>(pointer::<A>(process, off!(task_real_parent))?, off!(task_group_leader))
}

/// The process whose image ran: the nearest one, itself included, that has exec'd since its fork.
#[inline(always)]
pub fn image(leader: Ptr) -> Result<(u32, u64), Counter> {
    let mut process = leader;
    let mut step = 0;
    let mut comm = [0u64; 2];
    let mut parents_comm = [0u64; 2];
    while step < IMAGES {
        let own = number::<Typed, u64>(process, off!(task_self_exec_id))?;
        let parents = number::<Typed, u64>(process, off!(task_parent_exec_id))?;
        let tgid = number::<Typed, u32>(process, off!(task_tgid))?;
        if own != parents {
            return Ok((tgid, number::<Typed, u64>(process, off!(task_start_boottime))?));
        }
        if tgid <= 1 {
            break;
        }
        let Some(parent) = parent::<Typed>(process) else { break };
        // A parent that has exec'd since the fork runs another image, and so may one that only adopted the process: what a
        // fork leaves alike must still be.
        if number::<Typed, u64>(parent, off!(task_self_exec_id))? != parents {
            break;
        }
        let of = off!(task_comm) as usize;
        if !copy(comm.as_mut_ptr().cast(), 16, process.wrapping_add(of))
            || !copy(parents_comm.as_mut_ptr().cast(), 16, parent.wrapping_add(of))
            || comm != parents_comm
        {
            break;
        }
        process = parent;
        step += 1;
    }
    Ok((0, 0))
}
