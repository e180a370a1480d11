//! Programs that the machine must have: found on the path, else installed by the system's package manager when we may.
#![forbid(unsafe_code)]

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{step, workspace};

/// Debian's package for each program that we call.
const PACKAGES: [(&str, &str); 10] = [
    ("cc", "gcc"),
    ("g++", "g++"),
    ("java", "default-jdk-headless"),
    ("javac", "default-jdk-headless"),
    ("mvn", "maven"),
    ("go", "golang-go"),
    ("python3", "python3"),
    ("pip", "python3-pip"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("node", "nodejs"),
];

/// Makes sure that a program is there.
///
/// # Errors
/// If it is not and cannot be installed, with the command that would.
pub fn ensure(program: &str) -> Result<()> {
    if step::installed(program) {
        return Ok(());
    }
    install(package(program), &format!("`{program}`"))
}

/// Installs one of Debian's packages, for what is missing.
fn install(package: &str, missing: &str) -> Result<()> {
    let by_hand = format!("{missing} is needed and not there; on Debian: `apt-get install {package}`");
    if !step::installed("apt-get") || !rustix::process::geteuid().is_root() {
        bail!(by_hand);
    }
    let _lock = workspace::lock("apt")?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    step::step(&format!("install Debian's {package}"), &format!("{missing} is missing"), || {
        step::quiet("apt-get update", &mut apt(&["update"]))?;
        step::quiet(&format!("apt-get install {package}"), &mut apt(&["install", "--yes", "--no-install-recommends", package]))
    })
    .context(by_hand)
}

fn package(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

/// A program that cargo builds from its registry into the cache, of exactly this version.
///
/// # Errors
/// If it does not build, with the command to try by hand.
pub fn cargo_program(name: &str, version: &str, why: &str) -> Result<PathBuf> {
    let place = workspace::cache_dir()?.join(format!("{name}-{version}"));
    let program = place.join("bin").join(name);
    let works = || program.is_file() && step::output(Command::new(&program).arg("--version")).is_ok_and(|text| text.contains(version));
    if works() {
        return Ok(program);
    }
    let _lock = workspace::lock(name)?;
    if works() {
        return Ok(program);
    }
    let mut cargo = workspace::cargo();
    cargo.args(["install", name, "--locked", "--force", "--version", version, "--root"]).arg(&place);
    step::run(&format!("install {name} {version}"), why, &mut cargo).with_context(|| {
        let place = place.display();
        format!(
            "{name} could not be had. Where cargo reaches its registry: `cargo install {name} --version {version} --locked --root {place}`"
        )
    })?;
    if !works() {
        bail!("{} was installed but does not say it is version {version}; remove {} and try again", program.display(), place.display());
    }
    Ok(program)
}

/// A Go program of `tests/clients`, built into the cache once per state of its source.
///
/// # Errors
/// If Go is missing and cannot be installed, or the program does not build.
pub fn go_program(name: &str, flags: &[&str], why: &str) -> Result<PathBuf> {
    let source = workspace::root().join("tests/clients").join(name);
    let mut hasher = DefaultHasher::new();
    if !flags.is_empty() {
        flags.hash(&mut hasher);
    }
    let listed = fs::read_dir(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let listed = listed.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    let [main, modules, sums] = ["main.go", "go.mod", "go.sum"].map(|file| source.join(file));
    let mut others: Vec<PathBuf> = listed.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "go")).collect();
    others.retain(|path| *path != main);
    others.sort();
    for path in [main, modules, sums].into_iter().chain(others) {
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?.hash(&mut hasher);
    }
    let place = workspace::cache_dir()?.join(format!("go-{name}-{:016x}", hasher.finish()));
    let program = place.join(name);
    if program.is_file() {
        return Ok(program);
    }
    let _lock = workspace::lock(&format!("go-{name}"))?;
    if !program.is_file() {
        ensure("go")?;
        workspace::install_dir(&place, |half| {
            let mut go = Command::new("go");
            go.args(["build", "-trimpath"]).args(flags).arg("-o").arg(half.join(name)).arg(".").current_dir(&source);
            step::run(&format!("build the Go program {name}"), why, &mut go)
        })?;
    }
    Ok(program)
}

/// The program of `tests/clients/rust`, in the cache once per state of its source. Built among the workspace's crates: what both have of
/// one kind is built once.
///
/// # Errors
/// If it does not build.
pub fn rust_client(flags: &[&str], why: &str) -> Result<PathBuf> {
    const NAME: &str = "rust-client";
    let source = workspace::root().join("tests/clients/rust");
    let mut hasher = DefaultHasher::new();
    flags.hash(&mut hasher);
    for file in ["Cargo.toml", "Cargo.lock", "src/main.rs"] {
        let path = source.join(file);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?.hash(&mut hasher);
    }
    let place = workspace::cache_dir()?.join(format!("{NAME}-{:016x}", hasher.finish()));
    let program = place.join(NAME);
    if program.is_file() {
        return Ok(program);
    }
    let _lock = workspace::lock(NAME)?;
    if !program.is_file() {
        workspace::install_dir(&place, |half| {
            let mut cargo = rust_client_cargo("build");
            cargo.args(["--locked", "--target-dir"]).arg(workspace::target_dir()).args(flags);
            step::run("build the client over krafka", why, &mut cargo)?;
            let built = workspace::target_dir().join("debug").join(NAME);
            fs::copy(&built, half.join(NAME)).with_context(|| format!("cannot copy {}", built.display()))?;
            Ok(())
        })?;
    }
    Ok(program)
}

/// A cargo for the crate `tests/clients/rust`.
pub fn rust_client_cargo(subcommand: &str) -> Command {
    let mut cargo = workspace::cargo();
    cargo.arg(subcommand).current_dir(workspace::root().join("tests/clients/rust"));
    cargo
}

/// A short-lived client over OpenSSL.
///
/// # Errors
/// If the compiler or OpenSSL's headers are missing and cannot be installed, or it does not build.
pub fn brief_client() -> Result<PathBuf> {
    c_build(&["brief.c"], "brief", &["-O2", "-Wall", "-lssl"], "a client that lives for one encrypted connection")
}

/// Traffic over OpenSSL, for measurements.
///
/// # Errors
/// If the compiler or OpenSSL's headers are missing and cannot be installed, or it does not build.
pub fn tls_traffic() -> Result<PathBuf> {
    c_build(&["traffic.c"], "traffic", &["-O2", "-Wall", "-lssl", "-lcrypto", "-lpthread"], "both ends of an encrypted connection")
}

/// OpenSSL's `libssl.so.3` with its functions in other places than in that of the system.
///
/// # Errors
/// If the linker or OpenSSL's archive is missing and cannot be installed, or it does not build.
pub fn libssl_of_another_build() -> Result<PathBuf> {
    let flags = ["-shared", "-Wl,--whole-archive", "-l:libssl.a", "-Wl,--no-whole-archive", "-lcrypto", "-l:libcrypto.a"];
    let flags = [&flags[..], &["-Wl,-soname,libssl.so.3"]].concat();
    c_build(&["padding.s", "libssl.ld"], "libssl.so.3", &flags, "OpenSSL's library, with its functions in other places")
}

/// Makes sure that `GnuTLS` is there.
///
/// # Errors
/// If it is not and cannot be installed.
pub fn ensure_gnutls() -> Result<()> {
    ensure("python3")?;
    if step::output(Command::new("python3").args(["-c", "import ctypes; ctypes.CDLL('libgnutls.so.30')"])).is_ok() {
        return Ok(());
    }
    install("libgnutls30", "GnuTLS")
}

/// What the C compiler makes of files of `tests/clients/c` and OpenSSL, in the cache once per state of those files.
fn c_build(sources: &[&str], name: &str, flags: &[&str], why: &str) -> Result<PathBuf> {
    let sources: Vec<PathBuf> = sources.iter().map(|source| workspace::root().join("tests/clients/c").join(source)).collect();
    let mut hasher = DefaultHasher::new();
    flags.hash(&mut hasher);
    for source in &sources {
        fs::read(source).with_context(|| format!("cannot read {}", source.display()))?.hash(&mut hasher);
    }
    let place = workspace::cache_dir()?.join(format!("c-{name}-{:016x}", hasher.finish()));
    let made = place.join(name);
    if made.is_file() {
        return Ok(made);
    }
    let _lock = workspace::lock(&format!("c-{name}"))?;
    if !made.is_file() {
        ensure("cc")?;
        if !Path::new("/usr/include/openssl/ssl.h").is_file() {
            install("libssl-dev", "OpenSSL's headers and archive")?;
        }
        workspace::install_dir(&place, |half| {
            let mut compiler = Command::new("cc");
            compiler.arg("-o").arg(half.join(name)).args(&sources).args(flags);
            step::run(&format!("build {name}"), why, &mut compiler)
        })?;
    }
    Ok(made)
}

/// A folder for `PYTHONPATH` that holds one package of a fixed version with its native library.
///
/// # Errors
/// If Python or pip is missing and cannot be installed, or pip does not get the package.
pub fn python_package(name: &str, version: &str, why: &str) -> Result<PathBuf> {
    python_packages(name, version, &[], why)
}

/// As [`python_package`], with others that it uses if they are there.
///
/// # Errors
/// As those of [`python_package`].
pub fn python_packages(name: &str, version: &str, besides: &[(&str, &str)], why: &str) -> Result<PathBuf> {
    ensure("python3")?;
    // A wheel with native code belongs to one version of Python.
    let python = step::output(Command::new("python3").args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]))?;
    let besides: Vec<String> = besides.iter().map(|(name, version)| format!("{name}=={version}")).collect();
    let with = if besides.is_empty() { String::new() } else { format!("-with-{:016x}", hash(&besides)) };
    let place = workspace::cache_dir()?.join(format!("{name}-{version}-python{}{with}", python.trim()));
    if place.exists() {
        return Ok(place);
    }
    let _lock = workspace::lock(name)?;
    if !place.exists() {
        if step::output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
            ensure("pip")?;
        }
        workspace::install_dir(&place, |half: &Path| {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--only-binary", ":all:", "--target"]).arg(half);
            pip.arg(format!("{name}=={version}")).args(&besides);
            step::run(&format!("fetch {name} {version}"), why, &mut pip)
        })?;
    }
    Ok(place)
}

