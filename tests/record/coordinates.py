"""Batches whose place and time both ends agree on, and batches that were changed on the way so that they cannot."""

import json
import socket
import struct
import subprocess
import threading
import time

from cluster import produce
from lab import BROKER_PORT, CACHE, HERE, Cluster, Java, Scenario, host, wait_for

FACTS = ("java kafka-clients", "4.4.0", "4.4.0")


def now_ms():
    return time.time_ns() // 1_000_000


def stamped(records, first=None, step=1):
    """Gives the records timestamps of their own: what the wire says is then known, whatever the broker makes of it."""
    first = now_ms() if first is None else first
    return [{**record, "timestamp": first + step * index} for index, record in enumerate(records)]


def send_stamped(scenario, java, name, client_id, records, **more):
    java("send", name, records=records)
    results = java("flush", name)["results"]
    results = [{**result, "timestamp": record["timestamp"]} for record, result in zip(records, results, strict=True)]
    scenario.produced(client_id, records, results, **more)
    return results


def read_all(scenario, java, topics, count, group, client_id="java-consumer", seconds=30, **settings):
    java("consumer", "c", topics=topics, settings=java.settings(client_id, **{"group.id": group}, **settings))
    records = java("poll", "c", count=count, seconds=seconds)["records"]
    scenario.consumed(group, client_id, records)
    java("commit", "c")
    java("close", "c")
    return records


