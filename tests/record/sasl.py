"""Authentication: with Kafka's headers around the tokens, with bare tokens after SaslHandshake v0, and GSSAPI's bare first token of old."""

import socket
import struct
import threading

from coordinates import answers, produce, read_all, warm
from lab import BROKER_PORT, Cluster, Java, Scenario, host

PLAIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="alice" password="{}";'
SCRAM = 'org.apache.kafka.common.security.scram.ScramLoginModule required username="bob" password="bob-secret";'


def record(out, wanted):
    if {"sasl-scram", "sasl-handshake-v0", "sasl-handshake-v0-scram"} & set(wanted):
        cluster = Cluster(listener="SASL_PLAINTEXT")
        cluster.answers = lambda number: answers((host(number), 9095))
        with cluster, Java(f"{host(1)}:9095") as java:
            warm(java)
            java("scram", user="bob", password="bob-secret")
            if "sasl-scram" in wanted:
                scram(out, cluster, java)
            if "sasl-handshake-v0" in wanted:
                handshake_v0(out, cluster, java, "sasl-handshake-v0", "PLAIN", "alice")
            if "sasl-handshake-v0-scram" in wanted:
                handshake_v0(out, cluster, java, "sasl-handshake-v0-scram", "SCRAM-SHA-256", "bob")
    if "sasl-gssapi-first" in wanted:
        gssapi_first(out)


def scram(out, cluster, java):
    topic = "sasl-scram"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("sasl-scram", "SCRAM-SHA-256 and PLAIN, one PLAIN login refused and tried again by nobody", "java kafka-clients", "4.4.0", "4.4.0", out,
                  (BROKER_PORT,)) as s:
        s.topic(topic, topic_id)
        common = {"bootstrap.servers": f"{host(1)}:{BROKER_PORT}", "security.protocol": "SASL_PLAINTEXT"}
        java("producer", "p", settings=java.settings("scram-producer", **{"sasl.mechanism": "SCRAM-SHA-256", "sasl.jaas.config": SCRAM}) | common)
        produce(s, java, "p", "scram-producer", s.records(topic, 4))
        java("close", "p")
        wrong = {"sasl.mechanism": "PLAIN", "sasl.jaas.config": PLAIN.format("wrong"), "max.block.ms": "3000"}
        java("producer", "wrong", settings=java.settings("wrong-producer", **wrong) | common)
        java("send", "wrong", records=s.records(topic, 1), may_fail=True)
        java("close", "wrong")
        settings = java.settings("plain-consumer", **{"group.id": "grp-sasl", "sasl.mechanism": "PLAIN", "sasl.jaas.config": PLAIN.format("alice-secret")})
        java("consumer", "c", topics=[topic], settings=settings | common)
        s.consumed("grp-sasl", "plain-consumer", java("poll", "c", count=4, seconds=30)["records"])
        java("commit", "c")
        java("close", "c")


def kafka_python_records(consumer, count):
    records = []
    for message in consumer:
        records.append({
            "topic": message.topic, "partition": message.partition, "offset": message.offset, "timestamp": message.timestamp,
            "key": None if message.key is None else message.key.decode(), "value_len": -1 if message.value is None else len(message.value),
            "headers": [[name, None if value is None else value.decode()] for name, value in message.headers],
        })
        if len(records) == count:
            return records
    raise TimeoutError(f"{len(records)} of {count} records in time")


def kafka_python_send(producer, records):
    futures = [
        producer.send(record["topic"], record["value"].encode(), record["key"].encode(), partition=record.get("partition"),
                      headers=[(name, value.encode()) for name, value in record["headers"]], timestamp_ms=record.get("timestamp"))
        for record in records
    ]
    producer.flush(30)
    told = [future.get(30) for future in futures]
    return [{"partition": one.partition, "offset": one.offset, "timestamp": one.timestamp} for one in told]


