//! Where values come from, and the search through those places.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::dotenv;
use super::fault::{Fault, nearest, quoted};
use super::variable::{Variable, variables};

/// Longest secret, key, certificate or `.env` file that is read, in bytes. The largest honest one, a bundle of all
/// authorities that the web trusts, is about 256 KiB.
pub(super) const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What some editors begin a file in UTF-8 with.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The variable by which systemd tells a service where its credentials lie.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Where a value was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: the declared default holds.
    Default,
    /// The process environment.
    Environment,
    /// This line of `.env`, counted from 1.
    DotEnv {
        /// The line.
        line: usize,
    },
    /// The file that `NAME_FILE` names.
    File(PathBuf),
    /// A systemd credential.
    Credential(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => write!(f, "default"),
            Source::Environment => write!(f, "environment"),
            Source::DotEnv { line } => write!(f, ".env line {line}"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Credential(path) => write!(f, "credential {}", path.display()),
        }
    }
}

/// A value, never empty, and its source. No `Debug`: it may be a secret.
pub(super) struct Found {
    pub value: String,
    pub source: Source,
}

/// What all the places together say.
#[derive(Default)]
pub(super) struct Resolved {
    pub found: BTreeMap<&'static str, Found>,
    /// Variables that are set, but to something that can't be read; a fault has been noted for each.
    pub broken: BTreeSet<&'static str>,
    pub faults: Vec<Fault>,
}

/// Looks every variable up in the process environment, the systemd credentials and the text of a `.env` file.
pub(super) fn resolve(
    environment: &BTreeMap<String, OsString>,
    dotenv_text: Option<&str>,
) -> Resolved {
    let mut resolved = Resolved::default();
    let process = process_layer(environment, &mut resolved);
    let dotenv = dotenv_layer(dotenv_text.unwrap_or_default(), &mut resolved.faults);
    let credentials = environment.get(CREDENTIALS_DIRECTORY).map(Path::new);
    for variable in variables() {
        let lookup = Lookup {
            variable,
            process: &process,
            credentials,
            dotenv: &dotenv,
        };
        let found = lookup.find(&mut resolved.faults);
        match found.and_then(|found| lookup.one_line(found)) {
            Ok(Some(found)) => {
                resolved.found.insert(variable.name, found);
            }
            Ok(None) => {}
            Err(fault) => {
                resolved.faults.push(fault);
                resolved.broken.insert(variable.name);
            }
        }
    }
    resolved
}

type Layer = BTreeMap<String, Found>;

/// Our own names only: what else lives in the process environment is none of our business.
fn process_layer(environment: &BTreeMap<String, OsString>, resolved: &mut Resolved) -> Layer {
    let mut layer = Layer::new();
    for variable in variables() {
        for name in variable.accepted_names() {
            let Some(value) = environment.get(&name) else {
                continue;
            };
            if let Some(value) = value.to_str() {
                let found = Found {
                    value: value.to_owned(),
                    source: Source::Environment,
                };
                layer.insert(name, found);
            } else {
                resolved
                    .faults
                    .push(Fault::new(name, "is not valid UTF-8", "write it in UTF-8"));
                resolved.broken.insert(variable.name);
            }
        }
    }
    layer
}

/// Everything in `.env` must be ours, or a misspelt name would silently do nothing.
fn dotenv_layer(text: &str, faults: &mut Vec<Fault>) -> Layer {
    let known: Vec<String> = variables()
        .iter()
        .flat_map(Variable::accepted_names)
        .collect();
    let (entries, bad_lines) = dotenv::parse(text);
    faults.extend(bad_lines);
    let mut layer = Layer::new();
    for entry in entries {
        let source = Source::DotEnv { line: entry.line };
        if known.contains(&entry.name) {
            layer.insert(
                entry.name,
                Found {
                    value: entry.value,
                    source,
                },
            );
        } else {
            faults.push(unknown_name(&entry.name, &known).found_in(&source));
        }
    }
    layer
}

fn unknown_name(name: &str, known: &[String]) -> Fault {
    let remedy = match nearest(name, known.iter().map(String::as_str)) {
        Some(candidate) => format!("did you mean {candidate}?"),
        None => "remove it; .env.example lists the names there are".to_owned(),
    };
    Fault::new(name, "is not a name Holdfast knows", remedy)
}

/// The search for one variable.
struct Lookup<'a> {
    variable: &'a Variable,
    process: &'a Layer,
    credentials: Option<&'a Path>,
    dotenv: &'a Layer,
}

