//! Typed reads of kernel structs by resolved offset; the programs' only pointer arithmetic.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user};
use namespan_ebpf::offsets::{ABSENT, Offsets};
use namespan_ebpf::settings::Settings;

/// Address of a kernel object; what it points to is the verifier's to know, or a helper's to check.
pub type Ptr = *const u8;

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::DEFAULT;

/// Offset of a kernel field. Volatile, or the compiler would use the value written here.
macro_rules! off {
    ($field:ident) => {
        // SAFETY: a field of a static that user space set before loading and nothing writes since.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::kernel::offsets()).$field) }
    };
}
pub(crate) use off;

/// A setting, or an element of one at the indices given; as [`off`].
macro_rules! setting {
    ($field:ident) => {
        // SAFETY: as in `off`.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::kernel::settings()).$field) }
    };
    ($field:ident[$index:expr]) => {
        // SAFETY: as in `off`.
        $crate::kernel::element(unsafe { &raw const (*$crate::kernel::settings()).$field }.cast(), $index)
    };
    ($field:ident[$row:expr; $width:expr][$index:expr]) => {
        // SAFETY: as in `off`.
        $crate::kernel::element::<u8>(
            unsafe { &raw const (*$crate::kernel::settings()).$field }.cast(),
            $row * $width + $index,
        )
    };
}
pub(crate) use setting;

/// An element of an array. Unchecked: a bounds check would be a call that the verifier refuses, even where it can't be
/// reached, and the verifier itself checks the access.
#[inline(always)]
pub fn element<T: Copy>(array: *const T, index: usize) -> T {
    // SAFETY: the verifier has proven the index to lie within the array's map.
    unsafe { read_volatile(array.wrapping_add(index)) }
}

#[inline(always)]
pub fn offsets() -> *const Offsets {
    &raw const OFFSETS
}

#[inline(always)]
pub fn settings() -> *const Settings {
    &raw const SETTINGS
}

#[inline(always)]
pub fn is_absent(offset: u32) -> bool {
    offset == ABSENT
}

/// How a struct's fields are read: directly, where the verifier knows the type, or by a helper that checks the address.
pub trait Access {
    fn load<T: Copy + Default>(base: Ptr, offset: u32) -> Option<T>;
}

/// Pointers that came from a BTF-typed argument: a plain load, which faults to zero.
pub struct Typed;

impl Access for Typed {
    #[inline(always)]
    fn load<T: Copy + Default>(base: Ptr, offset: u32) -> Option<T> {
        // SAFETY: the verifier checks that `base` points to a kernel struct with such a field; a bad address reads zero.
        Some(unsafe { read_volatile(base.add(offset as usize).cast()) })
    }
}

/// Any other kernel address.
pub struct Probed;

impl Access for Probed {
    #[inline(always)]
    fn load<T: Copy + Default>(base: Ptr, offset: u32) -> Option<T> {
        let mut value = T::default();
        // SAFETY: the helper checks the source and writes `size_of::<T>()` bytes to a live local of that size.
        let status = unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast::<c_void>(),
                size_of::<T>() as u32,
                base.wrapping_add(offset as usize).cast(),
            )
        };
        (status == 0).then_some(value)
    }
}

/// Fields of any kernel object that lie close together, copied at once: a helper's call costs more than the bytes. A field
/// that lies elsewhere on some kernel is read by itself.
#[derive(Clone, Copy)]
pub struct Near {
    base: Ptr,
    first: u32,
    copied: *const u8,
}

impl Near {
    /// Room that a copy takes, in bytes.
    pub const SIZE: u32 = 32;

    /// Copies the fields from `first` on to `room`, which is aligned and [`Self::SIZE`] bytes.
    #[inline(always)]
    pub fn of(base: Ptr, first: u32, room: *mut u8) -> Option<Self> {
        copy(room, Self::SIZE, base.wrapping_add(first as usize)).then_some(Self { base, first, copied: room })
    }

    #[inline(always)]
    pub fn load<T: Copy + Default>(&self, offset: u32) -> Option<T> {
        let at = offset.wrapping_sub(self.first);
        if at > Self::SIZE - size_of::<T>() as u32 {
            return Probed::load(self.base, offset);
        }
        // SAFETY: within the copy.
        Some(unsafe { read_volatile(self.copied.wrapping_add(at as usize).cast()) })
    }

    /// `None` if unreadable or null.
    #[inline(always)]
    pub fn pointer(&self, offset: u32) -> Option<Ptr> {
        let address = self.load::<u64>(offset)? as Ptr;
        (!address.is_null()).then_some(address)
    }
}

/// A pointer field; `None` if unreadable or null.
#[inline(always)]
pub fn pointer<A: Access>(base: Ptr, offset: u32) -> Option<Ptr> {
    let address = A::load::<u64>(base, offset)? as Ptr;
    (!address.is_null()).then_some(address)
}

/// Copies `len` bytes of kernel memory; `false` if unreadable.
#[inline(always)]
pub fn copy(to: *mut u8, len: u32, from: Ptr) -> bool {
    // SAFETY: the verifier checks that `to` holds `len` bytes, the helper checks `from`.
    unsafe { bpf_probe_read_kernel(to.cast(), len, from.cast()) == 0 }
}

/// Copies a NUL-ended kernel string of at most `max` bytes with its NUL; its bytes without NUL, `None` if unreadable.
#[inline(always)]
pub fn copy_str(to: *mut u8, max: u32, from: Ptr) -> Option<u32> {
    // SAFETY: as in `copy`.
    let copied = unsafe { bpf_probe_read_kernel_str(to.cast(), max, from.cast()) };
    (copied > 0).then(|| copied as u32 - 1)
}

/// Copies `len` bytes of the current process's memory; `false` if not all of them are there.
#[inline(always)]
pub fn copy_user(to: *mut u8, len: u32, from: u64) -> bool {
    // SAFETY: as in `copy`.
    unsafe { bpf_probe_read_user(to.cast(), len, from as *const c_void) == 0 }
}
