// kafkajs and @platformatic/kafka: one JSON object says what to do, the last line of output what came of it.
const job = JSON.parse(process.argv[2]);
const brokers = job.bootstrap.split(',');

async function kafkajs() {
  const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = (await import('kafkajs')).default;
  const kafka = new Kafka({ clientId: job.client_id, brokers, logLevel: logLevel.ERROR });
  if (job.records) {
    const producer = kafka.producer();
    await producer.connect();
    const messages = job.records.map((record) => ({
      key: record.key, value: record.value, headers: Object.fromEntries(record.headers),
      ...(record.timestamp === undefined ? {} : { timestamp: String(record.timestamp) }), partition: 0,
    }));
    const compression = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }[job.codec ?? 'none'];
    const told = await producer.send({ topic: job.topic, messages, compression });
    await producer.disconnect();
    return told;
  }
  const consumer = kafka.consumer({ groupId: job.group });
  await consumer.connect();
  await consumer.subscribe({ topics: [job.topic], fromBeginning: true });
  const records = [];
  await new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`${records.length} records in time`)), 40000).unref();
    consumer.run({
      eachMessage: async ({ topic, partition, message }) => {
        records.push(seen(topic, partition, message.offset, message.timestamp, message.key, message.value, Object.entries(message.headers)));
        if (records.length === job.count) resolve();
      },
    });
  });
  await consumer.disconnect();
  return records;
}

async function platformatic() {
  const { Consumer, MessagesStreamModes, Producer, stringDeserializers, stringSerializers } = await import('@platformatic/kafka');
  if (job.records) {
    const producer = new Producer({ clientId: job.client_id, bootstrapBrokers: brokers, serializers: stringSerializers });
    const messages = job.records.map((record) => ({
      topic: job.topic, key: record.key, value: record.value, partition: 0, headers: new Map(record.headers),
    }));
    const told = await producer.send({ messages, acks: -1 });
    await producer.close();
    return told.offsets.map((offset) => ({ topic: offset.topic, partition: offset.partition, baseOffset: String(offset.offset) }));
  }
  const consumer = new Consumer({
    groupId: job.group, clientId: job.client_id, bootstrapBrokers: brokers, deserializers: stringDeserializers, autocommit: true, maxWaitTime: 500,
  });
  const stream = await consumer.consume({ topics: [job.topic], mode: MessagesStreamModes.EARLIEST });
  const records = [];
  for await (const message of stream) {
    const headers = [...message.headers].map(([name, value]) => [name, value]);
    records.push(seen(message.topic, message.partition, message.offset, message.timestamp, message.key, message.value, headers));
    if (records.length === job.count) break;
  }
  await stream.close();
  await consumer.close(true);
  return records;
}

function seen(topic, partition, offset, timestamp, key, value, headers) {
  return {
    topic, partition, offset: Number(offset), timestamp: Number(timestamp), key: key?.toString() ?? null,
    value_len: value === null ? -1 : Buffer.byteLength(value), headers: headers.map(([name, text]) => [String(name), text?.toString() ?? null]),
  };
}

console.log(JSON.stringify(await { kafkajs, platformatic }[job.library]()));
process.exit(0);
