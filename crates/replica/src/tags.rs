//! What a node's owner says of it beside its name: where it stands, what it can do.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How many tags a node has at most.
pub const MAX_TAGS: usize = 16;

/// The longest key of a tag, in bytes.
pub const MAX_TAG_KEY: usize = 64;

/// The longest value of a tag, in bytes.
pub const MAX_TAG_VALUE: usize = 256;

/// A node's tags: keys with values, ordered by key. They stand in its birth and in the agreed
/// record of it, and do not change while it runs.
///
/// At most 16; a key has 1 to 64 bytes, a value at most 256, neither a control character.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Tags(Arc<BTreeMap<String, String>>);

/// Why keys and values are no [`Tags`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// Too many.
    #[error("a node has at most {MAX_TAGS} tags, not {0}")]
    TooMany(usize),
    /// A key without a byte, or with too many.
    #[error("the key of a tag has 1 to {MAX_TAG_KEY} bytes, {0:?} has not")]
    Key(String),
    /// A value with too many bytes.
    #[error("the value of tag {0} has more than {MAX_TAG_VALUE} bytes")]
    Value(String),
    /// A control character.
    #[error("tag {0:?} holds a control character")]
    Control(String),
}

impl Tags {
    /// Checks keys and values; of a key that comes twice the last value counts.
    ///
    /// # Errors
    /// [`TagError`] says which does not fit.
    pub fn new<K, V>(tags: impl IntoIterator<Item = (K, V)>) -> Result<Tags, TagError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs = tags
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()));
        BTreeMap::from_iter(pairs).try_into()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Every key with its value, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Tags> for BTreeMap<String, String> {
    fn from(tags: Tags) -> Self {
        Arc::unwrap_or_clone(tags.0)
    }
}

impl TryFrom<BTreeMap<String, String>> for Tags {
    type Error = TagError;

    fn try_from(tags: BTreeMap<String, String>) -> Result<Tags, TagError> {
        if tags.len() > MAX_TAGS {
            return Err(TagError::TooMany(tags.len()));
        }
        for (key, value) in &tags {
            if key.is_empty() || key.len() > MAX_TAG_KEY {
                return Err(TagError::Key(key.clone()));
            }
            if value.len() > MAX_TAG_VALUE {
                return Err(TagError::Value(key.clone()));
            }
            if key.chars().chain(value.chars()).any(char::is_control) {
                return Err(TagError::Control(key.clone()));
            }
        }
        Ok(Tags(Arc::new(tags)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_bounded() {
        let many = |n: usize| Tags::new((0..n).map(|n| (format!("k{n}"), "v")));
        assert!(many(MAX_TAGS).is_ok());
        assert_eq!(many(MAX_TAGS + 1), Err(TagError::TooMany(MAX_TAGS + 1)));
        let one = |key: &str, value: &str| Tags::new([(key, value)]);
        let long = "x".repeat(MAX_TAG_VALUE + 1);
        assert!(one(&long[..MAX_TAG_KEY], &long[1..]).is_ok());
        assert!(matches!(one("", "v"), Err(TagError::Key(_))));
        assert!(matches!(one(&long[..65], "v"), Err(TagError::Key(_))));
        assert!(matches!(one("k", &long), Err(TagError::Value(_))));
        assert!(matches!(one("k", "two\nlines"), Err(TagError::Control(_))));
        assert!(serde_json::from_str::<Tags>(r#"{"":"v"}"#).is_err());
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let tags = Tags::new([("zone", "a"), ("zone", "b"), ("arch", "arm")]).unwrap();
        let pairs: Vec<_> = tags.iter().collect();
        assert_eq!(pairs, [("arch", "arm"), ("zone", "b")]);
        assert_eq!(tags.get("zone"), Some("b"));
    }
}
