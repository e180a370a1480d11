//! Settings from a YAML file: one section for each group of arguments, and `otel` for the variables of the OpenTelemetry specification.
//!
//! In: a file. Out: defaults of the command's arguments, so that they stand below what the environment and the command line say, and each with its
//! place. What is not known is refused with its place.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::variables;

/// The section of variables.
pub(super) const OTEL: &str = "otel";

/// The argument that names the file, which no file can set.
pub(super) const CONFIG: &str = "config";

/// Larger than any file of settings.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a file of settings is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no YAML, or not of the shape of settings.
    #[error("{}: {message}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What and where, with the lines around it.
        message: String,
    },
    /// A name or value is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// Line of the name or value, from 1.
        line: u64,
        /// Its column, from 1.
        column: u64,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// The settings of a file, all known and each of a value that its argument takes.
#[derive(Clone, Debug)]
pub struct SettingsFile {
    path: PathBuf,
    arguments: Vec<Setting>,
    variables: Vec<Setting>,
}

/// One setting of a file.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The argument's id, or the variable's name.
    pub(super) name: String,
    pub(super) values: Vec<String>,
    pub(super) line: u64,
}

impl SettingsFile {
    /// Reads a file; `command` has the arguments that it may set.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub fn read(path: &Path, command: &Command) -> Result<Self, FileError> {
        let fail = |source| FileError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(fail)?;
        Self::parse(path, &text, command)
    }

    /// Reads the text of a file; `path` is what messages call it.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub fn parse(path: &Path, text: &str, command: &Command) -> Result<Self, FileError> {
        // Words such as `on` stay words.
        let options = serde_saphyr::options! {
            strict_booleans: true,
            leading_zero_numbers_as_strings: true,
            underscored_numbers_as_strings: true,
        };
        let sections: Result<Entries<Entries<Spanned<Value>>>, _> = serde_saphyr::from_str_with_options(text, options);
        let sections = sections.map_err(|error| FileError::Shape {
            path: path.to_owned(),
            message: error.to_string().trim_start_matches("error: ").to_owned(),
        })?;
        let mut file = Self { path: path.to_owned(), arguments: Vec::new(), variables: Vec::new() };
        for (section, settings) in sections.0 {
            let known: Vec<&Arg> =
                command.get_arguments().filter(|argument| section_of(argument).is_some_and(|name| name == section.value)).collect();
            if known.is_empty() && section.value != OTEL {
                let mut sections: Vec<String> = command.get_arguments().filter_map(section_of).collect();
                sections.dedup();
                let message = format!("there is no section `{}`; there are {} and {OTEL}", section.value, sections.join(", "));
                return Err(file.wrong(&section, message));
            }
            for (name, value) in settings.0 {
                if section.value == OTEL {
                    file.add_variable(&name, &value)?;
                } else {
                    file.add_argument(&section.value, &known, &name, &value)?;
                }
            }
        }
        Ok(file)
    }

    fn add_argument(&mut self, section: &str, known: &[&Arg], name: &Spanned<String>, value: &Spanned<Value>) -> Result<(), FileError> {
        let Some(argument) = known.iter().find(|argument| argument.get_id().as_str() == name.value) else {
            let known: Vec<&str> = known.iter().map(|argument| argument.get_id().as_str()).collect();
            return Err(self.wrong(name, format!("`{section}` has no setting `{}`; it has {}", name.value, known.join(", "))));
        };
        let line = value.referenced.line();
        let values = match &value.value {
            Value::Nothing => return Ok(()),
            Value::One(one) => vec![one.clone()],
            Value::Many(_) if argument.get_value_delimiter().is_none() => {
                return Err(self.wrong(value, format!("`{}` takes one value, not a list", name.value)));
            }
            Value::Many(many) => many.clone(),
        };
        if let Err(message) = try_values(argument, &values) {
            return Err(self.wrong(value, message));
        }
        self.arguments.push(Setting { name: name.value.clone(), values, line });
        Ok(())
    }

    fn add_variable(&mut self, name: &Spanned<String>, value: &Spanned<Value>) -> Result<(), FileError> {
        if !variables::is_known(&name.value) {
            let message = format!("`{}` is no variable that the tracer obeys here; docs/configuration.md lists them", name.value);
            return Err(self.wrong(name, message));
        }
        let line = value.referenced.line();
        match &value.value {
            Value::Nothing => {}
            Value::One(one) => self.variables.push(Setting { name: name.value.clone(), values: vec![one.clone()], line }),
            Value::Many(_) => return Err(self.wrong(value, format!("`{}` takes one value, lists are written with commas", name.value))),
        }
        Ok(())
    }

    fn wrong<T>(&self, at: &Spanned<T>, message: String) -> FileError {
        FileError::Setting { path: self.path.clone(), line: at.referenced.line(), column: at.referenced.column(), message }
    }

    /// The command with what the file says as its defaults.
    #[must_use]
    pub fn as_defaults(&self, command: Command) -> Command {
        // All at once: one by one they would change their order.
        command.mut_args(|argument| {
            let setting = self.arguments.iter().find(|setting| argument.get_id() == setting.name.as_str());
            match setting {
                Some(setting) => argument.default_values(setting.values.clone()),
                None => argument,
            }
        })
    }

    /// The variables that the file sets, for those that the environment does not.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        self.variables.iter().filter_map(|setting| Some((setting.name.clone(), setting.values.first()?.clone()))).collect()
    }

    /// Where the file sets an argument or variable, as `FILE:LINE`.
    pub(super) fn place(&self, name: &str) -> Option<String> {
        let setting = self.arguments.iter().chain(&self.variables).find(|setting| setting.name == name)?;
        Some(format!("{}:{}", self.path.display(), setting.line))
    }
}

