//! The arguments of a USDT probe, as its note writes them for an assembler, come in; operands that can be read go out.

use super::Machine;

/// Most arguments of a probe, as `sys/sdt.h` has it.
const MAX_OPERANDS: usize = 12;

/// A value at the place of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    pub is_signed: bool,
    pub is_float: bool,
    pub at: Location,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Its lowest bytes.
    Register(Register),
    /// Address: `base + index * scale + displacement`.
    Memory {
        base: Register,
        /// Its scale is 1, 2, 4 or 8.
        index: Option<(Register, u8)>,
        displacement: i64,
    },
    Constant(i64),
}

/// The name of a whole register of 64 bits: `rax` to `r15` and `rip`, or `x0` to `x30` and `sp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub &'static str);

/// Whole registers of x86-64, each followed by its parts of 32, 16 and 8 bits.
const X86: [[&str; 4]; 16] = [
    ["rax", "eax", "ax", "al"],
    ["rbx", "ebx", "bx", "bl"],
    ["rcx", "ecx", "cx", "cl"],
    ["rdx", "edx", "dx", "dl"],
    ["rsi", "esi", "si", "sil"],
    ["rdi", "edi", "di", "dil"],
    ["rbp", "ebp", "bp", "bpl"],
    ["rsp", "esp", "sp", "spl"],
    ["r8", "r8d", "r8w", "r8b"],
    ["r9", "r9d", "r9w", "r9b"],
    ["r10", "r10d", "r10w", "r10b"],
    ["r11", "r11d", "r11w", "r11b"],
    ["r12", "r12d", "r12w", "r12b"],
    ["r13", "r13d", "r13w", "r13b"],
    ["r14", "r14d", "r14w", "r14b"],
    ["r15", "r15d", "r15w", "r15b"],
];
const ARM: [&str; 31] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
    "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "x30",
];

/// Each argument of `-4@%edi 8@-16(%rbp)`, or why it can't be read.
pub fn operands(machine: Machine, text: &str) -> Vec<Result<Operand, String>> {
    arguments(text).take(MAX_OPERANDS).map(|argument| operand(machine, argument)).collect()
}

