//! What `/proc` says of a process, which the process has a hand in: environment, arguments, cgroup.

use tracer_userspace::enrich::{Container, Declared, Program};

use crate::seeds::Recorded;

pub(super) fn run(data: &[u8]) {
    let Some((&split, rest)) = data.split_first() else { return };
    let (environ, command) = rest.split_at(rest.len() * usize::from(split) / 255);
    let arguments: Vec<&str> = command.split(|byte| *byte == 0).map_while(|argument| std::str::from_utf8(argument).ok()).collect();
    for jvm_arguments in [&[][..], &arguments] {
        let declared = Declared::from_process(environ, jvm_arguments);
        assert!(declared.service_name.as_ref().is_none_or(|name| !name.is_empty() && name.len() <= 1_024));
        assert!(declared.attributes.len() <= 64);
        for (number, (key, value)) in declared.attributes.iter().enumerate() {
            assert!(key.len() <= 1_024 && value.len() <= 1_024);
            assert!(declared.attributes[..number].iter().all(|(other, _)| other != key), "each key once");
        }
    }
    for executable in [None, arguments.first().copied()] {
        if let Some(program) = Program::from_command(executable, &arguments) {
            assert!(!program.name.is_empty());
        }
    }
    let container = Container::from_cgroup(&String::from_utf8_lossy(rest));
    assert!(container.id.is_none_or(|id| id.len() <= 64) && container.pod_uid.is_none_or(|uid| uid.len() >= 32));
}

pub(super) fn seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let id = "3d1c2b4a5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef01";
    let texts = [
        "OTEL_SERVICE_NAME=shop\0OTEL_RESOURCE_ATTRIBUTES=a=b,service.version=1%2C2,a=c\0PATH=/bin\0".to_owned(),
        "JAVA_TOOL_OPTIONS=-Dotel.service.name=x -Dotel.resource.attributes=k=v\0\0java\0-cp\0a.jar\0org.shop.Main\0".to_owned(),
        "\0java\0-Dotel.service.name=y\0-jar\0/opt/shop-1.2.jar\0".to_owned(),
        "\0python3\0-u\0-m\0shop.main\0--port\08080\0".to_owned(),
        "\0node\0--require\0./tracing.js\0dist/server.mjs\0".to_owned(),
        format!("0::/kubepods.slice/kubepods-pod0b7a9c1e_52d4_4c0e_9b7e_6f1d2c3b4a59.slice/cri-containerd-{id}.scope"),
        format!("12:pids:/docker/{id}\n0::/system.slice/containerd.service"),
    ];
    let seed = |(text, split): (&String, u8)| [&[split][..], text.as_bytes()].concat();
    texts.iter().flat_map(|text| [0, 20, 255].map(|split| seed((text, split)))).collect()
}
