"""What the recordings share: a network of their own, real brokers, a recorder on loopback, and the truth as clients report it."""

import base64
import collections
import datetime
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "kafka-tracer"
BROKER_PORT, CONTROLLER_PORT = 9092, 9093

API_NAMES = {
    0: "Produce", 1: "Fetch", 2: "ListOffsets", 3: "Metadata", 8: "OffsetCommit", 9: "OffsetFetch", 10: "FindCoordinator", 11: "JoinGroup",
    12: "Heartbeat", 13: "LeaveGroup", 14: "SyncGroup", 15: "DescribeGroups", 17: "SaslHandshake", 18: "ApiVersions", 19: "CreateTopics",
    20: "DeleteTopics", 22: "InitProducerId", 23: "OffsetForLeaderEpoch", 24: "AddPartitionsToTxn", 25: "AddOffsetsToTxn", 26: "EndTxn",
    27: "WriteTxnMarkers", 28: "TxnOffsetCommit", 32: "DescribeConfigs", 36: "SaslAuthenticate", 42: "DeleteGroups", 44: "IncrementalAlterConfigs",
    45: "AlterPartitionReassignments", 46: "ListPartitionReassignments", 50: "DescribeUserScramCredentials", 51: "AlterUserScramCredentials",
    52: "Vote", 53: "BeginQuorumEpoch", 54: "EndQuorumEpoch", 55: "DescribeQuorum", 56: "AlterPartition", 58: "Envelope", 59: "FetchSnapshot",
    60: "DescribeCluster", 62: "BrokerRegistration", 63: "BrokerHeartbeat", 64: "UnregisterBroker", 67: "AllocateProducerIds",
    68: "ConsumerGroupHeartbeat", 69: "ConsumerGroupDescribe", 71: "GetTelemetrySubscriptions", 72: "PushTelemetry",
    73: "AssignReplicasToDirs", 75: "DescribeTopicPartitions", 76: "ShareGroupHeartbeat", 77: "ShareGroupDescribe", 78: "ShareFetch",
    79: "ShareAcknowledge", 80: "AddRaftVoter", 83: "InitializeShareGroupState", 84: "ReadShareGroupState", 85: "WriteShareGroupState",
    86: "DeleteShareGroupState", 87: "ReadShareGroupStateSummary", 88: "StreamsGroupHeartbeat",
}