def handshake_v0(out, cluster, java, topic, mechanism, user):
    """kafka-python as for Kafka 0.11: SaslHandshake v0, then the tokens with nothing but their size in front."""
    import kafka

    topic_id = java("create", topic=topic)["topic_id"]
    settings = {"bootstrap_servers": f"{host(1)}:{BROKER_PORT}", "api_version": (0, 11), "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": mechanism, "sasl_plain_username": user, "sasl_plain_password": f"{user}-secret"}
    with Scenario(topic, f"SaslHandshake v0 and bare tokens of {mechanism}", "kafka-python", kafka.__version__, "4.4.0", out, (BROKER_PORT,)) as s:
        s.topic(topic, topic_id)
        producer = kafka.KafkaProducer(client_id="v0-producer", **settings)
        records = s.records(topic, 4, partition=0)
        s.produced("v0-producer", records, kafka_python_send(producer, records))
        producer.close()
        consumer = kafka.KafkaConsumer(topic, client_id="v0-consumer", group_id="grp-v0", auto_offset_reset="earliest", enable_auto_commit=False,
                                       consumer_timeout_ms=30000, **settings)
        s.consumed("grp-v0", "v0-consumer", kafka_python_records(consumer, 4))
        consumer.commit()
        consumer.close()


def gssapi_first(out):
    """A proxy speaks like a broker that takes GSSAPI's tokens before any Kafka request, another one like such a client; real Kafka follows."""
    hidden, shown, inner = (host(1), 9192), (host(9), BROKER_PORT), (host(9), 9999)
    properties = {"listeners": f"PLAINTEXT://{hidden[0]}:{hidden[1]},CONTROLLER://{hidden[0]}:9093",
                  "advertised.listeners": f"PLAINTEXT://{inner[0]}:{inner[1]}"}
    cluster = Cluster(properties=properties)
    cluster.answers = lambda number: answers(hidden)
    tokens = [b"\x60\x81\x9e" + bytes(range(158)), b"\x60\x40" + bytes(64), b"\x05\x04\x05\xff" + bytes(60)]

    def client_side(near, far):
        for token in tokens[::2]:
            far.sendall(struct.pack("!i", len(token)) + token)
            receive(far)

    def broker_side(near, far):
        for token in tokens[:2]:
            receive(near)
            near.sendall(struct.pack("!i", len(token)) + token[:1] + token[1:])

    with cluster:
        servers = [forward(inner, shown, client_side), forward(shown, hidden, broker_side)]
        with Java(f"{inner[0]}:{inner[1]}") as java:
            warm(java)
            topic = "sasl-gssapi-first"
            topic_id = java("create", topic=topic)["topic_id"]
            with Scenario("sasl-gssapi-first", "raw GSSAPI tokens (hand-made) before the first Kafka request, the rest is real", "java kafka-clients", "4.4.0",
                          "4.4.0", out, (BROKER_PORT,)) as s:
                s.topic(topic, topic_id)
                java("producer", "p", settings=java.settings("gssapi-producer"))
                produce(s, java, "p", "gssapi-producer", s.records(topic, 4))
                java("close", "p")
                read_all(s, java, [topic], 4, "grp-gssapi", "gssapi-consumer")
        for server in servers:
            server.close()


def receive(source):
    """One token with its size."""
    size = struct.unpack("!i", source.recv(4, socket.MSG_WAITALL))[0]
    return source.recv(size, socket.MSG_WAITALL)


def forward(listen, target, greet):
    """Forwards connections once `greet` has had its say with both ends."""
    server = socket.create_server(listen)

    def pipe(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve(near):
        try:
            far = socket.create_connection(target)
            greet(near, far)
        except (OSError, struct.error):
            near.close()
            return
        threading.Thread(target=pipe, args=(far, near), daemon=True).start()
        pipe(near, far)

    def accept():
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server


SCENARIOS = {"sasl-scram": scram, "sasl-handshake-v0": handshake_v0, "sasl-handshake-v0-scram": handshake_v0, "sasl-gssapi-first": gssapi_first}
