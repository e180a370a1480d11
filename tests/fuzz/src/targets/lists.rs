//! Lists of `/proc` and of tracefs with names in them that any process chooses: files that are mapped, mounts, probes, its own name.

use std::os::unix::ffi::OsStrExt;

use tracer_userspace::source::ebpf::outside;

use crate::seeds::Recorded;

pub(super) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        if let Some((inode, path, name)) = outside::mapped(line) {
            assert!(inode != 0 && path.starts_with('/') && !name.contains('/') && path.contains(name), "{inode} {path:?} {name:?}");
        }
        if outside::process_start(line).is_some() {
            assert!(line.contains(')'));
        }
    }
    if let Some(reason) = outside::opaque_reason(&text) {
        assert!(text.contains("libjvm.so") || text.contains("libgnutls"), "{reason}");
    }
    let mounts = outside::cgroup2_mounts(data);
    let bytes: usize = mounts.iter().map(|mount| mount.as_os_str().as_bytes().len()).sum();
    assert!(bytes <= data.len(), "{mounts:?}");
    for probe in outside::stale_probes(&text) {
        // Written back to the kernel as one line.
        assert!(probe.contains("/aya_") && !probe.contains(char::is_whitespace), "{probe:?}");
    }
}

pub(super) fn seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let lists: [&[u8]; 12] = [
        b"7f1c2a400000-7f1c2a4a5000 r-xp 0001f000 fe:00 393243                     /usr/lib/x86_64-linux-gnu/libssl.so.3\n",
        b"7f00-7f01 r-xp 0 fe:00 9 /opt/a b/libssl.so.3 (deleted)\n7f01-7f02 rw-p 0 00:00 0 [heap]\n",
        b"7f00-7f01 r-xp 0 fe:00 9 /opt/jdk/lib/server/libjvm.so\n",
        b"7f00-7f01 r-xp 0 fe:00 9 /usr/lib/libgnutls.so.30.34.3\n",
        b"7f00-7f01 r-xp 0 fe:00 9 /opt/caf\xe9\n",
        b"7 (a) b) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 8100 0 0\n",
        b"7 (caf\xc3) Z 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 8100 0 0\n",
        b"proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
        b"none /mnt/c\\040g\\134\\011\\777 cgroup2 rw 0 0\n",
        b"cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
        b"p:kprobes/aya_100_p_tcp_sendmsg_0x0_0 tcp_sendmsg+0\nr:kprobes/mine do_sys_open $retval\n",
        b"p:uprobes/aya_200_p_SSL_write_0x0_3 /usr/lib/libssl.so.3:0x0000000000036a10\n",
    ];
    lists.iter().map(|list| list.to_vec()).collect()
}
