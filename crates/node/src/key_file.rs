//! The file with the cluster's key, and how one key follows on another without an outage.
//!
//! ```text
//! key-1 ──add──► key-1, key-2 next ──promote──► key-2, key-1 previous ──finish──► key-2
//! seals: 1       1                              2                                 2
//! opens: 1       1, 2                           2, 1                              2
//! ```
//!
//! A process seals with the first key and accepts both. Each step has to be everywhere before the
//! next is taken: whoever seals with a key must be understood by everyone.

use replica::{ClusterKey, KeyError, KeyRing};

/// What a key file holds.
#[derive(Clone, Debug)]
pub struct KeyFile {
    seals: ClusterKey,
    other: Option<(ClusterKey, Part)>,
}

/// What the second key of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Next,
    Previous,
}

/// Why a text is no key file, or why a step cannot be taken from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// A line is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A second key without a word that says what it is, or with another.
    #[error("the second key of a key file is followed by `next` or `previous`")]
    Part,
    /// More than two keys.
    #[error("a key file holds one key, and a second one while the first is being replaced")]
    TooMany,
    /// A key is being replaced already.
    #[error("this key is being replaced already: promote the next key, or finish, first")]
    UnderWay,
    /// There is no next key.
    #[error("there is no next key to promote: add one first, and give the file to everyone")]
    NoNext,
    /// There is no previous key.
    #[error("there is no previous key to drop: the next key has not been promoted")]
    NoPrevious,
    /// The new key cannot be told from the old one by its id.
    #[error("the new key has the id of the old one: draw another")]
    SameId,
}

impl KeyFile {
    /// Reads a key file: the key that seals, and perhaps on a second line another one that is
    /// accepted. Empty lines count for nothing.
    ///
    /// # Errors
    /// [`KeyFileError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<KeyFile, KeyFileError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let seals = ClusterKey::parse(lines.next().unwrap_or_default())?;
        let other = lines.next().map(|line| {
            let (key, part) = line
                .split_once(char::is_whitespace)
                .ok_or(KeyFileError::Part)?;
            let part = match part.trim() {
                "next" => Part::Next,
                "previous" => Part::Previous,
                _ => return Err(KeyFileError::Part),
            };
            Ok((ClusterKey::parse(key)?, part))
        });
        match lines.next() {
            Some(_) => Err(KeyFileError::TooMany),
            None => Ok(KeyFile {
                seals,
                other: other.transpose()?,
            }),
        }
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let other = self.other.as_ref().map(|(key, part)| {
            let part = match part {
                Part::Next => "next",
                Part::Previous => "previous",
            };
            format!("{} {part}\n", key.to_text())
        });
        format!("{}\n{}", self.seals.to_text(), other.unwrap_or_default())
    }

    /// What a process does with it.
    pub fn ring(&self) -> KeyRing {
        let ring = KeyRing::of(self.seals.clone());
        match &self.other {
            Some((other, _)) => ring.also(other.clone()),
            None => ring,
        }
    }

    /// The first step: `key` is accepted from now on.
    ///
    /// # Errors
    /// When a key is being replaced already, or the two cannot be told apart.
    pub fn add_next(self, key: ClusterKey) -> Result<KeyFile, KeyFileError> {
        if self.other.is_some() {
            return Err(KeyFileError::UnderWay);
        }
        if key.id() == self.seals.id() {
            return Err(KeyFileError::SameId);
        }
        Ok(KeyFile {
            other: Some((key, Part::Next)),
            ..self
        })
    }

    /// The second step: the next key seals, the one before is still accepted.
    ///
    /// # Errors
    /// When there is no next key.
    pub fn promote(self) -> Result<KeyFile, KeyFileError> {
        match self.other {
            Some((next, Part::Next)) => Ok(KeyFile {
                seals: next,
                other: Some((self.seals, Part::Previous)),
            }),
            _ => Err(KeyFileError::NoNext),
        }
    }

    /// The last step: the previous key is accepted no more.
    ///
    /// # Errors
    /// When there is no previous key.
    pub fn finish(self) -> Result<KeyFile, KeyFileError> {
        match self.other {
            Some((_, Part::Previous)) => Ok(KeyFile {
                other: None,
                ..self
            }),
            _ => Err(KeyFileError::NoPrevious),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::from_bytes([byte; 32])
    }

    fn file() -> KeyFile {
        KeyFile::parse(&key(1).to_text()).expect("a file with one key")
    }

    /// Each step gives a file that reads back as it is, and the ring that the step is for.
    #[test]
    fn three_steps_replace_a_key() {
        let steps = [
            (file(), vec![1]),
            (file().add_next(key(2)).expect("added"), vec![1, 2]),
        ];
        let promoted = steps[1].0.clone().promote().expect("promoted");
        let finished = promoted.clone().finish().expect("finished");
        let rest = [(promoted, vec![2, 1]), (finished, vec![2])];
        for (file, keys) in steps.into_iter().chain(rest) {
            let ids: Vec<u8> = keys.into_iter().map(|byte| key(byte).id()).collect();
            assert_eq!(file.ring().ids(), ids);
            let read = KeyFile::parse(&file.to_text()).expect("its own text");
            assert_eq!(read.to_text(), file.to_text());
            assert_eq!(read.ring().ids(), ids);
        }
    }

    /// Out of turn, a step would lock out whoever has not made the one before.
    #[test]
    fn a_step_out_of_turn_is_refused() {
        type Step = fn(KeyFile) -> Result<KeyFile, KeyFileError>;
        let add: Step = |file| file.add_next(key(3));
        let [promote, finish]: [Step; 2] = [KeyFile::promote, KeyFile::finish];
        let added = file().add_next(key(2)).expect("added");
        let promoted = added.clone().promote().expect("promoted");
        for (file, step, error) in [
            (file(), promote, KeyFileError::NoNext),
            (file(), finish, KeyFileError::NoPrevious),
            (added.clone(), add, KeyFileError::UnderWay),
            (added, finish, KeyFileError::NoPrevious),
            (promoted.clone(), add, KeyFileError::UnderWay),
            (promoted, promote, KeyFileError::NoNext),
        ] {
            assert_eq!(step(file).expect_err("out of turn"), error);
        }
        assert_eq!(
            file().add_next(key(1)).expect_err("the same"),
            KeyFileError::SameId
        );
    }

    #[test]
    fn a_text_that_is_no_key_file_is_named() {
        let (one, two) = (key(1).to_text(), key(2).to_text());
        for (text, error) in [
            (String::new(), KeyFileError::Key(KeyError::Prefix)),
            ("hunter2".to_owned(), KeyFileError::Key(KeyError::Prefix)),
            (format!("{one}\n{two}"), KeyFileError::Part),
            (format!("{one}\n{two} last"), KeyFileError::Part),
            (
                format!("{one}\nx next"),
                KeyFileError::Key(KeyError::Prefix),
            ),
            (
                format!("{one}\n{two} next\n{two} next"),
                KeyFileError::TooMany,
            ),
            (format!("{one} next"), KeyFileError::Key(KeyError::Digits)),
        ] {
            assert_eq!(
                KeyFile::parse(&text).expect_err("no key file"),
                error,
                "{text:?}"
            );
        }
        let spaced = format!("\r\n {one}\r\n\n{two}  next\r\n");
        assert_eq!(
            KeyFile::parse(&spaced).expect("lines").ring().ids().len(),
            2
        );
    }
}
