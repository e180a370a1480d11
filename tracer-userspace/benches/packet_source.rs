//! What the programs cost the traffic of a host: rounds with and without the tracer in turn, and the kernel's own count of the programs' time.
//! Needs root: `cargo xtask bench packets`. With names of sources as arguments it measures those, in instructions: for a machine whose clock counts
//! them, one a nanosecond, which `cargo xtask bench calls` makes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracer_userspace::source::ebpf::{LiveSource, Pacer, PacketSource, RunTime, SocketSource, SourceConfig, SourceCounts, count_run_time};

/// How a source is measured.
#[derive(Clone, Copy)]
struct Plan {
    source: &'static str,
    /// Rounds of each kind.
    rounds: usize,
    /// How long a round takes.
    round: Duration,
}

const TIMES: Plan = Plan { source: "packet", rounds: 15, round: Duration::from_millis(400) };
const INSTRUCTIONS: Plan = Plan { source: "", rounds: 3, round: Duration::from_millis(60) };

const SOURCES: [&str; 3] = ["packet", "socket", "socket-perf"];

/// One kind of traffic: does it for a while, and returns what that took.
struct Traffic {
    name: &'static str,
    unit: &'static str,
    run: fn(Duration) -> Spent,
}

/// How often something was done, and the CPU time of the threads that did it: kernel and programs included, the reader not. Unlike the
/// time on the wall it hardly depends on what else the machine does.
#[derive(Clone, Copy)]
struct Spent {
    units: u64,
    cpu: Duration,
}

const TRAFFIC: [Traffic; 5] = [
    Traffic { name: "other protocol, ping-pong of 64 bytes", unit: "round trip", run: |time| ping_pong(time, &[b'x'; 64]) },
    Traffic { name: "other protocol, stream of 64 KiB writes", unit: "write", run: |time| stream(time, &[b'x'; 65_536]) },
    Traffic { name: "other protocol, connect, ask, answer, close", unit: "connection", run: |time| connections(time, &[b'x'; 64]) },
    Traffic { name: "Kafka, ping-pong of 64 bytes", unit: "round trip", run: |time| ping_pong(time, &request::<64>()) },
    Traffic { name: "Kafka, stream of 64 KiB writes", unit: "write", run: |time| stream(time, &request::<65_536>()) },
];

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let asked: Vec<&str> = SOURCES.into_iter().filter(|source| asked.iter().any(|asked| asked == source)).collect();
    if !asked.is_empty() {
        println!(
            "| traffic, both ends on the host | instructions without | source | with | ratio | programs run | instructions of each | events |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        for traffic in TRAFFIC {
            for source in &asked {
                let measured = measure(&traffic, Plan { source, ..INSTRUCTIONS });
                measured.print_instructions(&traffic, source);
            }
        }
        return;
    }
    println!(
        "{} rounds of {} ms each, with and without the tracer in turn; medians, and the quartiles of the pairs' ratios\n",
        TIMES.rounds,
        TIMES.round.as_millis()
    );
    println!("| traffic | CPU without | CPU with | ratio | programs, per packet | packets |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for traffic in TRAFFIC {
        measure(&traffic, TIMES).print_times(&traffic);
    }
}

/// What was measured of one kind of traffic.
struct Measured {
    /// Microseconds of CPU per unit.
    without: Vec<f64>,
    with: Vec<f64>,
    ratios: Vec<f64>,
    /// Time of the programs, and how often they ran, in so many units.
    time: Duration,
    runs: u64,
    units: u64,
    events: u64,
    lost_bytes: u64,
}

fn measure(traffic: &Traffic, plan: Plan) -> Measured {
    (traffic.run)(plan.round);
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut lost_bytes = 0;
    for round in 0..plan.rounds {
        let bare = |out: &mut Vec<f64>| out.push(cost((traffic.run)(plan.round)));
        let mut traced = |out: &mut Vec<f64>| {
            let running = Running::start(plan.source, false);
            out.push(cost((traffic.run)(plan.round)));
            lost_bytes += running.stop().1.ring_full().1;
        };
        // Each comes first every other time: the machine's speed drifts.
        if round % 2 == 0 {
            bare(&mut without);
            traced(&mut with);
        } else {
            traced(&mut with);
            bare(&mut without);
        }
        if let (Some(with), Some(without)) = (with.last(), without.last()) {
            ratios.push(with / without);
        }
    }
    // Counting costs something itself, so it has a round of its own.
    let running = Running::start(plan.source, true);
    let units = (traffic.run)(plan.round * 3).units;
    let (programs, counts) = running.stop();
    // Of the packet source those that see packets: the others see a connection once.
    let ours = programs.iter().filter(|program| !program.program.starts_with("owner_"));
    let (time, runs) = ours.fold((Duration::ZERO, 0), |(time, runs), program| (time + program.time, runs + program.runs));
    Measured { without, with, ratios, time, runs, units, events: counts.events, lost_bytes }
}

impl Measured {
    fn print_times(mut self, traffic: &Traffic) {
        println!(
            "| {} | {:.2} us a {} | {:.2} us | {:.2} ({:.2}-{:.2}) | {:.0} ns | {:.1} |{}",
            traffic.name,
            quantile(&mut self.without, 2),
            traffic.unit,
            quantile(&mut self.with, 2),
            quantile(&mut self.ratios, 2),
            quantile(&mut self.ratios, 1),
            quantile(&mut self.ratios, 3),
            self.time.as_secs_f64() * 1e9 / as_f64(self.runs.max(1)),
            as_f64(self.runs) / as_f64(self.units.max(1)),
            self.lost(),
        );
    }

