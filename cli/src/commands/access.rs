//! `mobula token new`, `mobula tls new`: what a cluster that other machines can reach needs.

use crate::args::{TlsArgs, TlsCommand, TokenArgs, TokenCommand};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::say;
use mobula_net::tls::{CA_FILE, CERT_FILE, KEY_FILE};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

#[derive(Serialize)]
struct Fresh<'a> {
    token: Option<&'a str>,
    file: Option<&'a Path>,
}

/// `mobula token new`.
pub fn token(settings: &Settings, args: &TokenArgs) -> Outcome {
    let TokenCommand::New { out } = &args.what;
    let mut bytes = [0; TOKEN_BYTES];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
    let token = bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String grows");
        text
    });
    match out {
        Some(path) => {
            create(path, &format!("{token}\n"), 0o600)?;
            say!(settings.output, "wrote a cluster token to {}; give every machine a copy", path.display());
            settings.output.data(&Fresh { token: None, file: Some(path) });
        }
        None => {
            if !settings.output.is_json {
                say!(settings.output, "{token}");
            }
            settings.output.data(&Fresh { token: Some(&token), file: None });
        }
    }
    Ok(exit::OK)
}

/// `mobula tls new`.
pub fn tls(settings: &Settings, args: &TlsArgs) -> Outcome {
    let TlsCommand::New { out, names } = &args.what;
    let (ca, cert, key) = certificates(names).map_err(|e| Failure::usage(format!("no certificate: {e}")))?;
    fs::create_dir_all(out).map_err(|e| format!("cannot write {}: {e}", out.display()))?;
    for taken in [CA_FILE, CERT_FILE, KEY_FILE].map(|name| out.join(name)) {
        if taken.exists() {
            return Err(Failure::usage(format!("{} exists; choose another directory", taken.display())));
        }
    }
    create(&out.join(KEY_FILE), &key, 0o600)?;
    create(&out.join(CERT_FILE), &cert, 0o644)?;
    create(&out.join(CA_FILE), &ca, 0o644)?;
    say!(settings.output, "wrote {CA_FILE}, {CERT_FILE} and {KEY_FILE} to {}", out.display());
    say!(settings.output, "  valid for {}; give every machine a copy, and --tls-dir", names.join(", "));
    Ok(exit::OK)
}

/// An authority and one certificate under it, as PEM. The authority's key is forgotten: nobody can
/// make another certificate that this cluster believes.
fn certificates(names: &[String]) -> Result<(String, String, String), rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.distinguished_name.push(DnType::CommonName, "Mobula cluster");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "Mobula member");
    let cert = params.signed_by(&key, &authority)?;
    Ok((authority.pem(), cert.pem(), key.serialize_pem()))
}

/// Writes a file that is not there yet.
fn create(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}
