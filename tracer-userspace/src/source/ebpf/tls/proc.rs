//! The addresses of a process's socket, as `/proc` tells them: where the programs do not know the kernel's structures.

#![forbid(unsafe_code)]

use std::fs;

use crate::source::ebpf::owner::{self, Ends};

/// Local and peer address of a descriptor, if it is a TCP socket that is connected.
pub(super) fn addresses(pid: u32, descriptor: u32) -> Option<Ends> {
    let target = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
    let inode = owner::socket_inode(target.to_str()?)?;
    ["tcp", "tcp6"].into_iter().find_map(|table| find(&fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()?, inode))
}

/// The ends of the socket with an inode, in a table of the kernel.
fn find(table: &str, inode: u64) -> Option<Ends> {
    let ends = table.lines().filter_map(owner::read_line).find(|(_, found)| *found == inode)?.0;
    (ends.1.port() != 0).then_some(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_an_own_connection_are_found() {
        use std::os::fd::AsRawFd;
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(listen) else { continue };
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let found = addresses(std::process::id(), u32::try_from(client.as_raw_fd()).unwrap());
            assert_eq!(found, Some((client.local_addr().unwrap(), client.peer_addr().unwrap())));
            assert_eq!(addresses(std::process::id(), u32::try_from(listener.as_raw_fd()).unwrap()), None, "a listener has no peer");
        }
        assert_eq!(addresses(std::process::id(), 1 << 20), None);
    }
}
