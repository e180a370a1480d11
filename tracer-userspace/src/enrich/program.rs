//! What a process calls itself: its program's own name and its runtime, from its executable and its arguments.
//!
//! In: the executable's path and the arguments. Out: [`Program`]. Arguments are looked at and dropped, never exported:
//! they may hold passwords.

#![forbid(unsafe_code)]

/// A program's name and runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Main class or jar of a JVM, script or module of Python, Node.js, Ruby and .NET, else the executable's name.
    pub name: String,
    /// `process.runtime.name`, for the runtimes that are known from their executable.
    pub runtime: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Runtime {
    Java,
    Python,
    PyPy,
    Node,
    DotNet,
    Ruby,
    Native,
}

impl Runtime {
    fn of(executable: &str) -> Self {
        let versionless = executable.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        match versionless {
            "java" => Self::Java,
            "python" => Self::Python,
            "pypy" => Self::PyPy,
            "node" | "nodejs" => Self::Node,
            "dotnet" => Self::DotNet,
            "ruby" => Self::Ruby,
            _ => Self::Native,
        }
    }

    const fn name(self) -> Option<&'static str> {
        match self {
            Self::Java => Some("java"),
            Self::Python => Some("cpython"),
            Self::PyPy => Some("pypy"),
            Self::Node => Some("nodejs"),
            Self::DotNet => Some(".NET"),
            Self::Ruby => Some("ruby"),
            Self::Native => None,
        }
    }
}

impl Program {
    /// The program that runs `executable` (its file name) with `arguments` (the first is its own name). `None` when
    /// neither tells anything.
    pub fn from_command(executable: Option<&str>, arguments: &[&str]) -> Option<Self> {
        let own = arguments.first().map(|first| file_name(first));
        let executable = executable.or(own).filter(|name| !name.is_empty())?;
        let runtime = Runtime::of(executable);
        let rest = arguments.get(1..).unwrap_or_default();
        let name = match runtime {
            Runtime::Java => java(rest),
            Runtime::Python | Runtime::PyPy => python(rest),
            Runtime::Node => {
                first_operand(rest, NODE_WITH_VALUE, NODE_INLINE).map(|script| without_extension(script, &[".js", ".mjs", ".cjs", ".ts"]))
            }
            Runtime::DotNet => first_operand(rest, DOTNET_WITH_VALUE, &[]).map(|dll| without_extension(dll, &[".dll"])),
            Runtime::Ruby => first_operand(rest, RUBY_WITH_VALUE, &["-e"]).map(|script| without_extension(script, &[".rb"])),
            Runtime::Native => None,
        };
        let name = name.filter(|name| !name.is_empty()).unwrap_or(executable);
        Some(Self { name: name.to_owned(), runtime: runtime.name() })
    }
}

/// True for a Java virtual machine, which reads settings from its arguments too.
pub(crate) fn is_jvm(executable: Option<&str>, arguments: &[&str]) -> bool {
    executable.or_else(|| arguments.first().map(|first| file_name(first))).is_some_and(|name| Runtime::of(name) == Runtime::Java)
}

/// The last part of a path.
pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Options of `java` that take the next argument as their value (`java --help`, JDK 21).
const JAVA_WITH_VALUE: &[&str] = &[
    "-cp",
    "-classpath",
    "--class-path",
    "-p",
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--enable-native-access",
    "--add-reads",
    "--add-exports",
    "--add-opens",
    "--limit-modules",
    "--patch-module",
    "--source",
    "-d",
    "--describe-module",
];
const NODE_WITH_VALUE: &[&str] = &[
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--env-file",
    "--title",
    "--icu-data-dir",
    "--openssl-config",
];
const NODE_INLINE: &[&str] = &["-e", "--eval", "-p", "--print"];
const DOTNET_WITH_VALUE: &[&str] =
    &["--additionalprobingpath", "--depsfile", "--runtimeconfig", "--fx-version", "--roll-forward", "--additional-deps"];
const RUBY_WITH_VALUE: &[&str] = &["-r", "-I", "-C", "-E"];

