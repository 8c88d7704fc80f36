//! Instructions of a function come in; where it returns, and where instructions begin, go out.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};

use super::Machine;

/// Most bytes of a function that is decoded.
pub const MAX_FUNCTION: u64 = 4 << 20;
/// Most returns of one function.
const MAX_RETURNS: usize = 256;

/// Offsets of its `ret` instructions, from its first byte; or why that is not sure.
pub fn returns(machine: Machine, code: &[u8]) -> Result<Vec<u64>, &'static str> {
    let returns = match machine {
        Machine::X86_64 => x86_returns(code)?,
        Machine::Aarch64 => arm_returns(code)?,
    };
    match returns.len() {
        0 => Err("it has no return instruction"),
        1..=MAX_RETURNS => Ok(returns),
        _ => Err("it has more than 256 return instructions"),
    }
}

/// Whether an instruction begins at this offset of the function; `None`: that can't be told.
pub fn is_boundary(machine: Machine, code: &[u8], offset: u64) -> Option<bool> {
    match machine {
        Machine::Aarch64 => Some(offset.is_multiple_of(4)),
        Machine::X86_64 => {
            let mut decoder = decoder(code);
            while decoder.ip() < offset {
                if !decoder.can_decode() || decoder.decode().is_invalid() {
                    return None;
                }
            }
            Some(decoder.ip() == offset)
        }
    }
}

fn decoder(code: &[u8]) -> Decoder<'_> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
}

/// What leaves by a direct jump returns elsewhere. Indirect jumps are taken for those of a `switch`.
const LEAVES: &str = "it leaves by a jump to another function too, and would return there unseen";

fn x86_returns(code: &[u8]) -> Result<Vec<u64>, &'static str> {
    let mut returns = Vec::new();
    let mut decoder = decoder(code);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err("its instructions can't all be decoded");
        }
        let mnemonic = instruction.mnemonic();
        let is_direct =
            matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
        if mnemonic == Mnemonic::Ret {
            returns.push(instruction.ip());
        } else if mnemonic != Mnemonic::Call && is_direct && instruction.near_branch_target() >= code.len() as u64 {
            return Err(LEAVES);
        }
    }
    Ok(returns)
}

/// Encodings of the Arm Architecture Reference Manual, C6.2. Constants may lie among the instructions: what one of these
/// loads is none.
fn arm_returns(code: &[u8]) -> Result<Vec<u64>, &'static str> {
    if !code.len().is_multiple_of(4) {
        return Err("its instructions are not whole");
    }
    let words = || code.chunks_exact(4).filter_map(|word| Some(u32::from_le_bytes(word.try_into().ok()?))).zip(0_i64..);
    let (mut returns, mut constants, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    for (word, index) in words() {
        if word & 0xffff_fc1f == 0xd65f_0000 {
            returns.push(index);
        } else if word & 0x3b00_0000 == 0x1800_0000 {
            // LDR (literal): 4, 8 or 16 bytes.
            let first = index + signed(word >> 5, 19);
            constants.extend(first..first + 4);
        } else if word & 0xfc00_0000 == 0x1400_0000 {
            let target = index + signed(word, 26);
            if !(0..(code.len() / 4).cast_signed() as i64).contains(&target) {
                leaves.push(index);
            }
        }
    }
    let is_constant = |index: &i64| constants.contains(index);
    if leaves.iter().any(|index| !is_constant(index)) {
        return Err(LEAVES);
    }
    returns.retain(|index| !is_constant(index));
    Ok(returns.into_iter().filter_map(|index| Some(u64::try_from(index).ok()? * 4)).collect())
}

/// The lowest bits of a word as a signed number.
fn signed(word: u32, bits: u32) -> i64 {
    i64::from((word << (32 - bits)).cast_signed() >> (32 - bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn each_return_is_found_and_no_byte_that_only_looks_like_one() {
        // mov eax, 0xc3c3c3c3; je +1; ret; ud2; ret 8
        let code = [0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0x74, 0x01, 0xc3, 0x0f, 0x0b, 0xc2, 0x08, 0x00];
        assert_eq!(returns(Machine::X86_64, &code), Ok(vec![7, 10]));
        // ldr x0, +12; cbz x0, +4; ret; a constant that looks like `ret`
        let code = words(&[0x5800_0060, 0xb400_0020, 0xd65f_03c0, 0xd65f_03c0, 0xd65f_03c0]);
        assert_eq!(returns(Machine::Aarch64, &code), Ok(vec![8]));
    }

    #[test]
    fn what_is_not_sure_is_refused() {
        let refused = |machine, code: &[u8]| returns(machine, code).unwrap_err();
        assert!(refused(Machine::X86_64, &[0xc3, 0xe9, 0, 1, 0, 0]).contains("jump to another function"));
        assert!(refused(Machine::X86_64, &[0xc3, 0x06]).contains("decoded"));
        assert!(refused(Machine::X86_64, &[0xeb, 0xfe]).contains("no return"));
        assert!(refused(Machine::X86_64, &[0xc3; 257]).contains("256"));
        assert!(refused(Machine::Aarch64, &words(&[0xd65f_03c0, 0x1400_0010])).contains("jump to another function"));
        assert!(refused(Machine::Aarch64, &[0xc0, 3]).contains("whole"));
    }

    #[test]
    fn boundaries_are_where_instructions_begin() {
        let code = [0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3];
        for (offset, expected) in [(0, Some(true)), (1, Some(false)), (5, Some(true)), (7, None)] {
            assert_eq!(is_boundary(Machine::X86_64, &code, offset), expected, "{offset}");
        }
        assert_eq!(is_boundary(Machine::Aarch64, &code, 2), Some(false));
    }
}