/// Spaces are between arguments, but for those in brackets.
fn arguments(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let is_between = move |character: char| {
        match character {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && character == ' '
    };
    text.split(is_between).filter(|argument| !argument.is_empty())
}

fn operand(machine: Machine, argument: &str) -> Result<Operand, String> {
    let unknown = || format!("`{argument}` is in a form that is not known");
    let (size, place) = argument.split_once('@').unwrap_or(("8", argument));
    let (digits, is_float) = size.strip_suffix('f').map_or((size, false), |digits| (digits, true));
    let (digits, is_signed) = digits.strip_prefix('-').map_or((digits, false), |digits| (digits, true));
    let size = match digits {
        "1" => 1,
        "2" => 2,
        "4" => 4,
        "8" => 8,
        _ => return Err(format!("`{argument}` is of a size that is not 1, 2, 4 or 8 bytes")),
    };
    let at = match machine {
        Machine::X86_64 => x86(place),
        Machine::Aarch64 => arm(place),
    };
    let at = at.map_err(|refusal| refusal.map_or_else(unknown, |why| format!("`{argument}` {why}")))?;
    Ok(Operand { size, is_signed, is_float, at })
}

/// `None`: not known at all.
type Refusal = Option<&'static str>;

const VECTOR: Refusal = Some("is in a vector register, which a BPF program can't read");

/// As the GNU assembler writes them: `$5`, `%rax`, `-16(%rbp)`, `8(%rax,%rbx,4)`.
fn x86(place: &str) -> Result<Location, Refusal> {
    if let Some(constant) = place.strip_prefix('$') {
        return Ok(Location::Constant(number(constant).ok_or(None)?));
    }
    if let Some(name) = place.strip_prefix('%') {
        return x86_register(name, false).map(Location::Register);
    }
    let (displacement, inner) = place.strip_suffix(')').and_then(|place| place.split_once('(')).ok_or(None)?;
    if inner == "%rip" {
        return Err(Some("is a variable of the program, whose address is not known before it is loaded"));
    }
    let displacement = if displacement.is_empty() { 0 } else { number(displacement).ok_or(None)? };
    let mut parts = inner.split(',').map(str::trim);
    let register = |part: Option<&str>| x86_register(part.and_then(|part| part.strip_prefix('%')).ok_or(None)?, true);
    let base = register(parts.next())?;
    let index = match parts.next() {
        None => None,
        index => {
            let scale = parts.next().map_or(Some(1), |scale| scale.parse().ok());
            Some((register(index)?, scale.filter(|scale| [1, 2, 4, 8].contains(scale)).ok_or(None)?))
        }
    };
    if parts.next().is_some() {
        return Err(None);
    }
    Ok(Location::Memory { base, index, displacement })
}

fn x86_register(name: &str, is_whole: bool) -> Result<Register, Refusal> {
    if ["xmm", "ymm", "zmm", "st"].iter().any(|vector| name.starts_with(vector)) {
        return Err(VECTOR);
    }
    if ["ah", "bh", "ch", "dh"].contains(&name) {
        return Err(Some("is the second byte of a register"));
    }
    let widths = if is_whole { 1 } else { 4 };
    X86.iter().find(|names| names[..widths].contains(&name)).map(|names| Register(names[0])).ok_or(None)
}

/// `5`, `x0`, `w0`, `[sp]`, `[sp, 16]`, `[x0, x1]`, `[x0, x1, lsl 3]`.
fn arm(place: &str) -> Result<Location, Refusal> {
    let constant = |text: &str| number(text.strip_prefix('#').unwrap_or(text));
    if let Some(constant) = constant(place) {
        return Ok(Location::Constant(constant));
    }
    let Some(inner) = place.strip_prefix('[').and_then(|place| place.strip_suffix(']')) else {
        return match place {
            "xzr" | "wzr" => Ok(Location::Constant(0)),
            _ => arm_register(place, false).map(Location::Register),
        };
    };
    let mut parts = inner.split(',').map(str::trim);
    let base = arm_register(parts.next().ok_or(None)?, true)?;
    let (index, displacement) = match parts.next().map(|part| (part, constant(part))) {
        None => (None, 0),
        Some((_, Some(displacement))) => (None, displacement),
        Some((part, None)) => {
            let scale = parts.next().map_or(Ok(1), |shift| {
                let shift = shift.strip_prefix("lsl").ok_or(Some("has an index of 32 bits"))?;
                let shift = constant(shift.trim()).and_then(|shift| u8::try_from(shift).ok());
                Ok::<u8, Refusal>(1 << shift.filter(|shift| *shift <= 3).ok_or(None)?)
            });
            (Some((arm_register(part, true)?, scale?)), 0)
        }
    };
    if parts.next().is_some() {
        return Err(None);
    }
    Ok(Location::Memory { base, index, displacement })
}

fn arm_register(name: &str, is_whole: bool) -> Result<Register, Refusal> {
    match name {
        "sp" => return Ok(Register("sp")),
        "fp" => return Ok(Register("x29")),
        "lr" => return Ok(Register("x30")),
        _ => {}
    }
    let (bank, digits) = name.split_at_checked(1).ok_or(None)?;
    let whole = || digits.parse::<usize>().ok().and_then(|n| ARM.get(n)).filter(|whole| whole[1..] == *digits);
    match bank {
        "x" => whole().map(|whole| Register(whole)).ok_or(None),
        "w" if !is_whole => whole().map(|whole| Register(whole)).ok_or(None),
        "w" => Err(Some("has an index of 32 bits")),
        "v" | "q" | "d" | "s" | "h" | "b" if !digits.is_empty() => Err(VECTOR),
        _ => Err(None),
    }
}

/// Decimal or, after `0x`, hexadecimal; what has no sign may have all 64 bits.
fn number(text: &str) -> Option<i64> {
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    if !digits.starts_with(|character: char| character.is_ascii_digit()) {
        return None;
    }
    let value = digits.strip_prefix("0x").map_or_else(|| digits.parse(), |hex| u64::from_str_radix(hex, 16)).ok()?;
    if is_negative { 0_i64.checked_sub_unsigned(value) } else { Some(value.cast_signed()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(machine: Machine, text: &str) -> Operand {
        let read = operands(machine, text);
        let [Ok(operand)] = &read[..] else { panic!("{text}: {read:?}") };
        operand.clone()
    }

    fn memory(base: &'static str, index: Option<(&'static str, u8)>, displacement: i64) -> Location {
        let index = index.map(|(name, scale)| (Register(name), scale));
        Location::Memory { base: Register(base), index, displacement }
    }

    #[test]
    fn operands_of_x86_are_read_in_each_form() {
        for (text, size, is_signed, at) in [
            ("-4@%edi", 4, true, Location::Register(Register("rdi"))),
            ("1@%r10b", 1, false, Location::Register(Register("r10"))),
            ("8@-16(%rbp)", 8, false, memory("rbp", None, -16)),
            ("8@(%rax)", 8, false, memory("rax", None, 0)),
            ("8@0x10(%rax,%rbx,8)", 8, false, memory("rax", Some(("rbx", 8)), 16)),
            ("2@(%rax,%r15)", 2, false, memory("rax", Some(("r15", 1)), 0)),
            ("-4@$-5", 4, true, Location::Constant(-5)),
            ("8@$18446744073709551615", 8, false, Location::Constant(-1)),
            ("%rax", 8, false, Location::Register(Register("rax"))),
        ] {
            assert_eq!(read(Machine::X86_64, text), Operand { size, is_signed, is_float: false, at }, "{text}");
        }
        assert!(read(Machine::X86_64, "8f@8(%rsp)").is_float);
    }

    #[test]
    fn operands_of_arm_are_read_in_each_form() {
        for (text, size, is_signed, at) in [
            ("8@x0", 8, false, Location::Register(Register("x0"))),
            ("-4@w30", 4, true, Location::Register(Register("x30"))),
            ("-4@[sp, 12]", 4, true, memory("sp", None, 12)),
            ("8@[x29, #-8]", 8, false, memory("x29", None, -8)),
            ("8@[x1]", 8, false, memory("x1", None, 0)),
            ("8@[x1, x2, lsl 3]", 8, false, memory("x1", Some(("x2", 8)), 0)),
            ("4@5", 4, false, Location::Constant(5)),
            ("8@xzr", 8, false, Location::Constant(0)),
        ] {
            assert_eq!(read(Machine::Aarch64, text), Operand { size, is_signed, is_float: false, at }, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why_and_leaves_the_rest() {
        let read = operands(Machine::X86_64, "8f@%xmm0 4@counter(%rip) 1@%ah 16@%rax 8@(%eax) 8@ 4@%edi");
        let why = ["vector register", "variable", "second byte", "size", "not known", "not known"];
        for (operand, why) in read.iter().zip(why) {
            assert!(operand.as_ref().unwrap_err().contains(why), "{operand:?}");
        }
        assert!(read.len() == 7 && read[6].is_ok());
        let read = operands(Machine::Aarch64, "8@d0 8@[x0, w1, sxtw 3] 8@x31 8@x01 -4@[sp, 12] 8@x0");
        let why = ["vector register", "32 bits", "not known", "not known"];
        for (operand, why) in read.iter().zip(why) {
            assert!(operand.as_ref().unwrap_err().contains(why), "{operand:?}");
        }
        assert!(read.len() == 6 && read[4].is_ok() && read[5].is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-0-9@%$()\\[\\], a-z#]{0,48}", any: String) {
            for machine in [Machine::X86_64, Machine::Aarch64] {
                let _read = (operands(machine, &text), operands(machine, &any));
            }
        }
    }
}
