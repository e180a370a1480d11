// A Kafka application of the tests over kafkajs: one JSON object says what to do, one line per record says what came of it.

import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// Packages lie in the cache, not beside this file.
const require = createRequire(path.join(process.env.NODE_PATH, "client.cjs"));
const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = require("kafkajs");
const lz4 = require("lz4js");
const zstd = require("@bokuweb/zstd-wasm");

const job = JSON.parse(process.argv[2]);
const PARTITIONS = 3;
/** Records of one call, so that batches have more than one. */
const RECORDS = 5;

await zstd.init();
const codec = (compress, decompress) => () => ({
  compress: async (encoder) => Buffer.from(compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(decompress(buffer)),
});
CompressionCodecs[CompressionTypes.Snappy] = require("kafkajs-snappy");
CompressionCodecs[CompressionTypes.LZ4] = codec(lz4Frame, (bytes) => lz4.decompress(bytes));
CompressionCodecs[CompressionTypes.ZSTD] = codec((bytes) => zstd.compress(bytes, 3), (bytes) => zstd.decompress(bytes));
const COMPRESSION = {
  none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD,
};

/** Kafka takes frames of independent blocks alone (KIP-57), lz4js makes others: its blocks, in a frame of our own. */
function lz4Frame(bytes) {
  const header = Buffer.from([0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82]); // magic; version 1, independent; 64 KiB; their check
  const parts = [header];
  for (let at = 0; at < bytes.length; at += 65536) {
    const block = bytes.subarray(at, at + 65536);
    const packed = Buffer.alloc(lz4.compressBound(block.length));
    const size = lz4.compressBlock(block, packed, 0, block.length, new Uint32Array(65536));
    const word = Buffer.alloc(4);
    word.writeUInt32LE(size > 0 ? size : (block.length | 0x80000000) >>> 0);
    parts.push(word, size > 0 ? packed.subarray(0, size) : block);
  }
  return Buffer.concat([...parts, Buffer.alloc(4)]);
}

const nowUs = () => Math.round((performance.timeOrigin + performance.now()) * 1000);
const tell = (line) => writeSync(1, `${JSON.stringify({ client_id: job.client_id, ...line })}\n`);
const complain = (what, error) => console.error(`${job.client_id} ${what}: ${error}`);
const over = () => existsSync(job.until);
const kafka = () => new Kafka({
  clientId: job.client_id, brokers: job.bootstrap.split(","), logLevel: logLevel.WARN, retry: { retries: 20, initialRetryTime: 200, maxRetryTime: 2000 }, ...security(),
});

/** How to come to the broker, in the words that the other clients know. */
function security() {
  const words = job.properties;
  const protocol = words["security.protocol"];
  if (protocol === undefined) return {};
  const file = (name) => (words[name] === undefined ? undefined : readFileSync(words[name]));
  const ssl = { ca: [file("ssl.ca.location")], cert: file("ssl.certificate.location"), key: file("ssl.key.location") };
  if (protocol === "SSL") return { ssl };
  return { ssl, sasl: { mechanism: words["sasl.mechanism"].toLowerCase(), username: words["sasl.username"], password: words["sasl.password"] } };
}

function context(index) {
  if (job.context_every === 0 || index % job.context_every !== 0) return null;
  const unsampled = job.unsampled_every !== 0 && Math.floor(index / job.context_every) % job.unsampled_every === job.unsampled_every - 1;
  return `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-${unsampled ? "00" : "01"}`;
}

async function produceUntil() {
  const start = performance.now();
  for (let index = 0, round = 0; !over(); round++) {
    const name = job.codecs[round % job.codecs.length];
    const end = performance.now() + job.round_ms;
    const producer = kafka().producer();
    try {
      await producer.connect();
      while (!over() && performance.now() < end) {
        await sleep(Math.max(0, start + (index * 1000) / job.rate - performance.now()));
        const partition = (index / RECORDS) % PARTITIONS;
        const lines = [];
        const messages = [];
        for (let i = 0; i < RECORDS; i++, index++) {
          const traceparent = context(index);
          lines.push({ codec: name, traceparent, from_us: nowUs() });
          const headers = traceparent === null ? undefined : { traceparent };
          messages.push({ partition, key: `key-${index % 16}`, value: "x".repeat((index * 37) % job.value_bytes), headers });
        }
        await send(producer, COMPRESSION[name], partition, messages, lines);
      }
    } catch (error) {
      complain("goes on with a new producer", error);
    }
    await producer.disconnect();
  }
}

async function send(producer, compression, partition, messages, lines) {
  try {
    const [told] = await producer.send({ topic: job.topic, acks: -1, compression, messages });
    lines.forEach((line, i) => tell({ ...line, to_us: nowUs(), partition, offset: Number(told.baseOffset) + i }));
  } catch (error) {
    lines.forEach((line) => tell({ ...line, to_us: nowUs(), error: String(error) }));
  }
}

/** All records to the first partition, those of `linger_ms` together. */
async function produce() {
  const producer = kafka().producer();
  await producer.connect();
  const start = performance.now();
  const due = () => (job.rate === 0 ? job.records : Math.min(job.records, 1 + Math.floor(((performance.now() - start) * job.rate) / 1000)));
  for (let index = 0; index < job.records; ) {
    const lines = [];
    const messages = [];
    for (const end = due(); index < end; index++) {
      const traceparent = context(index);
      lines.push({ traceparent });
      const headers = traceparent === null ? undefined : { traceparent };
      messages.push({ partition: 0, key: `key-${index % 16}`, value: "x".repeat(job.value_bytes), headers });
    }
    if (messages.length > 0) {
      const [told] = await producer.send({ topic: job.topic, acks: -1, compression: COMPRESSION[job.codec], messages });
      lines.forEach((line, i) => tell({ ...line, partition: told.partition, offset: Number(told.baseOffset) + i }));
    }
    await sleep(job.linger_ms);
  }
  await producer.disconnect();
}

/** Reads as many records as there will be, commits, leaves. */
async function consume() {
  const consumer = kafka().consumer({ groupId: job.group, maxWaitTimeInMs: 500, sessionTimeout: 10000, heartbeatInterval: 1000 });
  await consumer.connect();
  await consumer.subscribe({ topics: [job.topic], fromBeginning: true });
  let left = job.records;
  const done = new Promise((resolve) => {
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        const traceparent = message.headers?.traceparent?.toString() ?? null;
        tell({ partition, offset: Number(message.offset), traceparent });
        left -= 1;
        if (left === 0) resolve(true);
      },
    });
  });
  const isDone = await Promise.race([done, sleep(job.timeout_seconds * 1000, false, { ref: false })]);
  if (!isDone) throw new Error(`consumed ${job.records - left} of ${job.records} records in time`);
  await consumer.disconnect();
}

async function consumeUntil() {
  const consumer = kafka().consumer({ groupId: job.group, maxWaitTimeInMs: 500, sessionTimeout: 10000, heartbeatInterval: 1000 });
  await consumer.connect();
  await consumer.subscribe({ topics: [job.topic], fromBeginning: true });
  await consumer.run({
    eachMessage: async ({ partition, message }) => {
      const traceparent = message.headers?.traceparent?.toString() ?? null;
      tell({ partition, offset: Number(message.offset), traceparent, to_us: nowUs() });
    },
  });
  while (!over()) await sleep(100);
  await consumer.disconnect();
}

await { produce, consume, produce_until: produceUntil, consume_until: consumeUntil }[job.mode]();
process.exit(0);