/// The section of an argument: its heading, in small letters.
pub(super) fn section_of(argument: &Arg) -> Option<String> {
    if argument.get_id() == CONFIG {
        return None;
    }
    argument.get_help_heading().map(str::to_lowercase)
}

/// Has the argument itself read the values.
fn try_values(argument: &Arg, values: &[String]) -> Result<(), String> {
    if !argument.get_action().takes_values() {
        let is_bool = values.iter().all(|value| value == "true" || value == "false");
        return if is_bool { Ok(()) } else { Err(format!("`{}` is true or false", argument.get_id())) };
    }
    let argument = argument.clone().env(clap::builder::Resettable::Reset).action(match argument.get_action() {
        ArgAction::Append => ArgAction::Append,
        _ => ArgAction::Set,
    });
    let line = format!("--{}={}", argument.get_long().unwrap_or_default(), values.join(","));
    let read = Command::new("file").no_binary_name(true).arg(argument).try_get_matches_from([line]);
    read.map(drop).map_err(|error| {
        let words = error.to_string();
        let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
        lines.join(" ").trim_start_matches("error: ").to_owned()
    })
}

/// A mapping, in its order.
struct Entries<T>(Vec<(Spanned<String>, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Seen<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings, each as `name: value`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Entries::default();
                while let Some(entry) = map.next_entry()? {
                    entries.0.push(entry);
                }
                Ok(entries)
            }

            fn visit_unit<E>(self) -> Result<Entries<T>, E> {
                Ok(Entries::default())
            }
        }
        deserializer.deserialize_any(Seen(PhantomData))
    }
}

