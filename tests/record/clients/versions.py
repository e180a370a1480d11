"""Python clients of any version, which PYTHONPATH names: a JSON object on standard input says what to do, one line of output what came of it."""

import asyncio
import json
import sys
import time

JOB = json.load(sys.stdin)
CODEC = None if JOB.get("codec", "none") == "none" else JOB["codec"]
RECORDS = [(r["topic"], r["value"].encode(), r["key"].encode(), [(name, value.encode()) for name, value in r["headers"]]) for r in JOB.get("records", [])]
PLACE = {"bootstrap_servers": JOB["bootstrap"], "client_id": JOB["client_id"]}
READER = {"group_id": JOB.get("group"), "auto_offset_reset": "earliest", "enable_auto_commit": False}


def seen(topic, partition, offset, timestamp, key, value, headers):
    headers = [[name, text.decode()] for name, text in headers or []]
    return {"topic": topic, "partition": partition, "offset": offset, "timestamp": timestamp, "key": key.decode(), "value_len": len(value), "headers": headers}


def fields(message):
    return seen(message.topic, message.partition, message.offset, message.timestamp, message.key, message.value, message.headers)


def confluent():
    from confluent_kafka import Consumer, Producer

    place = {"bootstrap.servers": JOB["bootstrap"], "client.id": JOB["client_id"]}
    if RECORDS:
        more = {"transactional.id": JOB["transaction"]} if "transaction" in JOB else {}
        producer = Producer({**place, "linger.ms": 50, "compression.type": CODEC or "none", **more})
        if more:
            producer.init_transactions(20)
            producer.begin_transaction()
        told = [None] * len(RECORDS)

        def callback(index):
            def answered(error, message):
                told[index] = {"error": error.name()} if error else {"partition": message.partition(), "offset": message.offset(), "timestamp": message.timestamp()[1]}

            return answered

        for index, (topic, value, key, headers) in enumerate(RECORDS):
            producer.produce(topic, value, key, headers=headers, on_delivery=callback(index))
        producer.flush(30)
        if more:
            producer.commit_transaction(20)
        return told
    consumer = Consumer({**place, "group.id": JOB["group"], "auto.offset.reset": "earliest", "enable.auto.commit": False})
    if JOB.get("by_pattern"):
        consumer.list_topics(timeout=10)
    consumer.subscribe([f"^{JOB['topic']}$" if JOB.get("by_pattern") else JOB["topic"]])
    records, deadline = [], time.monotonic() + 40
    while len(records) < JOB["count"] and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is not None and not message.error():
            records.append(seen(message.topic(), message.partition(), message.offset(), message.timestamp()[1], message.key(), message.value(), message.headers()))
    consumer.commit(asynchronous=False)
    consumer.close()
    return records


def kafka_python():
    import kafka

    if RECORDS:
        producer = kafka.KafkaProducer(linger_ms=100, compression_type=CODEC, **PLACE)
        told = [producer.send(topic, value, key, headers=headers) for topic, value, key, headers in RECORDS]
        producer.flush(30)
        told = [one.get(30) for one in told]
        producer.close()
        return [{"partition": one.partition, "offset": one.offset, "timestamp": one.timestamp} for one in told]
    consumer = kafka.KafkaConsumer(JOB["topic"], consumer_timeout_ms=30000, **PLACE, **READER)
    records = []
    for message in consumer:
        records.append(fields(message))
        if len(records) == JOB["count"]:
            break
    consumer.commit()
    consumer.close()
    return records


async def aiokafka():
    import aiokafka as library

    if RECORDS:
        more = {"transactional_id": JOB["transaction"]} if "transaction" in JOB else {}
        producer = library.AIOKafkaProducer(linger_ms=100, compression_type=CODEC, **PLACE, **more)
        await producer.start()
        if more:
            await producer.begin_transaction()
        told = [await producer.send(topic, value, key, headers=headers) for topic, value, key, headers in RECORDS]
        told = [await one for one in told]
        if more:
            await producer.commit_transaction()
        await producer.stop()
        # Its timestamps are not those that it sends: what is read back says.
        return [{"partition": one.partition, "offset": one.offset} for one in told]
    consumer = library.AIOKafkaConsumer(JOB["topic"], **PLACE, **READER)
    await consumer.start()
    records = [fields(await asyncio.wait_for(consumer.getone(), 30)) for _ in range(JOB["count"])]
    await consumer.commit()
    await consumer.stop()
    return records


LIBRARIES = {"confluent-kafka": confluent, "kafka-python": kafka_python, "aiokafka": lambda: asyncio.run(aiokafka())}
print(json.dumps(LIBRARIES[JOB["library"]]()))