/// Netty's TLS for Java.
#[derive(Clone, Debug)]
pub struct Netty {
    /// The folder with its jars.
    pub jars: PathBuf,
    /// `BoringSSL`, with what Java calls it by: unpacked from one of them.
    pub library: PathBuf,
}

/// The jars that `tests/clients/java/netty/pom.xml` names.
///
/// # Errors
/// If Maven is missing and cannot be installed, or does not get them.
pub fn netty() -> Result<Netty> {
    // As netty names them.
    let machine = if cfg!(target_arch = "aarch64") { "aarch_64" } else { "x86_64" };
    let pom = workspace::root().join("tests/clients/java/netty/pom.xml");
    let wanted = fs::read(&pom).with_context(|| format!("cannot read {}", pom.display()))?;
    let place = workspace::cache_dir()?.join(format!("netty-{:016x}", hash(&wanted)));
    if !place.exists() {
        let _lock = workspace::lock("netty")?;
        if !place.exists() {
            ensure("mvn")?;
            ensure("javac")?;
            workspace::install_dir(&place, |half| {
                let mut maven = Command::new("mvn");
                maven.args(["--batch-mode", "--quiet", "dependency:copy-dependencies"]).arg("--file").arg(&pom);
                maven.arg(format!("-Dnetty.machine=linux-{machine}")).arg(format!("-DoutputDirectory={}", half.display()));
                step::run("fetch netty", "TLS of a Java client from BoringSSL, about 4 MB, by Maven", &mut maven)?;
                let jars = fs::read_dir(half)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
                let native = |jar: &&PathBuf| jar.to_string_lossy().ends_with(&format!("-linux-{machine}.jar"));
                let jar = jars.iter().find(native).with_context(|| format!("Maven brought no library for {machine}"))?;
                step::quiet("unpack netty's BoringSSL", Command::new("jar").arg("-xf").arg(jar).arg("META-INF/native").current_dir(half))
            })?;
        }
    }
    let library = place.join(format!("META-INF/native/libnetty_tcnative_linux_{machine}.so"));
    Ok(Netty { jars: place, library })
}

/// A folder for `NODE_PATH` that holds the packages of `tests/clients/NAME/package.json`.
///
/// # Errors
/// If Node.js or npm is missing and cannot be installed, or npm does not get the packages.
pub fn node_packages(name: &str, why: &str) -> Result<PathBuf> {
    ensure("node")?;
    let source = workspace::root().join("tests/clients").join(name).join("package.json");
    let wanted = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let place = workspace::cache_dir()?.join(format!("node-{name}-{:016x}", hash(&wanted)));
    if !place.exists() {
        let _lock = workspace::lock(&format!("node-{name}"))?;
        if !place.exists() {
            ensure("npm")?;
            workspace::install_dir(&place, |half: &Path| {
                fs::write(half.join("package.json"), &wanted)?;
                let mut npm = Command::new("npm");
                npm.args([
                    "install",
                    "--no-audit",
                    "--no-fund",
                    "--no-update-notifier",
                    "--ignore-scripts",
                    "--loglevel",
                    "error",
                    "--prefix",
                ]);
                step::run(&format!("fetch the packages of {name}"), why, npm.arg(half).current_dir(half))
            })?;
        }
    }
    Ok(place.join("node_modules"))
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