    /// A nanosecond is an instruction.
    fn print_instructions(mut self, traffic: &Traffic, source: &str) {
        println!(
            "| {} | {:.0} a {} | `{source}` | {:.0} | {:.2} | {:.1} | {:.0} | {:.1} |{}",
            traffic.name,
            quantile(&mut self.without, 2) * 1e3,
            traffic.unit,
            quantile(&mut self.with, 2) * 1e3,
            quantile(&mut self.ratios, 2),
            as_f64(self.runs) / as_f64(self.units.max(1)),
            self.time.as_secs_f64() * 1e9 / as_f64(self.runs.max(1)),
            as_f64(self.events) / as_f64(self.units.max(1)),
            self.lost(),
        );
    }

    fn lost(&self) -> String {
        if self.lost_bytes > 0 { format!(" {} bytes lost", self.lost_bytes) } else { String::new() }
    }
}

/// Microseconds of CPU per unit.
fn cost(spent: Spent) -> f64 {
    spent.cpu.as_secs_f64() * 1e6 / as_f64(spent.units.max(1))
}

/// CPU time of the calling thread.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("time goes on")
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The `quarter`th quartile.
fn quantile(values: &mut [f64], quarter: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * quarter / 4).copied().unwrap_or(f64::NAN)
}

/// A tracer that reads and throws away.
struct Running {
    stop: Arc<AtomicBool>,
    reader: std::thread::JoinHandle<(Vec<RunTime>, SourceCounts)>,
}

fn start(source: &str) -> Box<dyn LiveSource + Send> {
    let config = SourceConfig { ring_bytes: 128 << 20, perf_buffers: source == "socket-perf", ..SourceConfig::default() };
    let needs = "the benchmark needs root, and a kernel with what the source needs";
    match source {
        "packet" => Box::new(PacketSource::start(config).expect(needs)),
        _ => Box::new(SocketSource::start(&config).expect(needs)),
    }
}

impl Running {
    fn start(source: &str, counts_time: bool) -> Self {
        let mut source = start(source);
        let counting = counts_time.then(|| count_run_time().expect("the kernel counts the time of programs"));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let (_counting, mut pacer) = (counting, Pacer::new(tracer_common::limits::DEFAULT_RING_BYTES));
                while !stop.load(Ordering::Relaxed) {
                    pacer
                        .poll(&mut [source.as_mut()], Duration::from_millis(50), &mut |event| {
                            std::hint::black_box(event);
                        })
                        .expect("the source goes on");
                }
                (source.run_time(), source.counts().expect("the kernel reads its counters"))
            })
        };
        Self { stop, reader }
    }

    fn stop(self) -> (Vec<RunTime>, SourceCounts) {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().expect("the reader ends")
    }
}

/// A Kafka request of `N` bytes.
fn request<const N: usize>() -> [u8; N] {
    let mut request = [b'x'; N];
    let size = u32::try_from(N - 4).expect("a small request");
    if let Some(head) = request.first_chunk_mut() {
        let [a, b, c, d] = size.to_be_bytes();
        *head = [a, b, c, d, 0, 3, 0, 9, 0, 0, 0, 1, 0, 4];
    }
    request
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("the listener listens");
    let (server, _) = listener.accept().expect("the client connected");
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("a TCP option");
    }
    (client, server)
}

/// Sends a message there and back, as often as it goes.
fn ping_pong(time: Duration, message: &[u8]) -> Spent {
    let (mut client, mut server) = connection();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut got = vec![0; message.len()];
            while server.read_exact(&mut got).is_ok() && server.write_all(&got).is_ok() {}
            cpu()
        });
        let (start, before, mut count) = (Instant::now(), cpu(), 0);
        let mut got = vec![0; message.len()];
        while start.elapsed() < time {
            client.write_all(message).expect("the server reads");
            client.read_exact(&mut got).expect("the server answers");
            count += 1;
        }
        let mine = cpu().saturating_sub(before);
        drop(client);
        Spent { units: count, cpu: mine + serving.join().expect("the server ends") }
    })
}

/// Sends one way, as fast as it goes.
fn stream(time: Duration, message: &[u8]) -> Spent {
    let (mut client, mut server) = connection();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut got = vec![0; 1 << 20];
            while server.read(&mut got).is_ok_and(|len| len > 0) {}
            cpu()
        });
        let (start, before, mut count) = (Instant::now(), cpu(), 0);
        while start.elapsed() < time {
            client.write_all(message).expect("the server reads");
            count += 1;
        }
        let mine = cpu().saturating_sub(before);
        drop(client);
        Spent { units: count, cpu: mine + serving.join().expect("the server ends") }
    })
}

/// Connects, asks, is answered, and closes.
fn connections(time: Duration, message: &[u8]) -> Spent {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let address = listener.local_addr().expect("bound");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut got = vec![0; message.len()];
            while let Ok((mut server, _)) = listener.accept()
                && !done.load(Ordering::Relaxed)
            {
                let _ = server.read_exact(&mut got).and_then(|()| server.write_all(&got));
            }
            cpu()
        });
        let (start, before, mut count) = (Instant::now(), cpu(), 0);
        let mut got = vec![0; message.len()];
        while start.elapsed() < time {
            let mut client = TcpStream::connect(address).expect("the listener listens");
            client.write_all(message).expect("the server reads");
            client.read_exact(&mut got).expect("the server answers");
            count += 1;
        }
        let mine = cpu().saturating_sub(before);
        done.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(address));
        Spent { units: count, cpu: mine + serving.join().expect("the server ends") }
    })
}
