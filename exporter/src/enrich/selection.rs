//! A container comes in; whether its processes are to be told of goes out.

use std::fmt::{self, Write as _};

use super::container::{Container, Image, Reference};

/// Where Compose says which project a container is of.
pub const COMPOSE_PROJECT: &str = "com.docker.compose.project";

/// Which containers are wanted: those of an `include`, or all if there is none, but for those of an `exclude`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub include: Vec<Selector>,
    pub exclude: Vec<Selector>,
}

/// Holds for a container of which all of these conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(pub Vec<Condition>);

/// What nobody has told of a container (yet) meets no condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Name(Glob),
    /// The name without tag; or with one of its tags, if the pattern has one.
    Image {
        pattern: Glob,
        tagged: bool,
    },
    /// `None`: any value will do.
    Label {
        key: String,
        value: Option<Glob>,
    },
    /// Kubernetes' namespace, or containerd's.
    Namespace(Glob),
    Pod(Glob),
    /// What the id begins with.
    Id(String),
    Runtime(String),
}

impl Selection {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    #[must_use]
    pub fn wants(&self, container: &Container) -> bool {
        let holds = |selector: &Selector| selector.holds(container);
        (self.include.is_empty() || self.include.iter().any(holds)) && !self.exclude.iter().any(holds)
    }

    /// Keys of the labels that have to be kept, as [`Container::matched`].
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        self.include.iter().chain(&self.exclude).flat_map(Selector::label_keys)
    }

    /// Whether it takes a runtime's word on a container, as it does for all but id and runtime.
    #[must_use]
    pub fn needs_description(&self) -> bool {
        self.conditions().any(|condition| !matches!(condition, Condition::Id(_) | Condition::Runtime(_)))
    }

    fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.include.iter().chain(&self.exclude).flat_map(|selector| &selector.0)
    }
}

impl Selector {
    /// As [`Selection::label_keys`].
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|condition| match condition {
            Condition::Label { key, .. } => Some(key.as_str()),
            Condition::Name(_)
            | Condition::Image { .. }
            | Condition::Namespace(_)
            | Condition::Pod(_)
            | Condition::Id(_)
            | Condition::Runtime(_) => None,
        })
    }

    /// Whether it is one of these containers.
    #[must_use]
    pub fn holds(&self, container: &Container) -> bool {
        self.0.iter().all(|condition| condition.holds(container))
    }
}

impl Condition {
    fn holds(&self, container: &Container) -> bool {
        let is = |pattern: &Glob, text: &Option<String>| text.as_ref().is_some_and(|text| pattern.matches(text));
        match self {
            Self::Name(pattern) => is(pattern, &container.name),
            Self::Image { pattern, tagged } => {
                container.image.as_ref().is_some_and(|image| is_image(pattern, *tagged, image))
            }
            Self::Label { key, value } => container
                .matched
                .iter()
                .any(|(known, text)| known == key && value.as_ref().is_none_or(|value| value.matches(text))),
            Self::Namespace(pattern) => is(pattern, &container.pod.namespace) || is(pattern, &container.namespace),
            Self::Pod(pattern) => is(pattern, &container.pod.name),
            Self::Id(prefix) => container.id.starts_with(prefix.as_str()),
            Self::Runtime(name) => container.runtime == name,
        }
    }
}

/// `docker.io/library/nginx` is `nginx` too: what one runtime writes out another leaves out.
fn is_image(pattern: &Glob, tagged: bool, image: &Image) -> bool {
    [image.name.as_str(), Reference::parse(&image.name).familiar_name()].into_iter().any(|name| {
        // The colon of a pattern such as `localhost:5*` may be that of a port.
        let mut tags = image.tags.iter().filter(|_| tagged);
        pattern.matches(name) || tags.any(|tag| pattern.matches(&format!("{name}:{tag}")))
    })
}

/// A pattern for a whole text: `*` is any text, `?` is any character, and a character after `\` is itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    AnyText,
    AnyCharacter,
    Character(char),
}

impl Glob {
    /// Takes any text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut characters = text.chars();
        let token = || {
            Some(match characters.next()? {
                '*' => Token::AnyText,
                '?' => Token::AnyCharacter,
                '\\' => Token::Character(characters.next().unwrap_or('\\')),
                character => Token::Character(character),
            })
        };
        Self(std::iter::from_fn(token).collect())
    }

    /// Takes at most as many steps as the pattern's length times the text's: only the last `*` can ever have to take more,
    /// as those before it have taken as little as they can.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (mut tokens, mut rest) = (self.0.as_slice(), text.chars());
        let mut last = None;
        loop {
            let before = rest.clone();
            match (tokens, rest.next()) {
                ([Token::AnyText, after @ ..], _) => {
                    rest = before;
                    last = Some((after, rest.clone()));
                    tokens = after;
                }
                ([Token::AnyCharacter, after @ ..], Some(_)) => tokens = after,
                ([Token::Character(wanted), after @ ..], Some(found)) if *wanted == found => tokens = after,
                ([], None) => return true,
                (_, None) => return false,
                (_, Some(_)) => {
                    let Some((after, from)) = &mut last else { return false };
                    from.next();
                    (tokens, rest) = (*after, from.clone());
                }
            }
        }
    }
}

/// As a user writes it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, condition) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            write!(f, "{condition}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let literal =
            |f: &mut fmt::Formatter<'_>, text: &str| text.chars().try_for_each(|character| escaped(f, character));
        match self {
            Self::Name(pattern) => write!(f, "name:{pattern}"),
            Self::Image { pattern, .. } => write!(f, "image:{pattern}"),
            Self::Label { key, value } => {
                f.write_str("label:")?;
                literal(f, key)?;
                value.iter().try_for_each(|value| write!(f, "={value}"))
            }
            Self::Namespace(pattern) => write!(f, "namespace:{pattern}"),
            Self::Pod(pattern) => write!(f, "pod:{pattern}"),
            Self::Id(prefix) => f.write_str("id:").and_then(|()| literal(f, prefix)),
            Self::Runtime(name) => f.write_str("runtime:").and_then(|()| literal(f, name)),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| match token {
            Token::AnyText => f.write_char('*'),
            Token::AnyCharacter => f.write_char('?'),
            Token::Character(character) => escaped(f, *character),
        })
    }
}

/// Also what means something only around a selector or in another place of it, and spaces, which alone are no value.
fn escaped(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    if character.is_whitespace() || matches!(character, '\\' | '*' | '?' | ',' | '=' | '[' | ']') {
        f.write_char('\\')?;
    }
    f.write_char(character)
}

#[cfg(test)]
mod tests;