impl Lookup<'_> {
    /// `Err` when a place has a value that can't be read.
    fn find(&self, faults: &mut Vec<Fault>) -> Result<Option<Found>, Fault> {
        if let Some(found) = self.find_in(self.process, faults)? {
            return Ok(Some(found));
        }
        if let Some(found) = self.find_credential()? {
            return Ok(Some(found));
        }
        let hidden = self
            .variable
            .accepted_names()
            .any(|name| self.process.contains_key(&name));
        if hidden {
            Ok(None)
        } else {
            self.find_in(self.dotenv, faults)
        }
    }

    fn find_in(&self, layer: &Layer, faults: &mut Vec<Fault>) -> Result<Option<Found>, Fault> {
        let name = self.variable.name;
        let named = self.trimmed(layer.get(name));
        let aliased = self.trimmed(self.variable.alias.and_then(|alias| layer.get(alias)));
        let file = self
            .variable
            .is_secret()
            .then(|| layer.get(&self.variable.file_name()));
        let file = file
            .flatten()
            .filter(|found| !found.value.trim().is_empty());
        if let (Some(one), Some(other)) = (&named, &aliased)
            && one.value != other.value
        {
            let alias = self.variable.alias.unwrap_or_default();
            faults.push(Fault::new(
                name,
                format!("differs from its alias {alias}"),
                "set one of them",
            ));
        }
        if let (Some(_), Some(file)) = (&named, file) {
            let both = format!("set together with {}", self.variable.file_name());
            faults.push(Fault::new(name, both, "set one of them").found_in(&file.source));
        }
        match (named.or(aliased), file) {
            (Some(found), _) => Ok(Some(found)),
            (None, Some(file)) => self.read_secret_file(file).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The value without surrounding white space, which only a secret may mean; `None` if nothing is left.
    fn trimmed(&self, found: Option<&Found>) -> Option<Found> {
        let found = found?;
        let value = if self.variable.is_secret() {
            &found.value
        } else {
            found.value.trim()
        };
        let source = found.source.clone();
        (!value.is_empty()).then(|| Found {
            value: value.to_owned(),
            source,
        })
    }

    fn read_secret_file(&self, named_by: &Found) -> Result<Found, Fault> {
        let path = PathBuf::from(named_by.value.trim());
        let value = read_secret(&path).map_err(|problem| {
            Fault::new(
                self.variable.file_name(),
                format!("{} {problem}", quoted(&named_by.value)),
                "name a readable file that holds only the secret",
            )
            .found_in(&named_by.source)
        })?;
        Ok(Found {
            value,
            source: Source::File(path),
        })
    }

    /// Refuses a secret with something in it that an editor or a copy has put there: as a part of the secret it would
    /// only show as a login that is refused.
    fn one_line(&self, found: Option<Found>) -> Result<Option<Found>, Fault> {
        let Some(Found { value, source }) = found.as_ref().filter(|_| self.variable.is_secret())
        else {
            return Ok(found);
        };
        let stray = if value.starts_with(BYTE_ORDER_MARK) {
            "begins with a byte order mark"
        } else if value.contains(['\n', '\r']) {
            "holds a line break"
        } else if value.contains('\0') {
            "holds a NUL"
        } else {
            return Ok(found);
        };
        let problem = format!("must be one line, but {stray}");
        let remedy = "give the secret alone, as plain UTF-8";
        Err(Fault::new(self.variable.name, problem, remedy).found_in(source))
    }

    fn find_credential(&self) -> Result<Option<Found>, Fault> {
        let Some(directory) = self.credentials.filter(|_| self.variable.is_secret()) else {
            return Ok(None);
        };
        let names = [
            self.variable.name.to_ascii_lowercase(),
            self.variable.name.to_owned(),
        ];
        let Some(path) = names
            .iter()
            .map(|name| directory.join(name))
            .find(|path| path.exists())
        else {
            return Ok(None);
        };
        let value = read_secret(&path).map_err(|problem| {
            Fault::new(
                self.variable.name,
                format!("the credential {} {problem}", path.display()),
                "check LoadCredential= in the unit",
            )
        })?;
        Ok(Some(Found {
            value,
            source: Source::Credential(path),
        }))
    }
}

/// A file's text without its last line break. The error says what is wrong, to follow the file's name.
fn read_secret(path: &Path) -> Result<String, String> {
    let bytes = read_bounded(path).map_err(|error| format!("can't be read ({error})"))?;
    let text = String::from_utf8(bytes).map_err(|_| "is not valid UTF-8".to_owned())?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err("is empty".to_owned());
    }
    Ok(line.to_owned())
}

/// A whole file of at most [`MAX_FILE_BYTES`].
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}
