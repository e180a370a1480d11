"""Clients that were new years ago, and what other recordings lack of those of today: transactions, a subscription by pattern."""

import json
import os
import pathlib
import subprocess
import sys

from coordinates import warm
from lab import CACHE, HERE, Cluster, Java, Scenario, compiled

# Codecs that old libraries do not bring along.
CODECS = ["python-snappy==0.7.3", "cramjam==2.14.0", "lz4==4.4.5", "zstandard==0.25.0", "async-timeout==5.0.1", "typing-extensions==4.16.0", "packaging==26.3"]


def installed(name, packages):
    """A folder of the cache with these packages and nothing else."""
    folder = CACHE / f"record-{name}"
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.new")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", new, *packages], check=True)
        new.rename(folder)
    return folder


def python(library, version, **more):
    """Sends and reads by a version of a library."""
    path = f"{installed(f'{library}-{version}', [f'{library}=={version}'])}{os.pathsep}{installed('codecs', CODECS)}"

    def run(job):
        job = {"library": library, **job, **more}
        run = subprocess.run([sys.executable, HERE / "clients/versions.py"], input=json.dumps(job), env={**os.environ, "PYTHONPATH": path},
                             capture_output=True, text=True, timeout=90)
        if run.returncode:
            raise RuntimeError(run.stderr[-2000:])
        return json.loads(run.stdout)

    def send(bootstrap, client_id, records):
        return run({"bootstrap": bootstrap, "client_id": client_id, "records": records})

    def read(bootstrap, client_id, group, topic, count):
        return run({"bootstrap": bootstrap, "client_id": client_id, "group": group, "topic": topic, "count": count})

    return library, version, send, read


def jar(version):
    """The folder of the cache with the client's classes."""
    folder = CACHE / f"record-kafka-clients-{version}"
    if not folder.exists():
        what = f"-Dartifact=org.apache.kafka:kafka-clients:{version}"
        subprocess.run(["mvn", "-q", "-B", "dependency:copy", what, f"-DoutputDirectory={folder}"], check=True)
    return folder


class OldJava(Java):
    """The driver on the classes of an older client: what it has not is not asked of it."""

    def __init__(self, bootstrap, version):
        jars = CACHE / "kafka-4.4.0"
        rest = [str(jar) for jar in sorted(jars.glob("*.jar")) if not jar.name.startswith("kafka")]
        path = os.pathsep.join([f"{jar(version)}/*", *rest, str(compiled("Driver", f"{jars}/*"))])
        # Verified, the driver would want classes of share groups before it is asked for them.
        flags = ["-Xmx300m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote"]
        self.bootstrap = bootstrap
        self.log = open(os.environ.get("RECORDING_LOG", os.devnull), "ab")
        self.process = subprocess.Popen(["java", *flags, "-cp", path, "Driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)


def old_java(version, codec):
    jar(version)

    def send(bootstrap, client_id, records):
        with OldJava(bootstrap, version) as java:
            java("producer", "p", settings=java.settings(client_id, **{"linger.ms": "50", "compression.type": codec}))
            java("send", "p", records=records)
            return java("flush", "p")["results"]

    def read(bootstrap, client_id, group, topic, count):
        with OldJava(bootstrap, version) as java:
            java("consumer", "c", topics=[topic], settings=java.settings(client_id, **{"group.id": group}))
            records = java("poll", "c", count=count, seconds=30)["records"]
            java("commit", "c")
            java("close", "c")
            return records

    return "java kafka-clients", version, send, read


# The broker, and the client.
SCENARIOS = {
    "version-java-241": ("4.4.0", lambda: old_java("2.4.1", "zstd")),
    "version-confluent-230": ("4.4.0", lambda: python("confluent-kafka", "2.3.0", codec="zstd")),
    "version-kafka-python-147": ("3.9.2", lambda: python("kafka-python", "1.4.7", codec="lz4")),
    "version-aiokafka-010": ("3.9.2", lambda: python("aiokafka", "0.10.0", codec="snappy")),
    "confluent-txn": ("4.4.0", lambda: python("confluent-kafka", "2.16.1", transaction="confluent-txn")),
    "confluent-pattern": ("4.4.0", lambda: python("confluent-kafka", "2.16.1", by_pattern=True)),
    "aiokafka-txn": ("4.4.0", lambda: python("aiokafka", "0.14.0", codec="gzip", transaction="aiokafka-txn")),
}


def fetch(wanted):
    """Clients come from outside: before there is nothing but loopback."""
    for name in wanted:
        SCENARIOS[name][1]()


def record(out, wanted):
    for broker in ("3.9.2", "4.4.0"):
        names = [name for name in wanted if SCENARIOS[name][0] == broker]
        if not names:
            continue
        with Cluster(version=broker) as cluster, Java(cluster.bootstrap) as java:
            warm(java)
            for name in names:
                library, version, send, read = SCENARIOS[name][1]()
                topic_id = java("create", topic=name, partitions=2)["topic_id"]
                with Scenario(name, f"{library} {version} with Kafka {broker}, two partitions", library, version, broker, pathlib.Path(out)) as s:
                    s.topic(name, topic_id, 2)
                    records = s.records(name, 12)
                    s.produced(f"{name}-producer", records, send(cluster.bootstrap, f"{name}-producer", records))
                    s.consumed(f"grp-{name}", f"{name}-consumer", read(cluster.bootstrap, f"{name}-consumer", f"grp-{name}", name, 12))
