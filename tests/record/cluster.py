"""Three brokers: replication on the same wire, a leader that goes away, a partition that moves, a consumer that reads from a follower."""

import re
import time

from lab import BROKER_PORT, Cluster, Java, Scenario, host, wait_for

SELECTOR = "org.apache.kafka.common.replica.RackAwareReplicaSelector"


def produce(scenario, java, name, client_id, records):
    java("send", name, records=records)
    results = java("flush", name)["results"]
    scenario.produced(client_id, records, results)
    return results


def produce_and_read(scenario, java, topic, count, group):
    """A producer and a group that reads all of it and commits; both stay open."""
    java("producer", "p", settings=java.settings("cluster-producer", acks="all"))
    produce(scenario, java, "p", "cluster-producer", scenario.records(topic, count))
    java("consumer", "c", topics=[topic], settings=java.settings("cluster-consumer", **{"group.id": group}))
    scenario.consumed(group, "cluster-consumer", java("poll", "c", count=count, seconds=30)["records"])
    java("commit", "c")


def leader(java, topic):
    return java("describe", topic=topic)["leaders"][0]


def record(out, wanted):
    facts = ("java kafka-clients", "4.4.0", "4.4.0", out)
    with Cluster(brokers=3, properties={"replica.selector.class": SELECTOR}) as cluster, Java(cluster.bootstrap) as java:
        # The internal topics are made before anything is recorded.
        java("create", topic="warm", partitions=1, replicas=3)
        java("consumer", "warm", topics=["warm"], settings=java.settings("warm", **{"group.id": "warm"}))
        java("poll", "warm", count=1, seconds=3)
        java("close", "warm")
        for name, scenario in SCENARIOS.items():
            if name in wanted:
                scenario(facts, cluster, java)


def replication(facts, cluster, java):
    topic = "cluster-replication"
    topic_id = java("create", topic=topic, partitions=3, replicas=3)["topic_id"]
    with Scenario(topic, "three brokers, three replicas: followers and KRaft voters fetch on the same capture, nobody's consumption", *facts) as s:
        s.topic(topic, topic_id, 3)
        produce_and_read(s, java, topic, 12, "grp-replication")
        java("close", "p")
        java("close", "c")


def follower(facts, cluster, java):
    topic = "cluster-follower"
    topic_id = java("create", topic=topic, assignments=[[1, 3]])["topic_id"]
    with Scenario(topic, "KIP-392: the consumer's rack is the follower's, and it reads there", *facts) as s:
        s.topic(topic, topic_id)
        java("producer", "p", settings=java.settings("cluster-producer", acks="all"))
        produce(s, java, "p", "cluster-producer", s.records(topic, 6))
        java("consumer", "c", topics=[topic], settings=java.settings("rack-consumer", **{"group.id": "grp-follower", "client.rack": "rack-3"}))
        s.consumed("grp-follower", "rack-consumer", java("poll", "c", count=6, seconds=30)["records"])
        # By now it knows its replica; these come from the follower whatever the first ones did.
        produce(s, java, "p", "cluster-producer", s.records(topic, 6))
        s.consumed("grp-follower", "rack-consumer", java("poll", "c", count=6, seconds=30)["records"])
        java("commit", "c")
        java("close", "p")
        java("close", "c")
        s.event("leader, follower that is read", f"{host(1)}:{BROKER_PORT} {host(3)}:{BROKER_PORT}")


def failover(facts, cluster, java):
    topic = "cluster-failover"
    topic_id = java("create", topic=topic, assignments=[[2, 3, 1]])["topic_id"]
    with Scenario(topic, "the leader is stopped between two lots of records, producer and consumer go on with another", *facts) as s:
        s.topic(topic, topic_id)
        produce_and_read(s, java, topic, 5, "grp-failover")
        before = leader(java, topic)
        cluster.stop(before)
        after = wait_for("another leader", 30, lambda: (now := leader(java, topic)) != before and now)
        produce(s, java, "p", "cluster-producer", s.records(topic, 5))
        s.consumed("grp-failover", "cluster-consumer", java("poll", "c", count=5, seconds=40)["records"])
        java("commit", "c")
        java("close", "p")
        java("close", "c")
        s.event("leader before, after", f"{before} {after}")
    cluster.run(before)
    wait_for("the broker again", 60, lambda: cluster.answers(before))
    wait_for("its replicas", 60, lambda: java("describe", topic=topic)["isr"] == [3])


