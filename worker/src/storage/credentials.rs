//! Registry credentials from a mounted `.dockerconfigjson`.
//!
//! Decides which entry belongs to a registry. Secrets are never printed: `Debug` shows hosts only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::Error;

const FILES: [&str; 2] = [".dockerconfigjson", "config.json"];
const MAX_BYTES: u64 = 1024 * 1024;

/// User names and passwords by registry host.
#[derive(Clone, Default)]
pub struct Credentials {
    by_host: BTreeMap<String, (String, String)>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Credentials {
    /// Reads the credentials file in `folder`; none if there is no such folder or file.
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        for name in FILES {
            let path = folder.join(name);
            match std::fs::metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::disk("read", &path)(source)),
                Ok(metadata) if metadata.len() > MAX_BYTES => {
                    return Err(Error::Credentials {
                        path,
                        reason: format!("more than {MAX_BYTES} bytes"),
                    });
                }
                Ok(_) => {
                    let bytes = std::fs::read(&path).map_err(Error::disk("read", &path))?;
                    return Self::parse(&bytes).map_err(|reason| Error::Credentials { path, reason });
                }
            }
        }
        Ok(Self::default())
    }

    /// Reads the text of a `config.json`. The error never repeats what was read.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: ConfigFile = serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "not a docker config.json: {} at line {}",
                category(&error),
                error.line()
            )
        })?;
        let mut by_host = BTreeMap::new();
        for (key, entry) in config.auths {
            let pair = match (entry.username, entry.password, entry.auth) {
                (Some(user), Some(password), _) => (user, password),
                (_, _, Some(auth)) => {
                    decode(&auth).ok_or_else(|| format!("auths[{key}].auth is not base64 of user:password"))?
                }
                _ => continue,
            };
            by_host.insert(host_of(&key), pair);
        }
        Ok(Self { by_host })
    }

    /// How to authenticate at `host`; anonymous where nothing is known.
    pub fn at(&self, host: &str) -> RegistryAuth {
        match self.by_host.get(host) {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_host.keys()).finish()
    }
}

fn category(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Syntax => "syntax error",
        serde_json::error::Category::Eof => "it ends early",
        _ => "unexpected type",
    }
}

fn decode(auth: &str) -> Option<(String, String)> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// `https://host/v1/` and `host` are the same key.
fn host_of(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_an_entry_are_understood() {
        let text = br#"{"auths":{"https://a.example:5000/v1/":{"auth":"dTpwOnc="},"b.example":{"username":"x","password":"y"},"c":{}}}"#;
        let credentials = Credentials::parse(text).unwrap();
        assert_eq!(
            credentials.at("a.example:5000"),
            RegistryAuth::Basic("u".into(), "p:w".into())
        );
        assert_eq!(credentials.at("b.example"), RegistryAuth::Basic("x".into(), "y".into()));
        assert_eq!(credentials.at("c"), RegistryAuth::Anonymous);
        assert!(!format!("{credentials:?}").contains("p:w"));
    }

    #[test]
    fn errors_do_not_repeat_secrets() {
        let reason = Credentials::parse(br#"{"auths":{"a":{"auth":12345}}}"#).unwrap_err();
        assert!(!reason.contains("12345"), "{reason}");
        assert!(Credentials::parse(br#"{"auths":{"a":{"auth":"!!"}}}"#).is_err());
    }

    #[test]
    fn no_secret_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            Credentials::from_folder(folder.path()).unwrap().at("h"),
            RegistryAuth::Anonymous
        );
        std::fs::write(folder.path().join(".dockerconfigjson"), "{").unwrap();
        assert!(Credentials::from_folder(folder.path()).is_err());
    }
}
