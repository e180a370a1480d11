"""Groups of every kind, and what they commit."""


from coordinates import read_all, warm
from cluster import produce
from lab import Cluster, Java, Scenario, streams

FACTS = ("java kafka-clients", "4.4.0", "4.4.0")


def share(out, cluster, java):
    topic = "share-redelivery"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("share-redelivery", "a share group accepts, releases and rejects; what was released comes again", *FACTS, out) as s:
        s.topic(topic, topic_id)
        java("alter", kind="GROUP", resource="grp-share", config={"share.auto.offset.reset": "earliest"})
        java("producer", "p", settings=java.settings("share-producer", **{"linger.ms": "100"}))
        produce(s, java, "p", "share-producer", s.records(topic, 6))
        settings = java.settings("share-consumer", **{"group.id": "grp-share", "share.acknowledgement.mode": "explicit"})
        java("sharer", "c", topics=[topic], settings=settings)
        for types in (["ACCEPT", "RELEASE", "REJECT"], ["RELEASE", "ACCEPT"], ["ACCEPT"]):
            records = java("share_poll", "c", seconds=30)["records"]
            s.event("polled, delivery counts", " ".join(f"{r['offset']}:{r.pop('delivery_count', None)}" for r in records))
            s.consumed("grp-share", "share-consumer", records)
            # The six lie in one batch, and batches are sent whole.
            s.skipped("grp-share", "share-consumer", topic, 0, sorted(set(range(6)) - {r["offset"] for r in records}), "not_acquired")
            s.event(f"acknowledged in turns as {types}", str(java("acknowledge", "c", types=types)["failures"]))
        java("close", "c")
        java("close", "p")


def share_implicit(out, cluster, java):
    topic = "share-implicit"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("share-implicit", "a share group whose members acknowledge by polling again: the acknowledgements ride on ShareFetch", *FACTS, out) as s:
        s.topic(topic, topic_id)
        java("alter", kind="GROUP", resource="grp-implicit", config={"share.auto.offset.reset": "earliest"})
        java("producer", "p", settings=java.settings("implicit-producer", **{"linger.ms": "100"}))
        produce(s, java, "p", "implicit-producer", s.records(topic, 3))
        java("sharer", "c", topics=[topic], settings=java.settings("implicit-consumer", **{"group.id": "grp-implicit"}))
        for lot in range(2):
            records = java("share_poll", "c", seconds=30)["records"]
            s.consumed("grp-implicit", "implicit-consumer", [{key: value for key, value in r.items() if key != "delivery_count"} for r in records])
            if lot == 0:
                produce(s, java, "p", "implicit-producer", s.records(topic, 3))
        java("share_poll", "c", seconds=2)
        java("close", "c")
        java("close", "p")


def crash(out, cluster, java):
    topic = "crash"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("group-crash", "a member ends without a commit; the next one is given the same records and two more", *FACTS, out) as s:
        s.topic(topic, topic_id)
        java("producer", "p", settings=java.settings("crash-producer", **{"linger.ms": "100"}))
        produce(s, java, "p", "crash-producer", s.records(topic, 4))
        java("consumer", "c", topics=[topic], settings=java.settings("crash-first", **{"group.id": "grp-crash"}))
        s.consumed("grp-crash", "crash-first", java("poll", "c", count=4, seconds=30)["records"])
        java("close", "c")
        produce(s, java, "p", "crash-producer", s.records(topic, 2))
        java("close", "p")
        read_all(s, java, [topic], 6, "grp-crash", "crash-second")


def kip848(out, cluster, java):
    topic = "kip848-static"
    topic_id = java("create", topic=topic, partitions=2)["topic_id"]
    with Scenario("group-kip848-static", "a KIP-848 group: a static member leaves for a moment and comes back", *FACTS, out) as s:
        s.topic(topic, topic_id, 2)
        java("producer", "p", settings=java.settings("kip848-producer", **{"linger.ms": "100"}))
        for _ in range(2):
            produce(s, java, "p", "kip848-producer", s.records(topic, 2, partition=0) + s.records(topic, 2, partition=1))
            read_all(s, java, [topic], 4, "grp-kip848", "kip848-consumer", group_protocol="consumer", group_instance_id="static-1")
        java("close", "p")


def static_members(out, cluster, java):
    topic = "classic-static"
    topic_id = java("create", topic=topic, partitions=2)["topic_id"]
    with Scenario("group-classic-static", "a classic group with a static member that is stopped and started again without a rebalance", *FACTS, out) as s:
        s.topic(topic, topic_id, 2)
        java("producer", "p", settings=java.settings("static-producer", **{"linger.ms": "100"}))
        for _ in range(2):
            produce(s, java, "p", "static-producer", s.records(topic, 2, partition=0) + s.records(topic, 2, partition=1))
            read_all(s, java, [topic], 4, "grp-static", "static-consumer", group_instance_id="static-1")
        java("close", "p")


def two_groups(out, cluster, java):
    """One client id, one host, two groups at once: whose a Fetch is cannot be told, and must not be guessed."""
    topic = "two-groups"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("group-two-of-one-client-id", "two groups read at once under one client id from one host", *FACTS, out) as s:
        s.topic(topic, topic_id)
        s.truth["group_seen_late"] = True
        java("producer", "p", settings=java.settings("two-producer", **{"linger.ms": "100"}))
        groups = ("grp-one", "grp-two")
        for group in groups:
            java("consumer", group, topics=[topic], settings=java.settings("same-id", **{"group.id": group}))
            java("poll", group, count=1, seconds=3)
        produce(s, java, "p", "two-producer", s.records(topic, 4))
        for group in groups:
            s.consumed(group, "same-id", java("poll", group, count=4, seconds=30)["records"])
            java("commit", group)
        for name in (*groups, "p"):
            java("close", name)


