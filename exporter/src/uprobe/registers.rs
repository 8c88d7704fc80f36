//! Registers and calling conventions of this machine's architecture, as operands of the kernel side.

use namespan_ebpf::uprobe_wire::{NO_REGISTER, Operand, source};

use super::elf;

/// A register, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Byte offset in `struct pt_regs`.
    pub offset: u16,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
}

impl Register {
    /// The register's number, zero-extended from its width.
    #[must_use]
    pub const fn operand(self) -> Operand {
        Operand {
            displacement: 0,
            base: self.offset,
            index: NO_REGISTER,
            source: source::REGISTER,
            width: self.width,
            signed: 0,
            shift: 0,
        }
    }

    /// A number of 8 bytes in memory, `displacement` bytes behind where the register points to.
    #[must_use]
    pub const fn memory(self, displacement: i64) -> Operand {
        Operand { displacement, source: source::MEMORY, width: 8, ..self.operand() }
    }
}

/// Argument `position`, from 0, at a function's first instruction, of a type that is passed in a general register: System V
/// ABI for x86-64, AAPCS64 for `AArch64`. Those that have no register any more lie on the stack.
#[must_use]
pub fn argument(position: u8) -> Operand {
    if let Some(offset) = arch::ARGUMENTS.get(usize::from(position)) {
        return Register { offset: *offset, width: 8 }.operand();
    }
    let on_stack = usize::from(position) - arch::ARGUMENTS.len();
    let displacement = 8 * i64::try_from(on_stack).unwrap_or(i64::MAX / 8) + i64::from(RETURN_POPS);
    STACK_POINTER.memory(displacement)
}

/// What a function returns in a general register, after its last instruction.
#[must_use]
pub const fn return_value() -> Operand {
    Register { offset: arch::RETURNED, width: 8 }.operand()
}

/// A register by its name in assembler, without `%`: all general ones and their parts, the stack and instruction pointers.
/// `None`: there is no such register, or a program cannot see it (vector registers).
#[must_use]
pub fn register(name: &str) -> Option<Register> {
    arch::register(name)
}

/// An operand of a USDT probe, as the kernel side reads it; the error says why it can't.
pub fn operand(operand: &elf::Operand) -> Result<Operand, String> {
    let named =
        |name: elf::Register| register(name.0).ok_or_else(|| format!("a program can't see the register {}", name.0));
    let read = match operand.at {
        elf::Location::Constant(value) => return Ok(Operand::constant(value)),
        elf::Location::Register(name) => named(name)?.operand(),
        elf::Location::Memory { base, index, displacement } => {
            let read = named(base)?.memory(displacement);
            match index {
                None => read,
                Some((index, scale)) => {
                    let shift = u8::try_from(scale.trailing_zeros()).unwrap_or_default();
                    Operand { index: named(index)?.offset, shift, ..read }
                }
            }
        }
    };
    Ok(Operand { width: operand.size, signed: operand.is_signed.into(), ..read })
}

pub const STACK_POINTER: Register = Register { offset: arch::STACK_POINTER, width: 8 };
pub const INSTRUCTION_POINTER: Register = Register { offset: arch::INSTRUCTION_POINTER, width: 8 };
/// Bytes that a call pushes and its return pops.
pub const RETURN_POPS: u32 = arch::RETURN_POPS;

/// `struct pt_regs` of arch/x86/include/asm/ptrace.h.
#[cfg(target_arch = "x86_64")]
mod arch {
    use super::Register;

    pub const ARGUMENTS: &[u16] = &[112, 104, 96, 88, 72, 64];
    pub const RETURNED: u16 = 80;
    pub const STACK_POINTER: u16 = 152;
    pub const INSTRUCTION_POINTER: u16 = 128;
    pub const RETURN_POPS: u32 = 8;

