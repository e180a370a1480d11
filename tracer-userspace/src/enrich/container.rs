//! Container and pod of a process, read from the text of its `/proc/PID/cgroup`.
//!
//! In: the file's text. Out: [`Container`]. Runtimes name a container's cgroup after its id: `/docker/ID`,
//! `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`, `/kubepods/burstable/podUID/ID`,
//! `/ecs/TASK/TASK-NUMBER`; the kubelet names the pod's `podUID`, with underscores under systemd.

#![forbid(unsafe_code)]

/// What a cgroup path tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The container's id: 64 hexadecimal digits, or ECS's task id with a number.
    pub id: Option<String>,
    /// The Kubernetes pod's UID, with dashes.
    pub pod_uid: Option<String>,
}

impl Container {
    /// Reads the text of a `/proc/PID/cgroup`; of several hierarchies the first that names a container counts.
    pub fn from_cgroup(text: &str) -> Self {
        let mut found = Self::default();
        for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            for part in path.split('/') {
                if found.pod_uid.is_none() {
                    found.pod_uid = pod_uid(part);
                }
            }
            // The innermost container: a runtime inside a container nests its own below.
            if found.id.is_none() {
                found.id = path.rsplit('/').find_map(container_id);
            }
            if found.id.is_some() {
                break;
            }
        }
        found
    }
}

fn container_id(part: &str) -> Option<String> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    // conmon watches a container from outside it.
    if part.contains("conmon") {
        return None;
    }
    let id = part.rsplit(['-', ':']).next().unwrap_or(part);
    if id.len() == 64 && is_lower_hex(id) {
        return Some(id.to_owned());
    }
    let (task, number) = part.rsplit_once('-')?;
    (task.len() == 32 && is_lower_hex(task) && (1..=20).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()))
        .then(|| part.to_owned())
}

fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let uid = part.strip_prefix("pod").or_else(|| part.rsplit_once("-pod").map(|(_, uid)| uid))?.replace('_', "-");
    // A UUID; static pods have the 32 digits of a hash instead.
    let digits = uid.bytes().filter(|b| *b != b'-').count();
    (digits == 32 && uid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())).then_some(uid)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3d1c2b4a5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef01";
    const UID: &str = "0b7a9c1e-52d4-4c0e-9b7e-6f1d2c3b4a59";

    #[test]
    fn each_runtime_names_its_cgroups_in_its_own_way() {
        let systemd_uid = UID.replace('-', "_");
        let cases = [
            ("docker, cgroupfs", format!("0::/docker/{ID}"), Some(ID), None),
            ("docker, systemd", format!("0::/system.slice/docker-{ID}.scope"), Some(ID), None),
            ("docker, v1", format!("12:pids:/docker/{ID}\n11:cpu:/docker/{ID}\n0::/system.slice/containerd.service"), Some(ID), None),
            ("podman", format!("0::/machine.slice/libpod-{ID}.scope/container"), Some(ID), None),
            ("podman's monitor", format!("0::/machine.slice/libpod-conmon-{ID}.scope"), None, None),
            ("kubelet with containerd, cgroupfs", format!("0::/kubepods/burstable/pod{UID}/{ID}"), Some(ID), Some(UID)),
            (
                "kubelet with containerd, systemd",
                format!("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd_uid}.slice/cri-containerd-{ID}.scope"),
                Some(ID),
                Some(UID),
            ),
            (
                "kubelet with containerd, old naming",
                format!("0::/system.slice/containerd.service/kubepods-besteffort-pod{systemd_uid}.slice:cri-containerd:{ID}"),
                Some(ID),
                None,
            ),
            (
                "kubelet with cri-o, guaranteed",
                format!("0::/kubepods.slice/kubepods-pod{systemd_uid}.slice/crio-{ID}.scope"),
                Some(ID),
                Some(UID),
            ),
            ("seen from another cgroup namespace", format!("0::/../../pod{UID}/{ID}"), Some(ID), Some(UID)),
            ("a container within", format!("0::/kubepods/pod{UID}/{}/docker/{ID}", "a".repeat(64)), Some(ID), Some(UID)),
            (
                "ecs on fargate",
                "0::/ecs/40ba0b6b22e84ad9bc3bbf5b46f0b6f2/40ba0b6b22e84ad9bc3bbf5b46f0b6f2-2534562134".to_owned(),
                Some("40ba0b6b22e84ad9bc3bbf5b46f0b6f2-2534562134"),
                None,
            ),
            ("no container", "0::/user.slice/user-1000.slice/session-3.scope".to_owned(), None, None),
            ("the root", "0::/".to_owned(), None, None),
            ("nothing", String::new(), None, None),
            ("not a cgroup file", "podpodpod\n::\n0::/pod/pod-pod".to_owned(), None, None),
        ];
        for (name, text, id, pod_uid) in cases {
            let container = Container::from_cgroup(&text);
            assert_eq!((container.id.as_deref(), container.pod_uid.as_deref()), (id, pod_uid), "{name}");
        }
    }
}
