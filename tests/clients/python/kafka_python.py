"""A Kafka application of the tests over kafka-python: one JSON object says what to do, one line per record says what came of it."""

import os
import sys
import time

import application
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError


def patiently(make):
    """Its clients fail at once when the broker that they ask first is being restarted."""
    for left in range(50, -1, -1):
        try:
            return make()
        except KafkaError as error:
            print(f"not yet: {error!r}", file=sys.stderr)
            if left == 0:
                raise


def member(job, settings):
    """A consumer that knows its topic before it joins its group. Without it, of 1,200 that met a busy broker 14 never got a record (3.0.12,
    no tracer near): they were assigned the partitions of a topic that they knew nothing of yet, which are none."""
    consumer = KafkaConsumer(job["topic"], **settings, group_id=job["group"], auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.partitions_for_topic(job["topic"])
    return consumer


def produce_until(job, settings):
    rounds = application.Rounds(job)

    def answered(line, **told):
        application.tell({**line, "to_us": application.now_us(), **told})

    for codec in rounds.codecs():
        compression = None if codec == "none" else codec
        producer = patiently(lambda: KafkaProducer(**settings, acks="all", retries=1000, compression_type=compression, linger_ms=job["linger_ms"]))
        while rounds.goes_on():
            key, value, text, line = rounds.record(codec)
            headers = [] if text is None else [("traceparent", text.encode())]
            future = patiently(lambda: producer.send(job["topic"], value, key, headers=headers))
            future.add_callback(lambda answer, line=line: answered(line, partition=answer.partition, offset=answer.offset))
            future.add_errback(lambda error, line=line: answered(line, error=repr(error)))
        producer.flush()
        producer.close()


def consume_until(job, settings):
    rounds = application.Rounds(job)
    for _ in rounds.codecs():
        consumer = patiently(lambda: member(job, settings))
        while rounds.goes_on():
            try:
                polled = consumer.poll(200)
            except KafkaError as error:
                print(f"{job['client_id']}: {error!r}", file=sys.stderr)
                continue
            for message in (message for messages in polled.values() for message in messages):
                text = dict(message.headers).get("traceparent")
                application.received(job, (message.partition, message.offset, None if text is None else text.decode()))
            if polled:
                try:
                    consumer.commit()
                except KafkaError as error:
                    # Amid a rebalance: the records come again, to whom they belong then.
                    print(f"{job['client_id']} could not commit: {error!r}", file=sys.stderr)
        consumer.close()


def produce(job, settings):
    codec = None if job["codec"] == "none" else job["codec"]
    producer = KafkaProducer(**settings, linger_ms=job["linger_ms"], compression_type=codec)
    start = time.monotonic()
    sent = []
    for index in range(job["records"]):
        text = application.context(index, job["context_every"], job["unsampled_every"])
        if job["rate"] > 0:
            wait = start + index / job["rate"] - time.monotonic()
            if wait > 0.001:
                time.sleep(wait)
        headers = None if text is None else [("traceparent", text.encode())]
        sent.append((producer.send(job["topic"], b"x" * job["value_bytes"], b"key-%d" % (index % 16), headers=headers), text))
    records = []
    for future, text in sent:
        told = future.get(job["timeout_seconds"])
        records.append((told.partition, told.offset, text))
    producer.close()
    return records


def consume(job, settings):
    consumer = member(job, settings)
    records = []
    deadline = time.monotonic() + job["timeout_seconds"]
    while len(records) < job["records"]:
        if time.monotonic() > deadline:
            sys.exit(f"consumed {len(records)} of {job['records']} records in time")
        polled = consumer.poll(timeout_ms=200)
        for message in (message for messages in polled.values() for message in messages):
            headers = dict(message.headers)
            text = headers.get("traceparent")
            records.append((message.partition, message.offset, None if text is None else text.decode()))
        if polled:
            consumer.commit()
    consumer.close()
    return records


def main():
    job = application.job()
    settings = {"bootstrap_servers": job["bootstrap"].split(","), "client_id": job["client_id"], **job["properties"]}
    if os.environ.get("TLS_LIBRARY") == "gnutls":
        import gnutls_ssl

        files = [settings.pop(name, None) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")]
        settings["ssl_context"] = gnutls_ssl.Context(*files)
    if job["mode"].endswith("_until"):
        (produce_until if job["mode"] == "produce_until" else consume_until)(job, settings)
        return
    records = produce(job, settings) if job["mode"] == "produce" else consume(job, settings)
    for partition, offset, text in records:
        application.tell({"partition": partition, "offset": offset, "traceparent": text})


main()
