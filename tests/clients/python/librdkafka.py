"""A Kafka application of the tests over librdkafka: one JSON object says what to do, one line per record says what came of it."""

import json
import sys
import time

import application
from application import context
from confluent_kafka import Consumer, KafkaException, Producer


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
            records.append(facts(message))
        if messages:
            consumer.commit(asynchronous=False)
    consumer.close()
    return records


def facts(message):
    text = dict(message.headers() or []).get("traceparent")
    return message.partition(), message.offset(), None if text is None else text.decode()


def produce_until(job, settings):
    rounds = application.Rounds(job)

    def answered(line):
        def callback(error, message):
            told = {"error": str(error)} if error is not None else {"partition": message.partition(), "offset": message.offset()}
            application.tell({**line, "to_us": application.now_us(), **told})

        return callback

    for codec in rounds.codecs():
        producer = Producer({**settings, "compression.type": codec, "linger.ms": job["linger_ms"]})
        while rounds.goes_on():
            key, value, text, line = rounds.record(codec)
            headers = None if text is None else {"traceparent": text.encode()}
            producer.produce(job["topic"], value, key, headers=headers, on_delivery=answered(line))
            producer.poll(0)
        producer.flush()


def consume_until(job, settings):
    settings = {"group.id": job["group"], "auto.offset.reset": "earliest", "enable.auto.commit": False, **settings}
    rounds = application.Rounds(job)
    for _ in rounds.codecs():
        consumer = Consumer(settings)
        consumer.subscribe([job["topic"]])
        while rounds.goes_on():
            messages = consumer.consume(500, 0.2)
            for message in messages:
                if message.error():
                    print(f"{job['client_id']}: {message.error()}", file=sys.stderr)
                else:
                    application.received(job, facts(message))
            if messages:
                try:
                    consumer.commit(asynchronous=False)
                except KafkaException as error:
                    # Amid a rebalance: the records come again, to whom they belong then.
                    print(f"{job['client_id']} could not commit: {error}", file=sys.stderr)
        consumer.close()


def main():
    job = application.job()
    settings = {"bootstrap.servers": job["bootstrap"], "client.id": job["client_id"], **job["properties"]}
    if job["mode"].endswith("_until"):
        (produce_until if job["mode"] == "produce_until" else consume_until)(job, settings)
        return
    records = produce(job, settings) if job["mode"] == "produce" else consume(job, settings)
    lines = [json.dumps({"partition": partition, "offset": offset, "traceparent": text}) + "\n" for partition, offset, text in records]
    sys.stdout.write("".join(lines))


main()