def enter_own_network():
    """Starts this program again in a network namespace that holds nothing but loopback: nothing else is recorded, all ports are free."""
    if os.environ.get("RECORDING_ALONE") != "1":
        os.execvpe("unshare", ["unshare", "-n", sys.executable, *sys.argv], {**os.environ, "RECORDING_ALONE": "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def host(number):
    """The address of broker `number`; clients have 127.0.0.1."""
    return f"127.0.1.{number}"


def wait_for(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not come within {seconds} s")


class Recorder:
    """Packets of the given TCP ports on loopback, into a pcap file."""

    def __init__(self, path, ports=(BROKER_PORT, CONTROLLER_PORT)):
        self.ports, self.packets, self.running, self.path = set(ports), 0, True, path
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.socket.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        self.socket.bind(("lo", 0))
        self.socket.settimeout(0.2)
        self.file = open(path, "wb")
        self.file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while self.running:
            try:
                packet, ancillary, _, address = self.socket.recvmsg(1 << 18, 128)
            except TimeoutError:
                continue
            # Loopback shows each packet twice: as it goes out and as it comes in.
            if address[2] == socket.PACKET_OUTGOING or packet[12:14] != b"\x08\x00" or packet[23] != 6:
                continue
            if not self.ports & set(struct.unpack("!HH", packet[34:38])):
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2][:16])
            self.file.write(struct.pack("<IIII", seconds, nanoseconds // 1000, len(packet), len(packet)) + packet)
            self.packets += 1

    def stop(self):
        time.sleep(0.5)
        self.running = False
        self.thread.join()
        self.file.close()
        self.socket.close()


class Cluster:
    """Brokers of one version, each broker and controller in one process."""

    def __init__(self, version="4.4.0", brokers=1, first=1, **settings):
        self.version, self.numbers, self.settings = version, range(first, first + brokers), settings
        self.cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.scratch = tempfile.TemporaryDirectory(prefix="recording-")
        self.processes = {}

    @property
    def bootstrap(self):
        return ",".join(f"{host(n)}:{BROKER_PORT}" for n in self.numbers)

    def properties(self, number):
        voters = ",".join(f"{n}@{host(n)}:{CONTROLLER_PORT}" for n in self.numbers)
        replicas = min(3, len(self.numbers))
        listener = self.settings.get("listener", "PLAINTEXT")
        properties = {
            "process.roles": "broker,controller", "node.id": number, "controller.quorum.voters": voters, "broker.rack": f"rack-{number}",
            "controller.listener.names": "CONTROLLER", "inter.broker.listener.name": "INSIDE" if listener != "PLAINTEXT" else "PLAINTEXT",
            "listeners": f"{listener}://{host(number)}:{BROKER_PORT},CONTROLLER://{host(number)}:{CONTROLLER_PORT}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "log.dirs": f"{self.scratch.name}/{number}", "auto.create.topics.enable": "false", "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.replication.factor": replicas, "offsets.topic.num.partitions": 1, "log.segment.delete.delay.ms": 1000,
            "transaction.state.log.replication.factor": replicas, "transaction.state.log.min.isr": 1, "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1, "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1, "log.cleaner.backoff.ms": 500, "log.initial.task.delay.ms": 500,
            "log.retention.check.interval.ms": 1000, "num.network.threads": 1, "num.io.threads": 2, "broker.session.timeout.ms": 6000,
            "group.share.min.record.lock.duration.ms": 1000,
        }
        if listener != "PLAINTEXT":
            properties["listeners"] += f",INSIDE://{host(number)}:9095"
            properties["sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256"
            properties["listener.name.sasl_plaintext.plain.sasl.jaas.config"] = (
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="alice-secret";')
            properties["listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config"] = (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;")
        properties.update(self.settings.get("properties", {}))
        return "".join(f"{key}={value}\n" for key, value in properties.items())

    def java(self, *arguments):
        jars = CACHE / f"kafka-{self.version}"
        return ["java", "-Xmx400m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*", *map(str, arguments)]

    def format(self, number):
        path = pathlib.Path(self.scratch.name, f"{number}.properties")
        path.write_text(self.properties(number))
        command = self.java("kafka.tools.StorageTool", "format", "--cluster-id", self.cluster_id, "--config", path)
        subprocess.run(command, check=True, capture_output=True)

    def run(self, number):
        log = open(f"{self.scratch.name}/{number}.log", "ab")
        command = self.java("kafka.Kafka", f"{self.scratch.name}/{number}.properties")
        self.processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def answers(self, number):
        try:
            with socket.create_connection((host(number), BROKER_PORT), 1) as connection:
                connection.settimeout(2)
                connection.sendall(b"\0\0\0\x0a\0\x12\0\0\0\0\0\1\xff\xff")
                return len(connection.recv(4)) == 4
        except OSError:
            return False

    def __enter__(self):
        try:
            for number in self.numbers:
                self.format(number)
                self.run(number)
            for number in self.numbers:
                wait_for(f"broker {number}", 120, lambda: self.processes[number].poll() is not None or self.answers(number))
                if self.processes[number].poll() is not None:
                    raise RuntimeError(pathlib.Path(self.scratch.name, f"{number}.log").read_text()[-3000:])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.scratch.cleanup()

    def stop(self, number):
        self.processes[number].send_signal(signal.SIGTERM)
        self.processes[number].wait(60)


def compiled(name, class_path):
    """The folder with the classes of clients/NAME.java."""
    classes = pathlib.Path(tempfile.gettempdir(), f"recording-{name.lower()}-{zlib.crc32(class_path.encode()):08x}")
    source, done = HERE / f"clients/{name}.java", classes / f"{name}.class"
    if not done.exists() or done.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["javac", "--release", "17", "-cp", class_path, "-d", classes, source], check=True)
    return classes


def streams(job, version="4.4.0"):
    """Runs clients/Streams.java until it has handed on as many records as the job says."""
    class_path = f"{CACHE}/kafka-{version}/*:{CACHE}/record-streams-{version}/*"
    command = ["java", "-Xmx300m", "-XX:+UseSerialGC", "-cp", f"{class_path}:{compiled('Streams', class_path)}", "Streams", json.dumps(job)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if run.returncode:
        raise RuntimeError(run.stderr[-3000:])
    return json.loads(run.stdout)


class Java:
    """The Java clients of clients/Driver.java, driven by name."""

    def __init__(self, bootstrap, version="4.4.0"):
        jars = CACHE / f"kafka-{version}"
        classes = compiled("Driver", f"{jars}/*")
        self.bootstrap = bootstrap
        self.log = open(os.environ.get("RECORDING_LOG", os.devnull), "ab")
        command = ["java", "-Xmx300m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*:{classes}", "Driver"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def tell(self, do, name=None, **what):
        """Sends one job, does not wait for its answer."""
        self.process.stdin.write(json.dumps({"do": do, "name": name, "bootstrap": self.bootstrap, **what}) + "\n")
        self.process.stdin.flush()

    def answer(self, may_fail=False):
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer and not may_fail:
            raise RuntimeError(answer["error"])
        return answer

    def __call__(self, do, name=None, may_fail=False, **what):
        self.tell(do, name, **what)
        return self.answer(may_fail)

    def settings(self, client_id, **settings):
        dotted = {key.replace("_", "."): value for key, value in settings.items()}
        # No metrics subscription: it says nothing about records and makes captures larger.
        return {"bootstrap.servers": self.bootstrap, "client.id": client_id, "enable.metrics.push": "false", "metadata.max.age.ms": "300000", **dotted}


def traceparent(sampled=True):
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-{'01' if sampled else '00'}"


class Scenario:
    """One capture and its truth: what the applications sent and were handed."""

    def __init__(self, name, description, client, client_version, broker, out, ports=(BROKER_PORT, CONTROLLER_PORT)):
        self.name, self.out = name, pathlib.Path(out)
        self.truth = {
            "scenario": name, "description": description, "recorded": datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z"),
            "client": client, "client_version": client_version, "broker": f"Apache Kafka {broker}", "broker_ports": list(ports), "topics": {},
            "produced": [], "consumed": [], "events": [], "settings": {}, "pcap_observed": {}, "skipped": [],
        }
        self.ports, self.keys = ports, collections.Counter()

    def __enter__(self):
        self.recorder = Recorder(self.out / f"{self.name}.pcap", self.ports)
        return self

    def __exit__(self, kind, *_):
        self.recorder.stop()
        if kind is not None:
            return
        self.truth["pcap_observed"] = observe(self.out / f"{self.name}.pcap", self.ports)
        if not self.truth["skipped"]:
            del self.truth["skipped"]
        (self.out / f"{self.name}.json").write_text(json.dumps(self.truth, indent=1) + "\n")
        size = (self.out / f"{self.name}.pcap").stat().st_size
        print(f"{self.name}: {len(self.truth['produced'])} produced, {len(self.truth['consumed'])} consumed, {size} bytes", flush=True)

    def topic(self, name, topic_id, partitions=1):
        self.truth["topics"][name] = {"topic_id": topic_id, "partitions": partitions}

    def records(self, topic, count, contexts=True, **more):
        """Records to be sent: keys that tell them apart, every other one without a context."""
        records = []
        for _ in range(count):
            number = self.keys[topic]
            self.keys[topic] += 1
            key = f"{topic}-{self.name[-4:]}-k{number:02}"
            headers = [["traceparent", traceparent()]] if contexts and number % 2 == 0 else []
            records.append({"topic": topic, "key": key, "value": f"value of {key}" + "x" * (number % 7), "headers": headers, **more})
        return records

    def produced(self, client_id, records, results, **more):
        for record, result in zip(records, results, strict=True):
            value = record.get("value")
            entry = {"topic": record["topic"], "key": record["key"], "headers": record.get("headers", []), "i": len(self.truth["produced"]),
                     "client_id": client_id, "value_len": -1 if value is None else len(value.encode()), **result, **more}
            self.truth["produced"].append(entry)

    def consumed(self, group, client_id, records):
        for record in records:
            self.truth["consumed"].append({"group": group, "client_id": client_id, **record})

    def skipped(self, group, client_id, topic, partition, offsets, why):
        for offset in offsets:
            place = {"topic": topic, "partition": partition, "offset": offset}
            self.truth["skipped"].append({"group": group, "client_id": client_id, **place, "why": why})

    def event(self, what, detail=""):
        self.truth["events"].append({"what": what, "detail": detail})


def observe(path, ports):
    """Counts requests by API and version, by a parser of its own: requests go to a broker's port, TCP streams by sequence numbers."""
    content = open(path, "rb").read()
    streams, firsts, resets, at = collections.defaultdict(dict), {}, 0, 24
    while at + 16 <= len(content):
        length = struct.unpack_from("<I", content, at + 8)[0]
        packet = content[at + 16:at + 16 + length]
        at += 16 + length
        header = (packet[14] & 15) * 4
        tcp = packet[14 + header:]
        source, destination, sequence = struct.unpack_from("!HHI", tcp)
        key = (packet[26:30], source, packet[30:34], destination)
        resets += bool(tcp[13] & 4)
        if tcp[13] & 2:
            firsts[key] = sequence + 1
            streams[key] = {}
        total = struct.unpack_from("!H", packet, 16)[0]
        end = total - header if total else len(tcp)
        payload = tcp[(tcp[12] >> 4) * 4:end]
        if payload and destination in ports:
            streams[key].setdefault(sequence, payload)
    versions, requests, clients = collections.defaultdict(collections.Counter), 0, set()
    for key, pieces in streams.items():
        data, expected = bytearray(), firsts.get(key)
        for sequence in sorted(pieces):
            if expected is not None and sequence < expected:
                continue
            data += pieces[sequence]
            expected = sequence + len(pieces[sequence])
        while len(data) >= 4:
            length = struct.unpack_from("!i", data)[0]
            frame = bytes(data[4:4 + length])
            del data[:4 + max(length, 0)]
            if length < 8 or length > 1 << 24 or len(frame) < length:
                break
            api_key, version = struct.unpack_from("!hh", frame)
            if api_key not in API_NAMES or version > 30:
                continue  # raw SASL tokens
            requests += 1
            versions[API_NAMES[api_key]][str(version)] += 1
            if length >= 10 and (size := struct.unpack_from("!h", frame, 8)[0]) >= 0:
                clients.add(frame[10:10 + size].decode("utf-8", "replace"))
    return {
        "note": "from an independent frame parser over the capture, not from the client", "api_versions": {k: dict(v) for k, v in versions.items()},
        "client_ids": sorted(clients), "connections": len(streams), "rst": resets, "requests": requests,
    }
