//! What `floodway dev` is started with: where its servers are, its keys and its ports.

use super::DemoError;
use crate::file_error::FileError;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Settings without which `floodway dev` cannot start; written by `scripts/stack up`.
const REQUIRED: [&str; 2] = ["FLOODWAY_KAFKA_BROKERS", "FLOODWAY_DATABASE_URL"];
const SEALING_KEY: &str = "FLOODWAY_SEALING_KEY";
/// Networks that webhooks may go to besides public ones: the demo's receiver is on this machine.
const LOOPBACK: &str = "[\"127.0.0.0/8\"]";
/// File under the stack's directory that keeps the sealing key.
const KEYS_FILE: &str = "dev-keys";

/// Where Floodway listens: the demo's three listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listeners {
    /// `POST /v1/events`.
    pub ingest: SocketAddr,
    /// The REST API.
    pub control_plane: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
}

impl Default for Listeners {
    fn default() -> Self {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { ingest: at(8080), control_plane: at(8081), admin: at(8082) }
    }
}

impl Listeners {
    /// These addresses, with a free port instead of each that is taken.
    pub fn or_free(self) -> std::io::Result<Self> {
        Ok(Self {
            ingest: free_or_other(self.ingest)?,
            control_plane: free_or_other(self.control_plane)?,
            admin: free_or_other(self.admin)?,
        })
    }
}

/// Somebody else may still take the port before Floodway does; then Floodway says so and ends.
fn free_or_other(wanted: SocketAddr) -> std::io::Result<SocketAddr> {
    if TcpListener::bind(wanted).is_ok() {
        return Ok(wanted);
    }
    TcpListener::bind((wanted.ip(), 0))?.local_addr()
}

/// The variables for `floodway dev`, on top of those it inherits. `inherited` are the variables of this process: they
/// win over the file, as they do in a shell that has sourced it only in its profile.
pub fn variables(
    inherited: impl Fn(&str) -> Option<String>,
    env_file: Option<&Path>,
    stack_dir: &Path,
    listeners: &Listeners,
    admin_key: &str,
) -> Result<BTreeMap<String, String>, DemoError> {
    let mut variables = match env_file {
        Some(path) => read_env_file(path)?,
        None => BTreeMap::new(),
    };
    variables.retain(|name, _| name.starts_with("FLOODWAY_") && inherited(name).is_none());
    if let Some(missing) =
        REQUIRED.into_iter().find(|name| inherited(name).or(variables.get(*name).cloned()).is_none())
    {
        return Err(DemoError::MissingSetting(missing));
    }
    if inherited(SEALING_KEY).is_none() {
        variables.insert(SEALING_KEY.to_owned(), stable_sealing_key(stack_dir)?);
    }
    let own = [
        ("FLOODWAY_CONTROL_PLANE__ADMIN_KEY", admin_key.to_owned()),
        ("FLOODWAY_INGEST__LISTEN", listeners.ingest.to_string()),
        ("FLOODWAY_CONTROL_PLANE__LISTEN", listeners.control_plane.to_string()),
        ("FLOODWAY_ADMIN__LISTEN", listeners.admin.to_string()),
        ("FLOODWAY_DISPATCHER__ALLOWED_NETWORKS", LOOPBACK.to_owned()),
        ("FLOODWAY_CONTROL_PLANE__ALLOWED_NETWORKS", LOOPBACK.to_owned()),
    ];
    variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
    Ok(variables)
}

/// A fresh key for the control plane. Its prefix keeps it from ever looking like a number to a settings parser.
pub fn random_admin_key() -> String {
    format!("demo_admin_{:032x}", rand::random::<u128>())
}

/// The stack's sealing key, made at the first start: what one run sealed into the stack's database, the next can open.
fn stable_sealing_key(stack_dir: &Path) -> Result<String, DemoError> {
    let path = stack_dir.join(KEYS_FILE);
    let unusable = |reason: std::io::Error| -> DemoError { FileError::at(&path, reason).into() };
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let key = format!("dev:{}", STANDARD.encode(rand::random::<[u8; 32]>()));
            writeln!(file, "{SEALING_KEY}={key}").map_err(unusable)?;
            Ok(key)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let kept = read_env_file(&path)?.remove(SEALING_KEY);
            kept.ok_or_else(|| unusable(std::io::Error::other("it holds no FLOODWAY_SEALING_KEY; delete it")))
        }
        Err(error) => Err(unusable(error)),
    }
}

/// Reads lines of `export NAME=value`, as a shell would: quotes and backslashes, nothing else of its language.
pub fn read_env_file(path: &Path) -> Result<BTreeMap<String, String>, DemoError> {
    let text = fs::read_to_string(path).map_err(|reason| FileError::at(path, reason))?;
    Ok(text.lines().filter_map(assignment).collect())
}

fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    Some((name.trim().to_owned(), unquote(value.trim())))
}

fn unquote(text: &str) -> String {
    let mut value = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            ('\'' | '"', None) => quote = Some(char),
            (_, Some(open)) if char == open => quote = None,
            ('\\', None | Some('"')) => value.extend(chars.next()),
            _ => value.push(char),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn directory() -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("floodway-demo-{:x}", rand::random::<u64>()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn env_files_are_read_as_a_shell_reads_them() {
        for (line, expected) in [
            ("export A=b", Some(("A", "b"))),
            ("A='x y'\"z\"", Some(("A", "x yz"))),
            (r"export URL=postgres://u:p\&q@h/d", Some(("URL", "postgres://u:p&q@h/d"))),
            (r"A='\n'", Some(("A", r"\n"))),
            ("# A=b", None),
            ("", None),
        ] {
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(assignment(line), expected, "{line}");
        }
    }

    #[test]
    fn the_sealing_key_is_private_and_stays_the_same_for_a_stack() {
        let directory = directory();
        let first = stable_sealing_key(&directory).unwrap();
        assert_eq!(STANDARD.decode(first.strip_prefix("dev:").unwrap()).unwrap().len(), 32);
        assert_eq!(stable_sealing_key(&directory).unwrap(), first);
        assert_eq!(fs::metadata(directory.join(KEYS_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn variables_of_the_process_win_over_the_file_and_missing_servers_are_named() {
        let directory = directory();
        let file = directory.join("env");
        fs::write(&file, "export FLOODWAY_KAFKA_BROKERS=file:1\nexport STACK_ENV=/x\n").unwrap();
        let read = |inherited: &[(&str, &str)]| {
            let find = |name: &str| inherited.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            variables(find, Some(&file), &directory, &Listeners::default(), "key")
        };
        assert!(matches!(read(&[]), Err(DemoError::MissingSetting("FLOODWAY_DATABASE_URL"))));
        let url = ("FLOODWAY_DATABASE_URL", "postgres://x");
        let from_file = read(&[url]).unwrap();
        assert_eq!(from_file["FLOODWAY_KAFKA_BROKERS"], "file:1");
        assert_eq!(from_file["FLOODWAY_ADMIN__LISTEN"], "127.0.0.1:8082");
        assert!(!from_file.contains_key("STACK_ENV") && !from_file.contains_key(url.0));
        let set = read(&[url, ("FLOODWAY_KAFKA_BROKERS", "set:1"), (SEALING_KEY, "k:v")]).unwrap();
        assert!(!set.contains_key("FLOODWAY_KAFKA_BROKERS") && !set.contains_key(SEALING_KEY));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_taken_port_is_replaced_by_a_free_one() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let wanted = taken.local_addr().unwrap();
        let found = free_or_other(wanted).unwrap();
        assert_ne!(found.port(), wanted.port());
        drop(taken);
    }
}
