"""A Kafka application of the tests over librdkafka: one JSON object says what to do, one line per record says what came of it."""

import json
import os
import sys
import time

from confluent_kafka import Consumer, KafkaException, Producer


def context(index, every, unsampled_every):
    if every == 0 or index % every != 0:
        return None
    unsampled = unsampled_every != 0 and index // every % unsampled_every == unsampled_every - 1
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-{'00' if unsampled else '01'}"


def produce(job, settings):
    settings.setdefault("compression.type", job["codec"])
    settings.setdefault("linger.ms", job["linger_ms"])
    producer = Producer(settings)
    records = [None] * job["records"]

    def answered(index, text):
        def callback(error, message):
            if error is not None:
                raise KafkaException(error)
            records[index] = (message.partition(), message.offset(), text)

        return callback

    start = time.monotonic()
    for index in range(job["records"]):
        text = context(index, job["context_every"], job["unsampled_every"])
        if job["rate"] > 0:
            wait = start + index / job["rate"] - time.monotonic()
            if wait > 0.001:
                time.sleep(wait)
        headers = None if text is None else {"traceparent": text.encode()}
        producer.produce(job["topic"], b"x" * job["value_bytes"], b"key-%d" % (index % 16), headers=headers, on_delivery=answered(index, text))
        producer.poll(0)
    if producer.flush(job["timeout_seconds"]) != 0:
        sys.exit("some records were not delivered in time")
    return records


def consume(job, settings):
    settings["group.id"] = job["group"]
    settings.setdefault("auto.offset.reset", "earliest")
    settings.setdefault("enable.auto.commit", False)
    consumer = Consumer(settings)
    consumer.subscribe([job["topic"]])
    records = []
    deadline = time.monotonic() + job["timeout_seconds"]
    while len(records) < job["records"]:
        if time.monotonic() > deadline:
            sys.exit(f"consumed {len(records)} of {job['records']} records in time")
        messages = consumer.consume(500, 0.2)
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            headers = dict(message.headers() or [])
            text = headers.get("traceparent")
            records.append((message.partition(), message.offset(), None if text is None else text.decode()))
        if messages:
            consumer.commit(asynchronous=False)
    consumer.close()
    return records


def main():
    job = json.loads(sys.argv[1])
    settings = {"bootstrap.servers": job["bootstrap"], "client.id": job["client_id"], **job["properties"]}
    records = produce(job, settings) if job["mode"] == "produce" else consume(job, settings)
    lines = [json.dumps({"partition": partition, "offset": offset, "traceparent": text}) + "\n" for partition, offset, text in records]
    sys.stdout.write("".join(lines))


main()
