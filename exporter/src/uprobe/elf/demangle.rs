//! A symbol of C++ or Rust comes in; what the programmer called it goes out, within bounds.

use std::fmt::{self, Write as _};

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

/// Longest symbol that is demangled, in bytes.
const MAX_SYMBOL: usize = 2048;
/// Longest name that comes of it, in bytes.
const MAX_NAME: usize = 8192;
/// Deepest nesting.
const MAX_DEPTH: u32 = 96;

/// The forms of a demangled name that a user may know.
#[derive(Debug, PartialEq, Eq)]
pub struct Demangled {
    /// As shown: Rust's without hash, `C++`'s with parameters.
    pub shown: String,
    /// Rust's with hash, `C++`'s without parameters and return type; empty: none.
    pub other: String,
}

impl Demangled {
    /// `None`: a name as it is.
    pub fn of(symbol: &str) -> Option<Self> {
        if symbol.len() > MAX_SYMBOL || !symbol.starts_with("_Z") && !symbol.starts_with("_R") {
            return None;
        }
        if let Ok(rust) = rustc_demangle::try_demangle(symbol) {
            let shown = bounded(|out| write!(out, "{rust:#}"))?;
            return Some(Self { shown, other: bounded(|out| write!(out, "{rust}"))? });
        }
        let parsing = ParseOptions::default().recursion_limit(MAX_DEPTH);
        let name = Symbol::new_with_options(symbol, &parsing).ok()?;
        let options = DemangleOptions::new().recursion_limit(MAX_DEPTH);
        let shown = bounded(|out| name.structured_demangle(out, &options))?;
        let bare = options.no_params().no_return_type();
        Some(Self { shown, other: bounded(|out| name.structured_demangle(out, &bare)).unwrap_or_default() })
    }

    pub fn is(&self, wanted: &str) -> bool {
        self.shown == wanted || !self.other.is_empty() && self.other == wanted
    }
}

/// The name to show.
pub fn shown(symbol: &str) -> String {
    Demangled::of(symbol).map_or_else(|| symbol.to_owned(), |name| name.shown)
}

struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_NAME {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn bounded(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
    let mut out = Bounded(String::new());
    write(&mut out).ok()?;
    Some(out.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_each_form() {
        let cpp = Demangled::of("_ZN3web7handlerISsEEiRKT_").unwrap();
        assert!(cpp.shown.starts_with("int web::handler<") && cpp.is(&cpp.other), "{cpp:?}");
        assert!(Demangled::of("_ZN3web5parseEi").unwrap().is("web::parse"));
        assert!(Demangled::of("_ZN3web5parseEi").unwrap().is("web::parse(int)"));
        let rust = Demangled::of("_ZN3web5parse17h0123456789abcdefE").unwrap();
        assert!(rust.is("web::parse") && rust.is("web::parse::h0123456789abcdef"));
        assert_eq!(Demangled::of("main"), None);
        assert_eq!(shown("_Znope"), "_Znope");
    }

    #[test]
    fn a_name_that_grows_without_end_is_left_as_it_is() {
        let mut bomb = "_Z1fSt4pairI".to_owned();
        bomb.push_str(&"St4pairIS0_S0_ES1_".repeat(100));
        assert!(shown(&bomb).len() <= MAX_NAME);
        assert!(shown(&format!("_Z1f{}i", "P".repeat(2000))).len() <= MAX_NAME);
    }

    proptest::proptest! {
        #[test]
        fn any_symbol_is_demangled_or_left(tail in "[0-9A-Za-z_.$]{0,64}", is_rust: bool) {
            let _name = shown(&format!("{}{tail}", if is_rust { "_R" } else { "_Z" }));
        }
    }
}
