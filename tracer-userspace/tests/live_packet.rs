//! The programs on this host's own kernel: every byte, at both ends, whatever the traffic looks like. Needs root; run by `cargo xtask test`.
#![cfg(feature = "live")]

#[path = "live/harness.rs"]
mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use harness::{Recorder, kafka_request, pseudo_random};
use tracer_userspace::source::Direction;

#[test]
fn a_stream_over_loopback_is_seen_whole_at_both_ends() {
    let mut recorder = Recorder::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut upward = kafka_request(3_000_000);
    upward.extend(kafka_request(100));
    let downward = pseudo_random(2_000_000);
    let (expected_up, expected_down) = (upward.clone(), downward.clone());
    let writer = {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || client.write_all(&upward).unwrap())
    };
    let answerer = {
        let mut server = server.try_clone().unwrap();
        std::thread::spawn(move || server.write_all(&downward).unwrap())
    };
    let reader = {
        let len = expected_down.len();
        std::thread::spawn(move || {
            let mut got = vec![0; len];
            client.read_exact(&mut got).unwrap();
            client
        })
    };
    let mut got = vec![0; expected_up.len()];
    server.read_exact(&mut got).unwrap();
    let client = reader.join().unwrap();
    writer.join().unwrap();
    answerer.join().unwrap();
    let (client_address, server_address) = (client.local_addr().unwrap(), server.local_addr().unwrap());
    drop((client, server));
    recorder.expect_stream(client_address, server_address, Direction::Sent, &expected_up);
    recorder.expect_stream(client_address, server_address, Direction::Received, &expected_down);
    recorder.expect_stream(server_address, client_address, Direction::Received, &expected_up);
    recorder.expect_stream(server_address, client_address, Direction::Sent, &expected_down);
}