    /// Names of 8, 4, 2 and 1 bytes.
    const NAMED: [([&str; 4], u16); 9] = [
        (["rax", "eax", "ax", "al"], 80),
        (["rbx", "ebx", "bx", "bl"], 40),
        (["rcx", "ecx", "cx", "cl"], 88),
        (["rdx", "edx", "dx", "dl"], 96),
        (["rsi", "esi", "si", "sil"], 104),
        (["rdi", "edi", "di", "dil"], 112),
        (["rbp", "ebp", "bp", "bpl"], 32),
        (["rsp", "esp", "sp", "spl"], 152),
        (["rip", "eip", "ip", ""], 128),
    ];
    const WIDTHS: [u8; 4] = [8, 4, 2, 1];
    /// The second byte of four registers has a name.
    const HIGH: [(&str, u16); 4] = [("ah", 81), ("bh", 41), ("ch", 89), ("dh", 97)];
    /// `r8` to `r15`.
    const NUMBERED: [u16; 8] = [72, 64, 56, 48, 24, 16, 8, 0];

    pub fn register(name: &str) -> Option<Register> {
        if name.is_empty() {
            return None;
        }
        if let Some((_, offset)) = HIGH.iter().find(|(high, _)| *high == name) {
            return Some(Register { offset: *offset, width: 1 });
        }
        for (names, offset) in NAMED {
            if let Some(width) = names.iter().zip(WIDTHS).find_map(|(known, width)| (*known == name).then_some(width)) {
                return Some(Register { offset, width });
            }
        }
        let number = name.strip_prefix('r')?;
        let digits = number.trim_end_matches(['b', 'w', 'd']);
        let width = match number.get(digits.len()..)? {
            "" => 8,
            "d" => 4,
            "w" => 2,
            "b" => 1,
            _ => return None,
        };
        if digits.starts_with('0') {
            return None;
        }
        let nth = digits.parse::<usize>().ok()?.checked_sub(8)?;
        NUMBERED.get(nth).map(|offset| Register { offset: *offset, width })
    }
}

/// `struct user_pt_regs` of arch/arm64/include/uapi/asm/ptrace.h, which `struct pt_regs` begins with.
#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Register;

    pub const ARGUMENTS: &[u16] = &[0, 8, 16, 24, 32, 40, 48, 56];
    pub const RETURNED: u16 = 0;
    pub const STACK_POINTER: u16 = 248;
    pub const INSTRUCTION_POINTER: u16 = 256;
    pub const RETURN_POPS: u32 = 0;

    pub fn register(name: &str) -> Option<Register> {
        let wide = |offset| Some(Register { offset, width: 8 });
        match name {
            "sp" => return wide(STACK_POINTER),
            "pc" => return wide(INSTRUCTION_POINTER),
            "fp" => return wide(29 * 8),
            "lr" => return wide(30 * 8),
            _ => {}
        }
        let (width, digits) = match name.as_bytes().first()? {
            b'x' => (8, &name[1..]),
            b'w' => (4, &name[1..]),
            _ => return None,
        };
        if digits.len() > 1 && digits.starts_with('0') {
            return None;
        }
        let nth = digits.parse::<u16>().ok().filter(|nth| *nth < 31)?;
        Some(Register { offset: nth * 8, width })
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("uprobes know the registers of x86_64 and aarch64 only");

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_register_is_known_and_no_other() {
        let all = ["rax", "eax", "ax", "al", "ah", "r8", "r8d", "r15w", "r15b", "rsp", "rip", "dil"];
        let widths = all.map(|name| register(name).map(|found| found.width));
        assert_eq!(widths, [8, 4, 2, 1, 1, 8, 4, 2, 1, 8, 8, 1].map(Some));
        assert_eq!(register("ah").map(|found| found.offset), Some(81));
        for other in
            ["", "r", "r7", "r16", "r08", "r8x", "r8bw", "xmm0", "%rax", "RAX", "r\u{e9}", "r99999999999999999999"]
        {
            assert_eq!(register(other), None, "{other}");
        }
    }

    #[test]
    fn arguments_beyond_the_registers_lie_above_the_return_address() {
        assert_eq!(argument(0), Register { offset: 112, width: 8 }.operand());
        assert_eq!(argument(6), STACK_POINTER.memory(8));
        assert_eq!(argument(255), STACK_POINTER.memory(8 + 249 * 8));
    }
}
