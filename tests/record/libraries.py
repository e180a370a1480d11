"""Client libraries as they are now: records with and without a context, sent by each and read by a group of the same library."""

import asyncio
import importlib.metadata
import json
import pathlib
import re
import subprocess

from coordinates import node, warm
from lab import CACHE, HERE, Cluster, Java, Scenario
from sasl import kafka_python_records, kafka_python_send


def go(job):
    """Builds and runs clients/go."""
    program = CACHE / "record-go"
    subprocess.run(["go", "build", "-o", program, "."], cwd=HERE / "clients/go", check=True)
    run = subprocess.run([program, json.dumps(job)], capture_output=True, text=True, timeout=90)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout)


def go_library(name, module):
    def send(bootstrap, client_id, records):
        told = go({"library": name, "bootstrap": bootstrap, "client_id": client_id, "topic": records[0]["topic"], "records": [
            {**record, "value_len": 0} for record in records]})
        return [{key: one[key] for key in ("partition", "offset", "timestamp") if key in one} for one in told]

    def read(bootstrap, client_id, group, topic, count):
        return go({"library": name, "bootstrap": bootstrap, "client_id": client_id, "topic": topic, "group": group, "count": count})

    version = re.search(rf"{re.escape(module)} v(\S+)", (HERE / "clients/go/go.mod").read_text())[1]
    return module.split("/", 1)[1], version, send, read


def node_library(name, package):
    def send(bootstrap, client_id, records):
        told = node({"library": name, "bootstrap": bootstrap, "client_id": client_id, "topic": records[0]["topic"], "records": records})
        return [{"partition": 0, "offset": int(told[0]["baseOffset"]) + index} for index in range(len(records))]

    def read(bootstrap, client_id, group, topic, count):
        return node({"library": name, "bootstrap": bootstrap, "client_id": client_id, "topic": topic, "group": group, "count": count})

    versions = json.loads((HERE / "clients/package.json").read_text())["dependencies"]
    return package, versions[package], send, read


def kafka_python():
    import kafka

    def send(bootstrap, client_id, records):
        producer = kafka.KafkaProducer(bootstrap_servers=bootstrap, client_id=client_id, linger_ms=100)
        told = kafka_python_send(producer, records)
        producer.close()
        return told

    def read(bootstrap, client_id, group, topic, count):
        consumer = kafka.KafkaConsumer(topic, bootstrap_servers=bootstrap, client_id=client_id, group_id=group, auto_offset_reset="earliest",
                                       enable_auto_commit=False, consumer_timeout_ms=30000)
        records = kafka_python_records(consumer, count)
        consumer.commit()
        consumer.close()
        return records

    return "kafka-python", kafka.__version__, send, read


def aiokafka():
    import aiokafka as library

    async def send_all(bootstrap, client_id, records):
        producer = library.AIOKafkaProducer(bootstrap_servers=bootstrap, client_id=client_id, linger_ms=100)
        await producer.start()
        futures = [await producer.send(r["topic"], r["value"].encode(), r["key"].encode(), partition=0,
                                       headers=[(name, value.encode()) for name, value in r["headers"]]) for r in records]
        told = [await future for future in futures]
        await producer.stop()
        return [{"partition": one.partition, "offset": one.offset, "timestamp": one.timestamp} for one in told]

    async def read_all(bootstrap, client_id, group, topic, count):
        consumer = library.AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, client_id=client_id, group_id=group, auto_offset_reset="earliest",
                                            enable_auto_commit=False)
        await consumer.start()
        records = []
        while len(records) < count:
            message = await asyncio.wait_for(consumer.getone(), 30)
            records.append({
                "topic": message.topic, "partition": message.partition, "offset": message.offset, "timestamp": message.timestamp,
                "key": message.key.decode(), "value_len": len(message.value), "headers": [[name, value.decode()] for name, value in message.headers],
            })
        await consumer.commit()
        await consumer.stop()
        return records

    return "aiokafka", importlib.metadata.version("aiokafka"), lambda *args: asyncio.run(send_all(*args)), lambda *args: asyncio.run(read_all(*args))


SCENARIOS = {
    "lib-kafka-python": kafka_python, "lib-aiokafka": aiokafka,
    "lib-kafkajs": lambda: node_library("kafkajs", "kafkajs"), "lib-platformatic": lambda: node_library("platformatic", "@platformatic/kafka"),
    "lib-sarama": lambda: go_library("sarama", "github.com/IBM/sarama"), "lib-kafka-go": lambda: go_library("kafka-go", "github.com/segmentio/kafka-go"),
    "lib-franz-go": lambda: go_library("franz-go", "github.com/twmb/franz-go"),
}


def record(out, wanted):
    with Cluster() as cluster, Java(cluster.bootstrap) as java:
        warm(java)
        for name in wanted:
            library, version, send, read = SCENARIOS[name]()
            topic_id = java("create", topic=name)["topic_id"]
            with Scenario(name, "records with and without a context, at the library's current version", library, version, "4.4.0", pathlib.Path(out)) as s:
                s.topic(name, topic_id)
                short = name.removeprefix("lib-")
                records = s.records(name, 6)
                s.produced(f"{short}-producer", records, send(cluster.bootstrap, f"{short}-producer", records))
                s.consumed(f"grp-{short}", f"{short}-consumer", read(cluster.bootstrap, f"{short}-consumer", f"grp-{short}", name, 6))
