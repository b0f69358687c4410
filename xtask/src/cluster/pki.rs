//! The certificates of one local cluster: an authority made for it alone, and what it signs. Kept in its folder, and as
//! short-lived as the cluster. Decides who may be proven to be whom; never what they may do.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate authority and the folder with all that it signed.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    folder: PathBuf,
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
}

/// The files that an identity was written to.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority, its certificate in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "assayer-local-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?.pem();
        write(&folder.join("ca.crt"), &certificate, 0o644)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
            folder: folder.to_owned(),
        })
    }

    /// The authority's own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The file with the authority's own certificate.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Proves to the API server that its holder is `user` in `groups`.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        if groups.len() > 1 {
            // The certificate library keeps one organization, and silently the last.
            bail!(
                "a certificate holds one group, not {}: impersonate {user} where several are needed",
                groups.join(", ")
            );
        }
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// Proves to clients that its holder serves `names` (DNS names or addresses); written to files named after `name`.
    pub fn server(&self, name: &str, names: &[String]) -> Result<Files> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.write(name, &self.sign(params)?)
    }

    /// Writes an identity to files named after `name`.
    pub fn write(&self, name: &str, identity: &Identity) -> Result<Files> {
        let certificate = self.folder.join(format!("{name}.crt"));
        let key = self.folder.join(format!("{name}.key"));
        write(&certificate, &identity.certificate, 0o644)?;
        write(&key, &identity.key, 0o600)?;
        Ok(Files { certificate, key })
    }

    /// A key pair for service-account tokens: the public half stands where a certificate would.
    pub fn token_keys(&self) -> Result<Files> {
        let key = KeyPair::generate()?;
        let identity = Identity {
            certificate: key.public_key_pem(),
            key: key.serialize_pem(),
        };
        self.write("service-accounts", &identity)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
