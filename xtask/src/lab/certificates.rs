//! An authority of the lab's own, and what it signed for the broker and for clients.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Certificates and keys in PEM files.
#[derive(Clone, Debug)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`.
    ///
    /// # Errors
    /// If they cannot be made or written.
    pub fn make(dir: &Path) -> Result<Self> {
        let mut authority = named("the lab's authority", Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_key = KeyPair::generate()?;
        let authority_certificate = authority.self_signed(&authority_key)?;
        let authority = Issuer::new(authority, authority_key);
        let made = Self { dir: dir.to_owned() };
        write(&made.authority(), &authority_certificate.pem())?;
        for (name, places) in [("broker", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]), ("client", vec!["client".to_owned()])] {
            let key = KeyPair::generate()?;
            let certificate = named(name, places)?.signed_by(&key, &authority)?;
            write(&dir.join(format!("{name}.pem")), &certificate.pem())?;
            write(&dir.join(format!("{name}.key")), &key.serialize_pem())?;
            // The broker wants both in one file.
            write(&dir.join(format!("{name}.both.pem")), &(key.serialize_pem() + &certificate.pem()))?;
        }
        Ok(made)
    }

    /// Whom to trust.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("authority.pem")
    }

    /// The client's certificate.
    pub fn client(&self) -> PathBuf {
        self.dir.join("client.pem")
    }

    /// The client's key.
    pub fn client_key(&self) -> PathBuf {
        self.dir.join("client.key")
    }

    /// Both in one file.
    pub fn client_store(&self) -> PathBuf {
        self.dir.join("client.both.pem")
    }

    /// The broker's key and certificate.
    pub fn broker(&self) -> PathBuf {
        self.dir.join("broker.both.pem")
    }
}

/// Names that differ: a certificate whose subject is its issuer's is taken for one that signed itself.
fn named(name: &str, places: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(places)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
