//! A probe comes in; whether its parts go together goes out. Each part for itself is checked where it is read.

use super::spec::{ARGS_MAX, Capture, Function, Kind, OPERAND_MAX, POSITION_MAX, Type, Uprobe};

/// What does not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub part: Part,
    /// A sentence with the remedy.
    pub problem: String,
}

/// Where the remedy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Kind,
    /// By index; of the list as a whole, its first.
    Arg(usize),
    Returns,
    Span,
}

/// The first conflict, if there is one.
pub fn check(probe: &Uprobe) -> Result<(), Conflict> {
    kind(probe)?;
    if probe.span && probe.kind != Kind::Both {
        return conflict(Part::Span, "a span lasts from entry to return: it takes both");
    }
    if probe.args.len() > ARGS_MAX {
        return conflict(Part::Arg(ARGS_MAX), format!("a probe captures {ARGS_MAX} arguments at most"));
    }
    for (index, capture) in probe.args.iter().enumerate() {
        let refused = argument(&probe.function, capture).err();
        let is_known = probe.args.iter().take(index).any(|other| other.name == capture.name);
        let repeated = is_known.then(|| format!("`{}` names another argument already", capture.name));
        if let Some(problem) = refused.or(repeated) {
            return conflict(Part::Arg(index), problem);
        }
    }
    match &probe.returns {
        Some(capture) => returned(capture).or_else(|problem| conflict(Part::Returns, problem)),
        None => Ok(()),
    }
}

fn kind(probe: &Uprobe) -> Result<(), Conflict> {
    let has_return = probe.kind != Kind::Entry;
    match &probe.function {
        Function::Usdt { .. } if has_return => {
            return conflict(Part::Kind, "a USDT marker is one place and does not return: it takes entry");
        }
        Function::Offset { symbol: Some(_), offset: 1.. } if has_return => {
            let problem =
                "only at a function's entry is it known where it returns to: leave the offset out, or the return";
            return conflict(Part::Kind, problem);
        }
        Function::Symbol(_) | Function::Pattern { .. } | Function::Offset { .. } | Function::Usdt { .. } => {}
    }
    if probe.kind == Kind::Entry && probe.returns.is_some() {
        return conflict(Part::Returns, "at entry there is no return value yet: it takes return or both");
    }
    if probe.kind == Kind::Return && !probe.args.is_empty() {
        return conflict(Part::Arg(0), "at return the arguments are gone: both reads them at entry");
    }
    Ok(())
}

fn argument(function: &Function, capture: &Capture) -> Result<(), String> {
    let is_usdt = matches!(function, Function::Usdt { .. });
    let highest = |position: u8| match (is_usdt, position) {
        (true, ..=OPERAND_MAX) | (false, ..=POSITION_MAX) => Ok(()),
        (true, _) => Err(format!("position {position}: a USDT marker has operands 0 to {OPERAND_MAX}")),
        (false, _) => Err(format!(
            "position {position}: only arguments 0 to {POSITION_MAX} are passed in registers, where they are read"
        )),
    };
    highest(capture.position)?;
    match form(capture.value) {
        Form::Bytes { length } if length == capture.position => {
            Err("bytes(N) takes the position of the argument that has the length, not its own".to_owned())
        }
        Form::Bytes { length } => highest(length),
        Form::Vector if !is_usdt => Err(
            "a float is passed in a vector register, which BPF cannot read: only *f32 and *f64, to which a pointer is \
             passed, can be captured"
                .to_owned(),
        ),
        Form::Vector | Form::Plain => Ok(()),
    }
}

fn returned(capture: &Capture) -> Result<(), String> {
    match form(capture.value) {
        Form::Bytes { .. } => Err("the length of bytes(N) is an argument, and those are gone at return: string reads up to \
             the first NUL"
            .to_owned()),
        Form::Vector => Err(
            "a float is returned in a vector register, which BPF cannot read: only *f32 and *f64, to which a pointer is \
             returned, can be captured"
                .to_owned(),
        ),
        Form::Plain => Ok(()),
    }
}

/// What a type asks for.
enum Form {
    /// One register, whatever it means.
    Plain,
    /// A register of floating point, where it is passed in one.
    Vector,
    /// Another argument.
    Bytes { length: u8 },
}

fn form(value: Type) -> Form {
    match value {
        Type::Bytes { length } => Form::Bytes { length },
        Type::F32 | Type::F64 => Form::Vector,
        Type::I8
        | Type::I16
        | Type::I32
        | Type::I64
        | Type::U8
        | Type::U16
        | Type::U32
        | Type::U64
        | Type::Pointer
        | Type::Bool
        | Type::String
        | Type::F32At
        | Type::F64At => Form::Plain,
    }
}

fn conflict<T>(part: Part, problem: impl Into<String>) -> Result<T, Conflict> {
    Err(Conflict { part, problem: problem.into() })
}
