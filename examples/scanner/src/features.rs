//! What Magika's models see of a file, exactly as the Python package `magika` 1.0.3 extracts it (feature extraction v2).
//!
//! Decides the model's input, and which files are too small for a model. Reads no file and runs no model.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What the model's `config.min.json` says: sizes in bytes, and one label a class in the order of the model's output.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    beg_size: usize,
    mid_size: usize,
    end_size: usize,
    block_size: usize,
    padding_token: i32,
    min_file_size_for_dl: usize,
    use_inputs_at_offsets: bool,
    medium_confidence_threshold: f32,
    thresholds: BTreeMap<String, f32>,
    target_labels_space: Vec<String>,
}

/// A configuration that this extraction can't honour.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing.
    #[error("the model's configuration can't be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has a value that other versions of the extraction know.
    #[error("the model's configuration has {field} = {value}: {expected}")]
    Unsupported {
        /// Field of the configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
}

/// What is known about a file before a model is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One row of the model's input: `Config::width` tokens, each a byte or the padding token.
    Features(Vec<i32>),
    /// Too little content for a model; the label is `empty`, `txt` or `unknown`.
    TooSmall(&'static str),
}

/// What Python's `bytes.strip` removes; unlike [`u8::is_ascii_whitespace`] with the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

impl Config {
    /// Reads and checks a `config.min.json`.
    ///
    /// # Errors
    /// When it is not such a file, or asks for middle or offset features, which models before 3 used.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json)?;
        let refuse = |field, value: usize, expected| {
            Err(ConfigError::Unsupported {
                field,
                value: value.to_string(),
                expected,
            })
        };
        if config.mid_size != 0 {
            return refuse("mid_size", config.mid_size, "only 0 is supported");
        }
        if config.use_inputs_at_offsets {
            return refuse("use_inputs_at_offsets", 1, "only false is supported");
        }
        if config.block_size > 1 << 20 || config.block_size <= config.beg_size.max(config.end_size) {
            return refuse(
                "block_size",
                config.block_size,
                "must be above beg_size and end_size and at most 1048576",
            );
        }
        if config.min_file_size_for_dl == 0 || config.min_file_size_for_dl > config.beg_size {
            return refuse(
                "min_file_size_for_dl",
                config.min_file_size_for_dl,
                "must be from 1 to beg_size",
            );
        }
        if config.target_labels_space.is_empty() {
            return refuse("target_labels_space", 0, "must name one label for each class");
        }
        Ok(config)
    }

    /// Tokens in one row of the model's input.
    pub fn width(&self) -> usize {
        self.beg_size + self.end_size
    }

    /// Labels in the order of the model's classes.
    pub fn labels(&self) -> &[String] {
        &self.target_labels_space
    }

    /// Most bytes that are read from either end of a file.
    pub fn block(&self) -> usize {
        self.block_size
    }

    /// Whether `score` is high enough for `label` to be believed.
    pub fn believes(&self, label: &str, score: f32) -> bool {
        score >= *self.thresholds.get(label).unwrap_or(&self.medium_confidence_threshold)
    }

    /// What the model sees of a file with these bytes.
    pub fn read(&self, content: &[u8]) -> Content {
        let block = content.len().min(self.block_size);
        self.read_ends(&content[..block], &content[content.len() - block..], content.len())
    }

    /// The same from a file's first and last [`Config::block`] bytes (the whole file, twice, where it is shorter) and its size.
    pub fn read_ends(&self, first: &[u8], last: &[u8], size: usize) -> Content {
        if size == 0 {
            return Content::TooSmall("empty");
        }
        let kept = first
            .iter()
            .position(|byte| !is_space(*byte))
            .map_or(&[][..], |start| &first[start..]);
        // As in Python: with fewer bytes than that, at all or after stripping, there is nothing to go by but the encoding.
        if size < self.min_file_size_for_dl || kept.len() < self.min_file_size_for_dl {
            return Content::TooSmall(if std::str::from_utf8(first).is_ok() {
                "txt"
            } else {
                "unknown"
            });
        }
        let mut row = vec![self.padding_token; self.width()];
        for (token, byte) in row.iter_mut().zip(&kept[..kept.len().min(self.beg_size)]) {
            *token = i32::from(*byte);
        }
        let kept = last
            .iter()
            .rposition(|byte| !is_space(*byte))
            .map_or(&[][..], |end| &last[..=end]);
        for (token, byte) in row.iter_mut().rev().zip(kept.iter().rev().take(self.end_size)) {
            *token = i32::from(*byte);
        }
        Content::Features(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assayer_crds::digest::Digest;

    /// The values of `standard_v3_3`, with three of its 214 labels.
    const STANDARD_V3_3: &str = r#"{"beg_size":1024,"mid_size":0,"end_size":1024,"use_inputs_at_offsets":false,
        "medium_confidence_threshold":0.5,"min_file_size_for_dl":8,"padding_token":256,"block_size":4096,
        "target_labels_space":["3gp","ace","markdown"],"thresholds":{"markdown":0.75},"overwrite_map":{},"version_major":3}"#;

    fn config() -> Config {
        Config::parse(STANDARD_V3_3.as_bytes()).unwrap()
    }

    /// What Python's package was given, too: content, and sha256 over its features as little-endian int32.
    fn recorded() -> Vec<(&'static str, Vec<u8>, &'static str)> {
        let cycle = |size: usize, step: usize| {
            (0..size)
                .map(|i| u8::try_from(i * step % 256).unwrap())
                .collect::<Vec<u8>>()
        };
        let spaced = [&b" \t\r\n\x0b\x0c"[..], b"#!/bin/sh\necho hi\n", &[b' '; 40]].concat();
        let blank_block = [
            vec![b'\n'; 4_000],
            b"after the blanks".to_vec(),
            vec![b'x'; 6_000],
            vec![b' '; 5_000],
        ]
        .concat();
        vec![
            ("empty", Vec::new(), "empty"),
            ("seven bytes", b"\xffabcdef".to_vec(), "unknown"),
            ("short text", b"hi there"[..7].to_vec(), "txt"),
            ("blank", vec![b' '; 100], "txt"),
            (
                "blank but seven",
                b"\n\nabcdefg   ".to_vec(),
                "a9a44dd2d6df32c6b22a62108503714584826cafeb4716c3624245b1fe6e04a6",
            ),
            (
                "spaces of every kind",
                spaced,
                "fae3954fa3b29f763b59773b0080fe5b77b1044b692aef285e3031c057f4851d",
            ),
            (
                "exactly one half",
                cycle(1_024, 7),
                "1db38107243a477308af9674e2201bb00d616c6fb2a88da6f1fdfc7a17cbde10",
            ),
            (
                "a block",
                cycle(4_096, 11),
                "c56f42a21c239525aae72819754ccc9405da7ce7dd0cc75570063efa5082869e",
            ),
            (
                "one more than a block",
                cycle(4_097, 13),
                "ec9bba7f7fa83626f87a0be05be5ad95fb207e3cb5ea10b356b8e3676599f922",
            ),
            (
                "long",
                cycle(100_000, 31),
                "31f2a9957ce1820ddbbf716a2cacd4ddfb55342184e587eb1dd77eb935310efd",
            ),
            (
                "blank ends",
                blank_block,
                "678db0349018a4c800a57c76f5bc20e97da3f9585a03db0e8f5d1aa784bc7ef2",
            ),
        ]
    }

    fn bytes(row: &[i32]) -> Vec<u8> {
        row.iter().flat_map(|token| token.to_le_bytes()).collect()
    }

    #[test]
    fn features_equal_the_python_package() {
        for (name, content, expected) in recorded() {
            match config().read(&content) {
                Content::Features(row) => assert_eq!(Digest::of(&bytes(&row)).hex(), expected, "{name}"),
                Content::TooSmall(label) => assert_eq!(label, expected, "{name}"),
            }
        }
    }

    #[test]
    fn ends_alone_give_the_same_as_the_whole_file() {
        let content: Vec<u8> = (0..20_000_u32)
            .map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
            .collect();
        let (first, last) = (&content[..4096], &content[content.len() - 4096..]);
        assert_eq!(config().read(&content), config().read_ends(first, last, content.len()));
    }

    #[test]
    fn thresholds_are_by_label_with_a_default() {
        assert!(config().believes("ace", 0.5) && !config().believes("ace", 0.49));
        assert!(config().believes("markdown", 0.75) && !config().believes("markdown", 0.74));
    }

    #[test]
    fn other_extractions_are_refused_by_name() {
        for (from, to, field) in [
            (r#""mid_size":0"#, r#""mid_size":512"#, "mid_size"),
            ("false", "true", "use_inputs_at_offsets"),
            ("4096", "1024", "block_size"),
            (
                r#""min_file_size_for_dl":8"#,
                r#""min_file_size_for_dl":0"#,
                "min_file_size_for_dl",
            ),
            (r#"["3gp","ace","markdown"]"#, "[]", "target_labels_space"),
        ] {
            let error = Config::parse(STANDARD_V3_3.replacen(from, to, 1).as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