def reassignment(facts, cluster, java):
    topic = "cluster-reassign"
    topic_id = java("create", topic=topic, assignments=[[1, 2]])["topic_id"]
    with Scenario(topic, "the partition moves from brokers 1 and 2 to broker 3 while its producer and consumer believe in broker 1", *facts) as s:
        s.topic(topic, topic_id)
        produce_and_read(s, java, topic, 5, "grp-reassign")
        java("reassign", topic=topic, partition=0, replicas=[3])
        wait_for("the new leader", 30, lambda: leader(java, topic) == 3)
        time.sleep(0.5)  # Broker 1 has to hear of it too.
        records = s.records(topic, 5)
        results = produce(s, java, "p", "cluster-producer", records)
        # Broker 1 refuses the first attempt, as the client logs it: NOT_LEADER_OR_FOLLOWER.
        s.produced("cluster-producer", records, [{"partition": 0, "timestamp": told["timestamp"], "error": 6} for told in results])
        s.consumed("grp-reassign", "cluster-consumer", java("poll", "c", count=5, seconds=40)["records"])
        java("commit", "c")
        java("close", "p")
        java("close", "c")


def rebatched(facts, cluster, java):
    """As `reassignment`, by librdkafka without idempotence: what was refused is put into new batches, together with what came meanwhile."""
    import confluent_kafka

    topic = "cluster-rebatched"
    topic_id = java("create", topic=topic, assignments=[[1, 2]])["topic_id"]
    log = Lines()
    with Scenario(topic, "the partition moves while librdkafka sends without idempotence: refused records come again in other batches than before",
                  "confluent-kafka", confluent_kafka.__version__, *facts[2:]) as s:
        s.topic(topic, topic_id)
        settings = {"linger.ms": 5, "debug": "msg", "logger": log, "retry.backoff.ms": 100, "topic.metadata.refresh.interval.ms": 60000}
        producer = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap, "client.id": "rebatching-producer", **settings})
        records, results = s.records(topic, 60), []

        def told(_, message):
            results.append({"partition": message.partition(), "offset": message.offset(), "timestamp": message.timestamp()[1]})

        for number, record in enumerate(records):
            if number == 20:
                producer.flush(10)
                java("reassign", topic=topic, partition=0, replicas=[3])
                wait_for("the new leader", 30, lambda: leader(java, topic) == 3)
                time.sleep(0.5)
            headers = [(name, value.encode()) for name, value in record["headers"]]
            producer.produce(topic, record["value"].encode(), record["key"].encode(), headers=headers, on_delivery=told)
            producer.poll(0.004)
        producer.flush(30)
        s.produced("rebatching-producer", records, results)
        refused_from = 20
        # What the library logs of its attempts; in order, for a partition's messages are sent in order.
        refused = [int(count) for count in re.findall(r"MessageSet with (\d+) message\(s\) .*?encountered error: Broker: Not leader", log.text())]
        for count in refused:
            lot = slice(refused_from, refused_from + count)
            s.produced("rebatching-producer", records[lot], [{"partition": 0, "timestamp": told["timestamp"], "error": 6} for told in results[lot]])
            refused_from += count
        s.event("refused by the old leader, by request", str(refused))
        java("consumer", "c", topics=[topic], settings=java.settings("cluster-consumer", **{"group.id": "grp-rebatched"}))
        s.consumed("grp-rebatched", "cluster-consumer", java("poll", "c", count=60, seconds=40)["records"])
        java("commit", "c")
        java("close", "c")


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def log(self, _, text, *arguments):
        self.lines.append(text % arguments if arguments else text)

    def text(self):
        return "\n".join(self.lines)


SCENARIOS = {"cluster-replication": replication, "cluster-follower": follower, "cluster-reassign": reassignment, "cluster-failover": failover,
             "cluster-rebatched": rebatched}