fn java<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "-jar" => return rest.next().map(|jar| without_extension(jar, &[".jar", ".war"])),
            "-m" | "--module" => return rest.next().map(|module| module.rsplit('/').next().unwrap_or(module)),
            option if JAVA_WITH_VALUE.contains(&option) => drop(rest.next()),
            option if option.starts_with("--module=") => return option.rsplit(['=', '/']).next(),
            option if option.starts_with(['-', '@']) => {}
            // `java com/example/Main` and `java Main.java` are both allowed.
            class => return Some(class.strip_suffix(".java").map_or(class, file_name)),
        }
    }
    None
}

fn python<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "-c" | "-" => return None,
            "-W" | "-X" | "--check-hash-based-pycs" => drop(rest.next()),
            // `-m` may end a group of flags: `python -um worker`.
            group if group.starts_with('-') && !group.starts_with("--") && group.ends_with('m') => return rest.next().copied(),
            option if option.starts_with('-') => {}
            script => return Some(without_extension(script, &[".py", ".pyc", ".pyz"])),
        }
    }
    None
}

/// The first argument that is neither an option nor an option's value; `None` when the program is inline.
fn first_operand<'a>(arguments: &[&'a str], with_value: &[&str], inline: &[&str]) -> Option<&'a str> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--" => return rest.next().copied(),
            option if inline.contains(&option) => return None,
            option if with_value.contains(&option) => drop(rest.next()),
            option if option.starts_with('-') => {}
            operand => return Some(operand),
        }
    }
    None
}

fn without_extension<'a>(path: &'a str, extensions: &[&str]) -> &'a str {
    let name = file_name(path);
    extensions.iter().find_map(|extension| name.strip_suffix(extension)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_by_what_they_run() {
        for (command, executable, name, runtime) in [
            (
                "java -Xmx1G -cp lib/*:. -Dk=v org.apache.kafka.tools.ProducerPerformance --topic t",
                "java",
                "org.apache.kafka.tools.ProducerPerformance",
                Some("java"),
            ),
            (
                "/usr/lib/jvm/bin/java --add-opens java.base/java.lang=ALL-UNNAMED -jar /app/orders-1.4.jar --server",
                "java",
                "orders-1.4",
                Some("java"),
            ),
            ("java -p mods -m shop.orders/shop.orders.Main", "java", "shop.orders.Main", Some("java")),
            ("java --module=shop.orders/shop.orders.Main", "java", "shop.orders.Main", Some("java")),
            ("java @arguments Main.java", "java", "Main", Some("java")),
            ("java -version", "java", "java", Some("java")),
            ("python3 -u /srv/worker.py --group g", "python3.12", "worker", Some("cpython")),
            ("python -W ignore -m billing.consumer -v", "python3.11", "billing.consumer", Some("cpython")),
            ("python -um billing", "python3", "billing", Some("cpython")),
            ("python3 -c print(1)", "python3", "python3", Some("cpython")),
            ("/venv/bin/python /venv/bin/celery -A shop worker", "python3.12", "celery", Some("cpython")),
            ("pypy3 feed.py", "pypy3", "feed", Some("pypy")),
            ("node --max-old-space-size=512 -r ./tracing.js dist/checkout.mjs", "node", "checkout", Some("nodejs")),
            ("node -e 1", "node", "node", Some("nodejs")),
            ("dotnet /app/Shop.Orders.dll", "dotnet", "Shop.Orders", Some(".NET")),
            ("ruby -r bundler/setup bin/karafka server", "ruby", "karafka", Some("ruby")),
            ("ruby3.1 -I lib feed.rb", "ruby3.1", "feed", Some("ruby")),
            ("/usr/bin/kcat -b localhost:9092 -t orders", "kcat", "kcat", None),
            ("javac Main.java", "javac", "javac", None),
        ] {
            let arguments: Vec<&str> = command.split(' ').collect();
            let program = Program::from_command(Some(executable), &arguments).unwrap();
            assert_eq!((program.name.as_str(), program.runtime), (name, runtime), "{command}");
        }
    }

    #[test]
    fn without_an_executable_the_first_argument_speaks() {
        let program = Program::from_command(None, &["/opt/bin/feed", "-v"]).unwrap();
        assert_eq!(program, Program { name: "feed".to_owned(), runtime: None });
        assert_eq!(Program::from_command(None, &[]), None);
        assert_eq!(Program::from_command(Some("feed"), &[]).unwrap().name, "feed");
    }
}