def streams_like(out, cluster, java):
    source, target = "eos-in", "eos-out"
    ids = {topic: java("create", topic=topic)["topic_id"] for topic in (source, target)}
    with Scenario("group-consume-transform-produce", "exactly-once: each round reads, sends what it made of it and commits both in one transaction; "
                  "one round is aborted and done again", *FACTS, out) as s:
        for topic, topic_id in ids.items():
            s.topic(topic, topic_id)
        java("producer", "p", settings=java.settings("eos-source", **{"linger.ms": "100"}))
        java("producer", "t", settings=java.settings("eos-producer", **{"transactional.id": "eos-1", "linger.ms": "100"}))
        java("init", "t")
        java("consumer", "c", topics=[source], settings=java.settings("eos-consumer", **{"group.id": "grp-eos", "isolation.level": "read_committed"}))
        aborted = []
        for round_ in range(3):
            if round_ != 2:
                produce(s, java, "p", "eos-source", s.records(source, 3))
            records = java("poll", "c", count=3, seconds=30)["records"]
            s.consumed("grp-eos", "eos-consumer", records)
            java("begin", "t")
            # What comes out carries the context of what went in.
            made = [{"topic": target, "key": record["key"], "value": "made of " + record["key"], "headers": record["headers"]} for record in records]
            told = produce(s, java, "t", "eos-producer", made)
            java("send_offsets", "t", consumer="c", offsets=[{"topic": source, "offset": records[-1]["offset"] + 1}])
            if round_ == 1:
                java("abort_transaction", "t")
                aborted = [one["offset"] for one in told]
                java("seek", "c", topic=source, offset=records[0]["offset"])
            else:
                java("commit_transaction", "t")
        for name in ("c", "t", "p"):
            java("close", name)
        read_all(s, java, [target], 6, "grp-eos-check", "eos-check", isolation_level="read_committed")
        s.skipped("grp-eos-check", "eos-check", target, 0, aborted, "aborted")


def streams_group(out, cluster, java):
    """Kafka Streams with its own group protocol: one thread, which reads one topic and writes another."""
    source, target, app = "streams-in", "streams-out", "grp-streams"
    ids = {topic: java("create", topic=topic, partitions=2)["topic_id"] for topic in (source, target)}
    with Scenario("group-streams", "KIP-1071: Kafka Streams as member of a streams group, at least once", "java kafka-streams", "4.4.0", "4.4.0", out) as s:
        for topic, topic_id in ids.items():
            s.topic(topic, topic_id, 2)
        java("producer", "p", settings=java.settings("streams-source", **{"linger.ms": "100"}))
        produce(s, java, "p", "streams-source", [record for partition in (0, 1) for record in s.records(source, 3, partition=partition)])
        java("close", "p")
        settings = java.settings("streams-app", **{
            "application.id": app, "group.protocol": "streams", "auto.offset.reset": "earliest", "commit.interval.ms": "400", "linger.ms": "100",
            "state.dir": cluster.scratch.name, "statestore.cache.max.bytes": "0"})
        seen = streams({"settings": settings, "from": source, "to": target, "count": 6})
        s.consumed(app, "streams-app-StreamThread-1-consumer", seen)
        java("consumer", "c", topics=[target], settings=java.settings("streams-check", **{"group.id": "grp-streams-check"}))
        made = java("poll", "c", count=6, seconds=30)["records"]
        java("close", "c")
        s.consumed("grp-streams-check", "streams-check", made)
        # Where they came to lie is known from those that read them: the application is not told.
        sent = [{"topic": target, "key": r["key"], "value": "x" * r["value_len"], "headers": r["headers"]} for r in made]
        places = [{"partition": r["partition"], "offset": r["offset"], "timestamp": r["timestamp"]} for r in made]
        s.produced("streams-app-StreamThread-1-producer", sent, places, offset_source="from consumer")


def commits(out, cluster, java):
    topic = "commits"
    topic_id = java("create", topic=topic)["topic_id"]
    with Scenario("group-commits", "commits that move, that repeat, that go back, and one that is refused because the member is no more", *FACTS, out) as s:
        s.topic(topic, topic_id)
        java("producer", "p", settings=java.settings("commit-producer", **{"linger.ms": "100"}))
        produce(s, java, "p", "commit-producer", s.records(topic, 4))
        java("consumer", "c", topics=[topic], settings=java.settings("commit-consumer", **{"group.id": "grp-commits"}))
        s.consumed("grp-commits", "commit-consumer", java("poll", "c", count=4, seconds=30)["records"])
        for offset in (2, 4, 4, 1):
            java("commit", "c", offsets=[{"topic": topic, "offset": offset}])
            s.event("committed", str(offset))
        # Without subscribing it is no member of a group that has members: refused.
        java("consumer", "other", topic=topic, settings=java.settings("commit-other", **{"group.id": "grp-commits"}))
        s.event("refused", java("commit", "other", offsets=[{"topic": topic, "offset": 3}], may_fail=True)["error"])
        for name in ("other", "c", "p"):
            java("close", name)


SCENARIOS = {
    "share-redelivery": share, "share-implicit": share_implicit, "group-crash": crash, "group-kip848-static": kip848, "group-classic-static": static_members, "group-two-of-one-client-id": two_groups,
    "group-consume-transform-produce": streams_like, "group-commits": commits, "group-streams": streams_group,
}


def record(out, wanted):
    with Cluster() as cluster, Java(cluster.bootstrap) as java:
        warm(java)
        for name in wanted:
            SCENARIOS[name](out, cluster, java)