/// A value as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Nothing,
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Nothing)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::One(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::One(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::One(value.to_string()))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Value, E> {
                // A topic `1.0` would become `1`; no setting is a fraction.
                Err(E::custom("a word that looks like a fraction has to be quoted"))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::One(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element::<Value>()? {
                    match value {
                        Value::One(value) => values.push(value),
                        Value::Nothing | Value::Many(_) => return Err(serde::de::Error::custom("a list holds values only")),
                    }
                }
                Ok(Value::Many(values))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::daemon::{RunArgs, SidesArg};

    fn command() -> Command {
        RunArgs::augment_args(Command::new("run"))
    }

    fn read(text: &str) -> Result<SettingsFile, FileError> {
        SettingsFile::parse(Path::new("settings.yaml"), text, &command())
    }

    fn args(text: &str, line: &[&str]) -> RunArgs {
        let command = read(text).unwrap().as_defaults(command());
        let matches = command.try_get_matches_from(std::iter::once(&"run").chain(line)).unwrap();
        RunArgs::from_arg_matches(&matches).unwrap()
    }

    const FILE: &str = "\
capture:
  sides: both
  ports: [9092, 9094]
  exclude_self: false
  ring_bytes: 64MiB
spans:
  keys: true
  topics:
    - orders
    - payments
limits:
  nice: -5
  duration:
otel:
  OTEL_EXPORTER_OTLP_ENDPOINT: http://collector:4318
  OTEL_BSP_SCHEDULE_DELAY: 1000
";

    #[test]
    fn a_file_stands_below_the_command_line_and_above_defaults() {
        let read = args(FILE, &[]);
        assert_eq!((read.sides, read.ports.as_slice(), read.ring_bytes), (SidesArg::Both, &[9_092, 9_094][..], 64 << 20));
        assert!(!read.exclude_self && read.keys);
        assert_eq!((read.topics, read.nice, read.duration), (vec!["orders".to_owned(), "payments".to_owned()], -5, None));
        assert_eq!(read.memory_limit, 256 << 20, "a default stays");
        let said = args(FILE, &["--sides", "broker", "--ports", "1", "--exclude-self", "true"]);
        assert_eq!((said.sides, said.ports.as_slice(), said.exclude_self), (SidesArg::Broker, &[1][..], true));
    }

    #[test]
    fn variables_are_known_by_their_own_names() {
        let file = read(FILE).unwrap();
        let wanted = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"), ("OTEL_BSP_SCHEDULE_DELAY", "1000")];
        assert_eq!(file.variables(), wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(file.place("OTEL_BSP_SCHEDULE_DELAY").as_deref(), Some("settings.yaml:16"));
        assert_eq!(file.place("ring_bytes").as_deref(), Some("settings.yaml:5"));
        assert_eq!(file.place("nothing"), None);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (text, place, words) in [
            ("capture:\n  sids: both\n", "settings.yaml:2:3: ", "has no setting `sids`; it has source, sides"),
            ("captures:\n  sides: both\n", "settings.yaml:1:1: ", "no section `captures`; there are capture, spans"),
            ("capture:\n  sides: all\n", "settings.yaml:2:10: ", "[possible values: client, broker, both]"),
            ("capture:\n  ports: [9092, 99999]\n", "settings.yaml:2:10: ", "99999"),
            ("capture:\n  ring_bytes: [1, 2]\n", "settings.yaml:2:15: ", "one value"),
            ("spans:\n  keys: maybe\n", "settings.yaml:2:9: ", "`keys` is true or false"),
            ("limits:\n  duration: 90\n", "settings.yaml:2:13: ", "needs its unit"),
            ("otel:\n  OTEL_LOG_LEVEL: debug\n", "settings.yaml:2:3: ", "no variable that the tracer obeys here"),
            ("capture:\n  config: x\n", "settings.yaml:2:3: ", "no setting `config`"),
            ("capture:\n  sides: both\n  sides: client\n", "settings.yaml: ", "line 3 column 3: duplicate mapping key"),
            ("capture: both\n", "settings.yaml: ", "expected settings, each as"),
            ("capture:\n  ports: {a: b}\n", "settings.yaml: ", "a value or a list of values"),
            ("capture:\n  ports: [[1]]\n", "settings.yaml: ", "line 2"),
            ("- capture\n", "settings.yaml: ", "expected settings, each as"),
            ("spans:\n  topics: [a, 1.0]\n", "settings.yaml: ", "line 2 column 15: a word that looks like a fraction has to be quoted"),
            ("capture: [\n", "settings.yaml: ", "line 1"),
            ("\u{0}", "settings.yaml: ", ""),
        ] {
            let error = read(text).map(drop).expect_err(text).to_string();
            assert!(error.starts_with(place) && error.contains(words), "{text:?}: {error}");
        }
        for text in ["", "# nothing\n", "capture:\n", "capture: {}\notel: {}\n"] {
            assert!(read(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = SettingsFile::read(Path::new("/nonexistent/kafka-tracer.yaml"), &command()).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/kafka-tracer.yaml cannot be read"), "{error}");
    }

    #[test]
    fn nested_beyond_reason_is_refused() {
        let deep = format!("capture: {}", "[".repeat(100_000));
        assert!(read(&deep).is_err());
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n";
        assert!(read(bomb).is_err());
    }
}
