//! The jars of a Kafka version, as Maven serves them, and Java programs compiled against them.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{step, tools, workspace};

/// Kafka of one version: broker, tools, Java client.
#[derive(Clone, Debug)]
pub struct Distribution {
    version: String,
    dir: PathBuf,
}

impl Distribution {
    /// The newest Kafka that the project is tested with.
    pub const NEWEST: &str = "4.4.0";
    /// The last line of Kafka that old clients can talk to, with the old group protocol and topic names in every request.
    pub const OLD: &str = "3.9.2";

    /// Fetches the jars if they are missing.
    ///
    /// # Errors
    /// If Java or Maven cannot be installed, or Maven does not get the jars.
    pub fn ensure(version: &str) -> Result<Self> {
        tools::ensure("java")?;
        let dir = workspace::cache_dir()?.join(format!("kafka-{version}"));
        if !dir.exists() {
            let _lock = workspace::lock("kafka")?;
            if !dir.exists() {
                tools::ensure("mvn")?;
                workspace::install_dir(&dir, |half| {
                    let mut maven = Command::new("mvn");
                    maven.args(["--batch-mode", "--quiet", "dependency:copy-dependencies"]).arg("--file").arg(pom());
                    maven.arg(format!("-Dkafka.version={version}")).arg(format!("-DoutputDirectory={}", half.display()));
                    step::run(&format!("fetch Kafka {version}"), "a real broker and the Java client, about 55 MB, by Maven", &mut maven)
                })?;
            }
        }
        Ok(Self { version: version.to_owned(), dir })
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// `java` with Kafka's classes on its class path; `heap` as the JVM spells it (`256m`).
    pub fn java(&self, heap: &str) -> Command {
        self.java_with(heap, &[""; 0])
    }

    /// As [`Self::java`], with more places on the class path: folders with classes, and with `/*` behind it one with jars.
    pub fn java_with(&self, heap: &str, places: &[impl AsRef<Path>]) -> Command {
        let mut class_path = format!("{}/*", self.dir.display());
        for place in places {
            class_path.push(':');
            class_path.push_str(&place.as_ref().to_string_lossy());
        }
        let mut command = Command::new("java");
        command.args([&format!("-Xmx{heap}"), "-Xshare:auto", "-XX:+UseSerialGC", "-Djava.awt.headless=true", "-cp"]).arg(class_path);
        command
    }

    /// The folder with the compiled test client, compiled if its source is newer.
    ///
    /// # Errors
    /// If there is no Java compiler or it finds fault.
    pub fn client_classes(&self) -> Result<PathBuf> {
        self.classes("Client", &[])
    }

    /// The folder with a compiled class of `tests/clients/java`, compiled if its source is newer; `jars` are folders with others that it uses.
    ///
    /// # Errors
    /// If there is no Java compiler or it finds fault.
    pub fn classes(&self, class: &str, jars: &[&Path]) -> Result<PathBuf> {
        let source = workspace::root().join("tests/clients/java").join(class).with_extension("java");
        let (folder, name) = class.rsplit_once('/').unwrap_or(("", class));
        let classes = workspace::target_dir().join("xtask/java").join(&self.version).join(folder);
        let compiled = classes.join(name).with_extension("class");
        let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
        if modified(&compiled).is_none() || modified(&compiled) < modified(&source) {
            tools::ensure("javac")?;
            let _lock = workspace::lock("java-client")?;
            let mut javac = Command::new("javac");
            let class_path: Vec<String> = [&*self.dir].iter().chain(jars).map(|dir| format!("{}/*", dir.display())).collect();
            javac.args(["--release", "17", "-cp", &class_path.join(":"), "-d"]).arg(&classes).arg(&source);
            step::quiet(&format!("compile {name}.java"), &mut javac)?;
        }
        Ok(classes)
    }
}

fn pom() -> PathBuf {
    workspace::root().join("tests/clients/java/pom.xml")
}
