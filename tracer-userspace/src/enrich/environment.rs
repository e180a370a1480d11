//! What a process says about itself to OpenTelemetry: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` of its own
//! environment, and the same as system properties of a JVM.
//!
//! In: the bytes of `/proc/PID/environ`, the arguments. Out: [`Declared`]. Nothing else of the environment is kept.

#![forbid(unsafe_code)]

/// Most resource attributes taken from one process.
const MAX_ATTRIBUTES: usize = 64;
/// Longest key or value taken, in bytes.
const MAX_TEXT_BYTES: usize = 1_024;

/// What the process declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Its `service.name`.
    pub service_name: Option<String>,
    /// Its other resource attributes, in the order written, each key once.
    pub attributes: Vec<(String, String)>,
}

impl Declared {
    /// Reads the environment (`NAME=value`, each ended by a zero byte) and, for a JVM, the arguments. A system property
    /// wins over the environment, as in the Java SDK; a service name wins over the list of attributes.
    pub fn from_process(environ: &[u8], jvm_arguments: &[&str]) -> Self {
        let mut service_name = None;
        let mut list = None;
        let mut jvm_options = Vec::new();
        for entry in environ.split(|b| *b == 0) {
            let Some((name, value)) = std::str::from_utf8(entry).ok().and_then(|entry| entry.split_once('=')) else { continue };
            match name {
                "OTEL_SERVICE_NAME" => service_name = non_empty(value),
                "OTEL_RESOURCE_ATTRIBUTES" => list = non_empty(value),
                // In the order in which the JVM lets them win.
                "JAVA_TOOL_OPTIONS" => jvm_options.push((0, value)),
                "JDK_JAVA_OPTIONS" => jvm_options.push((1, value)),
                "_JAVA_OPTIONS" => jvm_options.push((3, value)),
                _ => {}
            }
        }
        if !jvm_arguments.is_empty() {
            jvm_options.sort_by_key(|(order, _)| *order);
            let split =
                |order: bool| jvm_options.iter().filter(move |(at, _)| (*at == 3) == order).flat_map(|(_, value)| value.split_whitespace());
            let own = jvm_arguments.iter().take_while(|argument| **argument != "-jar").copied();
            for option in split(false).chain(own).chain(split(true)) {
                if let Some(value) = option.strip_prefix("-Dotel.service.name=") {
                    service_name = non_empty(value).or(service_name);
                } else if let Some(value) = option.strip_prefix("-Dotel.resource.attributes=") {
                    list = non_empty(value).or(list);
                }
            }
        }
        let mut declared = Self::default();
        for (key, value) in list.unwrap_or_default().split(',').filter_map(|pair| pair.split_once('=')) {
            let (key, Some(value)) = (key.trim(), percent_decoded(value.trim())) else { continue };
            if key.is_empty() || key.len() > MAX_TEXT_BYTES || value.is_empty() || value.len() > MAX_TEXT_BYTES {
                continue;
            }
            if key == "service.name" {
                declared.service_name = Some(value);
            } else if let Some(known) = declared.attributes.iter_mut().find(|(known, _)| known == key) {
                known.1 = value;
            } else if declared.attributes.len() < MAX_ATTRIBUTES {
                declared.attributes.push((key.to_owned(), value));
            }
        }
        if let Some(name) = service_name.filter(|name| name.len() <= MAX_TEXT_BYTES) {
            declared.service_name = Some(name.to_owned());
        }
        declared
    }
}

fn non_empty(value: &str) -> Option<&str> {
    Some(value.trim()).filter(|value| !value.is_empty())
}

/// Percent-decoding as in W3C Baggage; `None` when it does not decode to UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(declared: &Declared) -> Vec<(&str, &str)> {
        declared.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    #[test]
    fn the_service_name_variable_wins_over_the_list() {
        let declared = Declared::from_process(
            b"PATH=/bin\0OTEL_RESOURCE_ATTRIBUTES=service.name=other,service.namespace=shop, deployment.environment.name=pre%20prod ,bad,=x,k=\0OTEL_SERVICE_NAME=orders\0PASSWORD=x\0",
            &[],
        );
        assert_eq!(declared.service_name.as_deref(), Some("orders"));
        assert_eq!(pairs(&declared), [("service.namespace", "shop"), ("deployment.environment.name", "pre prod")]);
    }

    #[test]
    fn the_list_alone_may_name_the_service() {
        let declared = Declared::from_process(b"OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES=service.name=a%3Db,x=1,x=2", &[]);
        assert_eq!(declared.service_name.as_deref(), Some("a=b"));
        assert_eq!(pairs(&declared), [("x", "2")]);
    }

    #[test]
    fn a_jvm_takes_system_properties_before_its_environment() {
        let environ = b"OTEL_SERVICE_NAME=from-env\0JAVA_TOOL_OPTIONS=-Xmx1G -Dotel.service.name=from-tool-options\0";
        let named = |arguments: &[&str]| Declared::from_process(environ, arguments).service_name;
        assert_eq!(named(&[]).as_deref(), Some("from-env"));
        assert_eq!(
            named(&["java", "-jar", "x.jar", "-Dotel.service.name=an-argument-of-the-program"]).as_deref(),
            Some("from-tool-options")
        );
        assert_eq!(
            named(&["java", "-Dotel.service.name=from-property", "-Dotel.resource.attributes=a=b", "-jar", "x.jar"]).as_deref(),
            Some("from-property")
        );
        let overridden =
            Declared::from_process(b"_JAVA_OPTIONS=-Dotel.service.name=last\0", &["java", "-Dotel.service.name=first", "Main"]);
        assert_eq!(overridden.service_name.as_deref(), Some("last"));
    }

    #[test]
    fn what_is_declared_is_bounded() {
        let many = (0..1_000).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        let long = format!("OTEL_RESOURCE_ATTRIBUTES={many}\0OTEL_SERVICE_NAME={}\0", "n".repeat(5_000));
        let declared = Declared::from_process(long.as_bytes(), &[]);
        assert_eq!((declared.attributes.len(), declared.service_name), (MAX_ATTRIBUTES, None));
        assert_eq!(Declared::from_process(b"\xff\xfe=\0===\0OTEL_RESOURCE_ATTRIBUTES=a=%zz,b=%f,c=%ff", &[]), Declared::default());
    }
}
