//! Arguments as the kernel read them in, the array and the line that may leave the host out.

use std::borrow::Cow;

use crate::config::Arguments;
use crate::event::Args;
use crate::model::{proto, text};
use crate::redact::Redactor;

/// The arguments of one exec; keeps its buffers.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    elements: Vec<u8>,
    argv0: Vec<u8>,
    has_argv0: bool,
    redacted: bool,
    cut: bool,
}

/// What is sent at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Characters of an argument.
    pub value_length: Option<usize>,
    pub elements: usize,
    /// Bytes of all of them, as they are written; the first argument is sent whatever its size.
    pub bytes: usize,
}

impl Limits {
    pub(super) const NONE: Self = Self { value_length: None, elements: usize::MAX, bytes: usize::MAX };
}

impl Encoded {
    pub(super) fn clear(&mut self) {
        self.elements.clear();
        self.argv0.clear();
        self.has_argv0 = false;
        self.redacted = false;
        self.cut = false;
    }

    /// Elements of the array; none in the mode that sends none.
    pub(super) fn elements(&self) -> &[u8] {
        &self.elements
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub(super) fn argv0(&self) -> Option<&[u8]> {
        self.has_argv0.then_some(&self.argv0)
    }

    /// Whether what is sent differs from what there was.
    pub(super) fn redacted(&self) -> bool {
        self.redacted
    }

    /// Whether arguments are left out by the limits.
    pub(super) fn cut(&self) -> bool {
        self.cut
    }

    /// All arguments within the limits, and those after the first into the display line too.
    pub(super) fn fill(
        &mut self,
        args: Args<'_>,
        mode: Arguments,
        limits: Limits,
        redactor: &mut Redactor,
        line: &mut text::Line,
    ) {
        for (index, sent) in sent(args, mode, redactor).enumerate() {
            if !self.has_argv0 {
                self.has_argv0 = true;
                self.argv0.extend_from_slice(&sent);
            } else if !line.full() {
                line.push(b" ");
                line.push(&sent);
            }
            if mode == Arguments::Off {
                break;
            }
            let before = self.elements.len();
            proto::element(&mut self.elements, proto::Value::Text(text::shortened(&sent, limits.value_length)));
            if index >= limits.elements || (index > 0 && self.elements.len() > limits.bytes) {
                self.elements.truncate(before);
                self.cut = true;
                break;
            }
        }
        self.redacted = mode != Arguments::Full && redactor.changed();
    }

    /// Only `argv[0]`.
    pub(super) fn command(&mut self, argv0: &[u8], mode: Arguments, redactor: &mut Redactor) {
        redactor.start();
        let sent = if mode == Arguments::Full { Cow::Borrowed(argv0) } else { redactor.arg(argv0) };
        self.has_argv0 = true;
        self.argv0.extend_from_slice(&sent);
        self.redacted = mode != Arguments::Full && redactor.changed();
    }
}

/// Each argument, or what was kept of it, as it may be shown: only without its secrets, unless all are wanted. `redactor`
/// knows afterwards whether anything was replaced.
pub(crate) fn sent<'a>(
    args: Args<'a>,
    mode: Arguments,
    redactor: &mut Redactor,
) -> impl Iterator<Item = Cow<'a, [u8]>> {
    redactor.start();
    pieces(args).map(
        move |(piece, place)| {
            if mode == Arguments::Full { unredacted(piece, place) } else { redacted(redactor, piece, place) }
        },
    )
}

#[derive(Clone, Copy)]
enum Place {
    Whole,
    /// The end may be missing.
    BeforeGap,
    /// The start may be missing.
    AfterGap,
}

fn pieces(args: Args<'_>) -> impl Iterator<Item = (&[u8], Place)> {
    let gap = args.truncated() || !args.tail.is_empty();
    let cut = gap && args.head.last().is_some_and(|byte| *byte != 0);
    let mut head = Args { tail: b"", ..args }.iter().peekable();
    let head = std::iter::from_fn(move || {
        let piece = head.next()?;
        let place = if cut && head.peek().is_none() { Place::BeforeGap } else { Place::Whole };
        Some((piece, place))
    });
    let tail = Args { head: args.tail, tail: b"", ..args }.iter().enumerate();
    head.chain(tail.map(|(index, piece)| (piece, if index == 0 { Place::AfterGap } else { Place::Whole })))
}

fn unredacted(piece: &[u8], place: Place) -> Cow<'_, [u8]> {
    Cow::Borrowed(match place {
        Place::Whole => piece,
        Place::BeforeGap => text::without_cut_end(piece),
        Place::AfterGap => text::without_cut_start(piece),
    })
}

fn redacted<'a>(redactor: &mut Redactor, piece: &'a [u8], place: Place) -> Cow<'a, [u8]> {
    match place {
        Place::Whole => redactor.arg(piece),
        Place::BeforeGap => redactor.arg_before_gap(text::without_cut_end(piece)),
        Place::AfterGap => redactor.arg_after_gap(piece),
    }
}