def confluent_produce(bootstrap, client_id, records, **settings):
    """Sends by librdkafka; returns what it was told of each record."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "client.id": client_id, "linger.ms": 50, **settings})
    results = [None] * len(records)

    def told(index):
        def callback(error, message):
            results[index] = {"error": error.name()} if error else {"partition": message.partition(), "offset": message.offset()}

        return callback

    for index, record in enumerate(records):
        headers = [(name, value.encode()) for name, value in record["headers"]]
        timestamp = {"timestamp": record["timestamp"]} if "timestamp" in record else {}
        producer.produce(record["topic"], record["value"].encode(), record["key"].encode(), headers=headers, on_delivery=told(index), **timestamp)
    producer.flush(30)
    return [{**result, **({"timestamp": record["timestamp"]} if "timestamp" in record else {})} for record, result in zip(records, results)]


def node(job):
    """Runs clients/driver.mjs among its packages."""
    home = CACHE / "record-node"
    driver = home / "driver.mjs"
    driver.write_text((HERE / "clients/driver.mjs").read_text())
    run = subprocess.run(["node", driver, json.dumps(job)], capture_output=True, text=True, timeout=90)
    if run.returncode:
        raise RuntimeError(run.stdout[-500:] + run.stderr[-3000:])
    return json.loads(run.stdout.splitlines()[-1])


def log_append_time(out, cluster, java):
    topics = {"append-plain": {"message.timestamp.type": "LogAppendTime"},
              "append-gzip": {"message.timestamp.type": "LogAppendTime", "compression.type": "gzip"}}
    ids = {topic: java("create", topic=topic, config=config)["topic_id"] for topic, config in topics.items()}
    with Scenario("coord-log-append-time", "the broker stamps the records, on one topic it also compresses anew", *FACTS, out) as s:
        java("producer", "p", settings=java.settings("append-producer", **{"linger.ms": "200", "compression.type": "lz4"}))
        for topic, topic_id in ids.items():
            s.topic(topic, topic_id)
            for _ in range(2):
                send_stamped(s, java, "p", "append-producer", stamped(s.records(topic, 4), now_ms() - 5000))
        java("close", "p")
        read_all(s, java, list(ids), 16, "grp-append")


def recompressed(out, cluster, java):
    codecs = {"recompressed-java": "zstd", "recompressed-confluent": "gzip"}
    ids = {topic: java("create", topic=topic, config={"compression.type": codec})["topic_id"] for topic, codec in codecs.items()}
    with Scenario("coord-recompressed", "topics with a compression.type that is not the producer's: Java lz4 to zstd, librdkafka snappy to gzip", *FACTS, out) as s:
        for topic, topic_id in ids.items():
            s.topic(topic, topic_id)
        java("producer", "p", settings=java.settings("recompressed-producer", **{"linger.ms": "200", "compression.type": "lz4"}))
        for first in (now_ms(), now_ms() - 1000):
            send_stamped(s, java, "p", "recompressed-producer", stamped(s.records("recompressed-java", 4), first))
        java("close", "p")
        records = stamped(s.records("recompressed-confluent", 5))
        s.produced("rdkafka", records, confluent_produce(cluster.bootstrap, "rdkafka", records, **{"compression.type": "snappy"}))
        read_all(s, java, list(ids), 13, "grp-recompressed")


def recompressed_kafkajs(out, cluster, java):
    topic = "recompressed-kafkajs"
    topic_id = java("create", topic=topic, config={"compression.type": "lz4"})["topic_id"]
    with Scenario("coord-recompressed-kafkajs", "kafkajs: the base timestamp is the smallest, not the first; gzip to lz4", "kafkajs", "2.2.4", "4.4.0", out) as s:
        s.topic(topic, topic_id)
        # Oldest last: the first record's timestamp is the largest.
        records = stamped(s.records(topic, 4), now_ms(), -1000)
        told = node({"library": "kafkajs", "bootstrap": cluster.bootstrap, "client_id": "kafkajs-producer", "topic": topic, "records": records, "codec": "gzip"})
        s.produced("kafkajs-producer", records,
                   [{"partition": 0, "offset": int(told[0]["baseOffset"]) + index, "timestamp": record["timestamp"]} for index, record in enumerate(records)])
        read_all(s, java, [topic], 4, "grp-recompressed-kafkajs")


class Proxy:
    """Between clients and the broker: hands frames on, and cuts the connection instead of the answers to some Produce requests."""

    def __init__(self, listen, broker, cut):
        self.broker, self.cut, self.produces = broker, set(cut), 0
        self.server = socket.create_server(listen)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            broker = socket.create_connection(self.broker)
            state = {"cut": set()}
            for args in ((client, broker, state, True), (broker, client, state, False)):
                threading.Thread(target=self.carry, args=args, daemon=True).start()

    def carry(self, source, target, state, requests):
        try:
            while frame := read_frame(source):
                if requests and frame[4:6] == b"\0\0":
                    self.produces += 1
                    if self.produces in self.cut:
                        state["cut"].add(frame[8:12])
                elif not requests and frame[4:8] in state["cut"]:
                    break  # The broker has the records, the client is not told.
                target.sendall(frame)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def close(self):
        self.server.close()


class Repeater(Proxy):
    """Sends the first Produce request again after the seventh: later than the broker remembers its sequence. Keeps the answer to itself."""

    ID = b"\x7f\xff\xff\x00"

    def carry(self, source, target, state, requests):
        try:
            while frame := read_frame(source):
                if not requests and frame[4:8] == self.ID:
                    continue
                target.sendall(frame)
                if requests and frame[4:6] == b"\0\0":
                    self.produces += 1
                    if self.produces == 1:
                        state["first"] = frame
                    elif self.produces == 7:
                        time.sleep(0.3)
                        target.sendall(state["first"][:8] + self.ID + state["first"][12:])
        except OSError:
            pass
        target.close()


def late_duplicate(out):
    """Recorded between proxy and broker: that is where the repeated request is."""
    topic = "retry-late-duplicate"
    hidden, shown = 9192, (host(9), BROKER_PORT)
    properties = {"listeners": f"PLAINTEXT://{host(1)}:{hidden},CONTROLLER://{host(1)}:9093", "advertised.listeners": f"PLAINTEXT://{shown[0]}:{shown[1]}"}
    cluster = Cluster(properties=properties)
    cluster.answers = lambda number: answers((host(1), hidden))
    proxy = Repeater(shown, (host(1), hidden), ())
    with cluster, Java(f"{shown[0]}:{shown[1]}") as java:
        warm(java)
        topic_id = java("create", topic=topic)["topic_id"]
        with Scenario("coord-retry-late-duplicate", "a Produce comes again when the broker has forgotten its sequence, and is refused",
                      *FACTS, out, (hidden,)) as s:
            s.topic(topic, topic_id)
            java("producer", "p", settings=java.settings("late-producer", **{"linger.ms": "50", "acks": "all"}))
            lots = []
            for _ in range(8):
                lots.append(stamped(s.records(topic, 2)))
                send_stamped(s, java, "p", "late-producer", lots[-1])
            # OUT_OF_ORDER_SEQUENCE_NUMBER
            again = [{"partition": 0, "timestamp": record["timestamp"], "error": 45} for record in lots[0]]
            s.produced("late-producer", lots[0], again)
            java("close", "p")
            read_all(s, java, [topic], 16, "grp-late")
    proxy.close()


def read_frame(source):
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack("!i", data[:4])[0]:
        more = source.recv(4 - len(data) if len(data) < 4 else 4 + struct.unpack("!i", data[:4])[0] - len(data))
        if not more:
            return None
        data += more
    return data


def retried(out):
    """Two producers, one idempotent: the answer to the second request of each is lost with its connection."""
    hidden, shown = 9192, (host(9), BROKER_PORT)
    properties = {"listeners": f"PLAINTEXT://{host(1)}:{hidden},CONTROLLER://{host(1)}:9093", "advertised.listeners": f"PLAINTEXT://{shown[0]}:{shown[1]}"}
    cluster = Cluster(properties=properties)
    cluster.answers = lambda number: answers((host(1), hidden))
    proxy = Proxy(shown, (host(1), hidden), ())
    with cluster, Java(f"{shown[0]}:{shown[1]}") as java:
        for name, idempotent in (("coord-retry-duplicate", "true"), ("coord-retry-twice-stored", "false")):
            topic = name.removeprefix("coord-")
            topic_id = java("create", topic=topic)["topic_id"]
            what = "the broker knows the repeated sequence" if idempotent == "true" else "without idempotence the records are stored twice"
            with Scenario(name, f"the answer to a Produce is lost with its connection, the client sends again: {what}", *FACTS, out, (BROKER_PORT,)) as s:
                s.topic(topic, topic_id)
                proxy.cut = {proxy.produces + 2}
                java("producer", "p", settings=java.settings("retry-producer", **{"linger.ms": "200", "enable.idempotence": idempotent, "acks": "all"}))
                for lot in range(3):
                    records = stamped(s.records(topic, 3))
                    results = send_stamped(s, java, "p", "retry-producer", records)
                    if lot == 1:
                        lost = [{"partition": 0, "timestamp": record["timestamp"], "unanswered": True} for record in records]
                        s.produced("retry-producer", records, lost)
                java("close", "p")
                read_all(s, java, [topic], 9 if idempotent == "true" else 12, "grp-retry")
    proxy.close()


def answers(address):
    try:
        with socket.create_connection(address, 1) as connection:
            connection.settimeout(2)
            connection.sendall(b"\0\0\0\x0a\0\x12\0\0\0\0\0\1\xff\xff")
            return len(connection.recv(4)) == 4
    except OSError:
        return False


def transactions(out, cluster, java):
    topic = "interleaved"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("coord-transactions", "two transactional producers and a plain one take turns on a partition; one transaction is aborted, "
                  "its producer commits the next", *FACTS, out) as s:
        s.topic(topic, topic_id)
        for name in ("a", "b"):
            java("producer", name, settings=java.settings(f"txn-{name}", **{"transactional.id": f"txn-{name}", "linger.ms": "100"}))
            java("init", name)
            java("begin", name)
        java("producer", "plain", settings=java.settings("txn-plain", **{"linger.ms": "100"}))
        aborted = []
        for _ in range(2):
            send_stamped(s, java, "a", "txn-a", stamped(s.records(topic, 2)))
            aborted += [told["offset"] for told in send_stamped(s, java, "b", "txn-b", stamped(s.records(topic, 2)))]
            send_stamped(s, java, "plain", "txn-plain", stamped(s.records(topic, 1)))
        java("commit_transaction", "a")
        java("abort_transaction", "b")
        java("begin", "b")
        send_stamped(s, java, "b", "txn-b", stamped(s.records(topic, 2)))
        java("commit_transaction", "b")
        read_all(s, java, [topic], 12, "grp-uncommitted", "uncommitted-reader")
        read_all(s, java, [topic], 8, "grp-committed", "committed-reader", isolation_level="read_committed")
        s.skipped("grp-committed", "committed-reader", topic, 0, aborted, "aborted")
        for name in ("a", "b", "plain"):
            java("close", name)


def compacted(out, cluster, java):
    topic = "compacted"
    config = {"cleanup.policy": "compact", "segment.ms": "700", "min.cleanable.dirty.ratio": "0.001", "delete.retention.ms": "60000", "min.compaction.lag.ms": "0"}
    topic_id = java("create", topic=topic, config=config)["topic_id"]
    with Scenario("coord-compacted", "compaction took records out of some batches and set a delete horizon on those with tombstones", *FACTS, out) as s:
        s.topic(topic, topic_id)
        java("producer", "p", settings=java.settings("compact-producer", **{"linger.ms": "100"}))
        lots = [[("a", "1"), ("b", "1"), ("c", "1")], [("d", "1"), ("e", "1")], [("a", "2"), ("b", None)], [("f", "1")], [("c", "2"), ("g", "1")]]
        for lot in lots:
            records = stamped([{**record, "key": key, "value": value} for record, (key, value) in zip(s.records(topic, len(lot)), lot, strict=True)])
            send_stamped(s, java, "p", "compact-producer", records)
            time.sleep(0.8)
        # The last segment is never cleaned; one more record lets the ones before it be.
        send_stamped(s, java, "p", "compact-producer", stamped([{**s.records(topic, 1)[0], "key": "z"}]))
        java("close", "p")
        java("consumer", "wait", topic=topic, settings=java.settings("compact-wait"))
        s.event("cleaned after", wait_until_cleaned(java, s, topic))
        java("close", "wait")
        read_all(s, java, [topic], 8, "grp-compacted", seconds=5)


def wait_until_cleaned(java, scenario, topic):
    """Reads again and again until records are gone; each reading is part of the truth."""
    for attempt in range(20):
        java("seek", "wait", topic=topic, offset=0)
        records = java("poll", "wait", count=11, seconds=1)["records"]
        scenario.consumed(None, "compact-wait", records)
        if len(records) < 9:
            return f"{attempt} readings: {[record['key'] for record in records]}"
        time.sleep(0.5)
    raise TimeoutError("the log was not cleaned")


def recreated(out, cluster, java):
    topic = "made-anew"
    moment = now_ms() - 10_000
    with Scenario("coord-recreated", "a topic is deleted and made anew under its name; offsets, keys and sequences begin again, its group goes on", *FACTS, out) as s:
        for life in range(2):
            topic_id = java("create", topic=topic)["topic_id"]
            s.event("created", topic_id)
            java("producer", "p", settings=java.settings("anew-producer", **{"linger.ms": "100", "enable.idempotence": "false"}))
            # Constant timestamps, as applications that replay have them.
            send_stamped(s, java, "p", "anew-producer", stamped(s.records(topic, 3), moment, 0), topic_life=life)
            java("close", "p")
            read_all(s, java, [topic], 3, "grp-anew")
            if life == 0:
                java("delete", topic=topic)
                wait_for("the deletion", 20, lambda: "error" in java("describe", topic=topic, may_fail=True))
                time.sleep(1)
        # The truth names a topic by its name: either id is right.
        s.topic(topic, None)


def mirrored(out, cluster, java):
    topic = "mirrored"
    with Cluster(first=5) as second, Java(second.bootstrap) as java_b:
        ids = [one("create", topic=topic)["topic_id"] for one in (java, java_b)]
        with Scenario("coord-mirrored", "one topic in two clusters: same name, partitions, offsets, timestamps and producer ids", *FACTS, out) as s:
            s.topic(topic, None)
            s.event("topic ids", " ".join(ids))
            s.event("cluster ids", f"{cluster.cluster_id} {second.cluster_id}")
            records = stamped(s.records(topic, 4))
            for one, group in ((java, "grp-source"), (java_b, "grp-mirror")):
                one("producer", "p", settings=one.settings("mirror-producer", **{"linger.ms": "200", "enable.idempotence": "false"}))
                send_stamped(s, one, "p", "mirror-producer", records)
                read_all(s, one, [topic], 4, "grp-mirror", f"{group}-consumer")
                one("close", "p")


def converted(out):
    """A broker that still talks to clients of 0.10: what they send is stored in the new format, what they fetch comes in the old one."""
    import kafka
    from sasl import kafka_python_records, kafka_python_send

    with Cluster(version="3.9.2") as cluster, Java(cluster.bootstrap) as java:
        warm(java)
        topics = ("converted-up", "converted-down")
        ids = {topic: java("create", topic=topic)["topic_id"] for topic in topics}
        old = {"bootstrap_servers": cluster.bootstrap, "api_version": (0, 10, 2)}
        with Scenario("coord-converted", "a 0.10 producer with a new consumer, a new producer with a 0.10 consumer (which gets no headers)",
                      "kafka-python", kafka.__version__, "3.9.2", out) as s:
            for topic, topic_id in ids.items():
                s.topic(topic, topic_id)
            producer = kafka.KafkaProducer(client_id="old-producer", linger_ms=100, **old)
            records = stamped(s.records("converted-up", 4, contexts=False, partition=0))
            s.produced("old-producer", records, kafka_python_send(producer, records))
            producer.close()
            read_all(s, java, ["converted-up"], 4, "grp-new", "new-consumer")
            java("producer", "p", settings=java.settings("new-producer", **{"linger.ms": "100"}))
            send_stamped(s, java, "p", "new-producer", stamped(s.records("converted-down", 4)))
            java("close", "p")
            consumer = kafka.KafkaConsumer("converted-down", client_id="old-consumer", group_id="grp-old", auto_offset_reset="earliest",
                                           enable_auto_commit=False, consumer_timeout_ms=30000, **old)
            s.consumed("grp-old", "old-consumer", kafka_python_records(consumer, 4))
            consumer.commit()
            consumer.close()


SCENARIOS = {
    "coord-log-append-time": log_append_time, "coord-recompressed": recompressed, "coord-recompressed-kafkajs": recompressed_kafkajs,
    "coord-transactions": transactions, "coord-compacted": compacted, "coord-recreated": recreated, "coord-mirrored": mirrored,
    "coord-retry-duplicate": retried, "coord-retry-twice-stored": retried, "coord-converted": converted,
    "coord-retry-late-duplicate": late_duplicate,
}

# Those that want a broker of their own.
ALONE = (retried, converted, late_duplicate)


def record(out, wanted):
    scenarios = [SCENARIOS[name] for name in wanted]
    rest = [scenario for scenario in scenarios if scenario not in ALONE]
    for scenario in ALONE:
        if scenario in scenarios:
            scenario(out)
    if rest:
        with Cluster() as cluster, Java(cluster.bootstrap) as java:
            warm(java)
            for scenario in rest:
                scenario(out, cluster, java)


def warm(java):
    """Makes the internal topics, so that no capture has their making in it."""
    java("create", topic="warm")
    java("producer", "warm", settings=java.settings("warm", **{"transactional.id": "warm"}))
    java("init", "warm")
    java("close", "warm")
    java("consumer", "warm", topics=["warm"], settings=java.settings("warm", **{"group.id": "warm"}))
    java("poll", "warm", count=1, seconds=2)
    java("close", "warm")
