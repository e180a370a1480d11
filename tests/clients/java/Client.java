import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Kafka applications of the tests: a JSON object for each says what to do, one line per record says what came of it. */
public final class Client {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final PrintStream OUTPUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);

    public static void main(String[] arguments) throws Exception {
        List<Thread> applications = new ArrayList<>();
        for (String argument : arguments) {
            JsonNode job = JSON.readTree(argument);
            Thread application = new Thread(() -> run(job), job.get("client_id").asText());
            application.setUncaughtExceptionHandler((thread, error) -> {
                System.err.println(thread.getName() + " failed");
                error.printStackTrace();
                OUTPUT.flush();
                Runtime.getRuntime().halt(1);
            });
            application.start();
            applications.add(application);
        }
        for (Thread application : applications) {
            application.join();
        }
        OUTPUT.flush();
    }

    private static void run(JsonNode job) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", job.get("bootstrap").asText());
        settings.put("client.id", job.get("client_id").asText());
        settings.put("key.serializer", ByteArraySerializer.class.getName());
        settings.put("value.serializer", ByteArraySerializer.class.getName());
        settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
        for (Map.Entry<String, JsonNode> property : job.get("properties").properties()) {
            settings.put(property.getKey(), property.getValue().asText());
        }
        try {
            StringBuilder lines = new StringBuilder();
            switch (job.get("mode").asText()) {
                case "produce" -> produce(job, settings, lines);
                case "consume" -> consume(job, settings, lines);
                case "produce_until" -> produceUntil(job, settings);
                case "transact_until" -> transactUntil(job, settings);
                case "consume_until" -> consumeUntil(job, settings);
                case "share_until" -> shareUntil(job, settings);
                default -> throw new IllegalArgumentException("do what? " + job);
            }
            synchronized (OUTPUT) {
                OUTPUT.print(lines);
            }
        } catch (Exception e) {
            throw new IllegalStateException(e);
        }
    }

    private static void produce(JsonNode job, Properties settings, StringBuilder lines) throws Exception {
        int records = job.get("records").asInt();
        settings.putIfAbsent("compression.type", job.get("codec").asText());
        settings.putIfAbsent("linger.ms", job.get("linger_ms").asText());
        byte[] value = "x".repeat(job.get("value_bytes").asInt()).getBytes(StandardCharsets.US_ASCII);
        String[] contexts = new String[records];
        @SuppressWarnings("unchecked")
        Future<RecordMetadata>[] answers = new Future[records];
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings)) {
            long start = System.nanoTime();
            for (int i = 0; i < records; i++) {
                byte[] key = ("key-" + i % 16).getBytes(StandardCharsets.US_ASCII);
                ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(job.get("topic").asText(), key, value);
                contexts[i] = context(i, job.get("context_every").asInt(), job.get("unsampled_every").asInt());
                if (contexts[i] != null) {
                    record.headers().add("traceparent", contexts[i].getBytes(StandardCharsets.US_ASCII));
                }
                pace(start, i, job.get("rate").asInt());
                answers[i] = producer.send(record);
            }
            producer.flush();
        }
        for (int i = 0; i < records; i++) {
            RecordMetadata answer = answers[i].get();
            line(lines, answer.partition(), answer.offset(), contexts[i]);
        }
    }

    private static void consume(JsonNode job, Properties settings, StringBuilder lines) {
        int wanted = job.get("records").asInt();
        settings.put("group.id", job.get("group").asText());
        settings.putIfAbsent("auto.offset.reset", "earliest");
        settings.putIfAbsent("enable.auto.commit", "false");
        long deadline = System.nanoTime() + Duration.ofSeconds(job.get("timeout_seconds").asLong()).toNanos();
        int seen = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
            consumer.subscribe(List.of(job.get("topic").asText()));
            while (seen < wanted) {
                if (System.nanoTime() > deadline) {
                    throw new IllegalStateException("consumed " + seen + " of " + wanted + " records in time");
                }
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(200));
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    Header context = record.headers().lastHeader("traceparent");
                    String text = context == null ? null : new String(context.value(), StandardCharsets.US_ASCII);
                    line(lines, record.partition(), record.offset(), text);
                    seen++;
                }
                if (!records.isEmpty()) {
                    consumer.commitSync();
                }
            }
        }
    }

    /** What all applications have in common that work until a file appears: a new client with the next codec each `round_ms`. */
    private static final class Rounds {
        private final Path until;
        private final long roundNs;
        private final int rate;
        private final long start = System.nanoTime();
        private long roundEnd;
        private long sent;

        Rounds(JsonNode job) {
            until = Path.of(job.get("until").asText());
            roundNs = job.get("round_ms").asLong() * 1_000_000;
            rate = job.get("rate").asInt();
        }

        boolean over() {
            return Files.exists(until);
        }

        void begin() {
            roundEnd = System.nanoTime() + roundNs;
        }

        boolean goesOn() {
            return !over() && (roundNs == 0 || System.nanoTime() < roundEnd);
        }

        int next() throws InterruptedException {
            pace(start, (int) sent, rate);
            return (int) sent++;
        }
    }

    private static ProducerRecord<byte[], byte[]> record(JsonNode job, int index, ObjectNode line) {
        byte[] key = ("key-" + index % 16).getBytes(StandardCharsets.US_ASCII);
        byte[] value = "x".repeat(index * 37 % job.get("value_bytes").asInt()).getBytes(StandardCharsets.US_ASCII);
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(job.get("topic").asText(), key, value);
        String context = context(index, job.get("context_every").asInt(), job.get("unsampled_every").asInt());
        if (context != null) {
            record.headers().add("traceparent", context.getBytes(StandardCharsets.US_ASCII));
        }
        line.put("client_id", job.get("client_id").asText()).put("traceparent", context).put("from_us", now());
        return record;
    }

    private static void told(ObjectNode line, RecordMetadata answer, Exception error) {
        line.put("to_us", now());
        if (error == null) {
            line.put("partition", answer.partition()).put("offset", answer.offset());
        } else {
            line.put("error", error.toString());
        }
    }

    private static void produceUntil(JsonNode job, Properties settings) throws InterruptedException {
        Rounds rounds = new Rounds(job);
        for (int round = 0; !rounds.over(); round++) {
            String codec = job.get("codecs").get(round % job.get("codecs").size()).asText();
            settings.put("compression.type", codec);
            settings.put("linger.ms", job.get("linger_ms").asText());
            rounds.begin();
            try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings)) {
                while (rounds.goesOn()) {
                    int index = rounds.next();
                    ObjectNode line = JSON.createObjectNode().put("codec", codec);
                    producer.send(record(job, index, line), (answer, error) -> {
                        told(line, answer, error);
                        print(line);
                    });
                }
            }
        }
    }

    /** Each fourth transaction is aborted. What a transaction held is told when it is known how it ended. */
    private static void transactUntil(JsonNode job, Properties settings) throws InterruptedException {
        Rounds rounds = new Rounds(job);
        settings.put("transactional.id", job.get("client_id").asText() + "-transactions");
        settings.put("linger.ms", job.get("linger_ms").asText());
        for (int round = 0; !rounds.over(); round++) {
            String codec = job.get("codecs").get(round % job.get("codecs").size()).asText();
            settings.put("compression.type", codec);
            rounds.begin();
            try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings)) {
                retry("begin transactions", () -> {
                    producer.initTransactions();
                    return null;
                });
                for (int number = 0; rounds.goesOn(); number++) {
                    transact(job, rounds, codec, producer, number % 4 == 3);
                }
            } catch (KafkaException e) {
                System.err.println(job.get("client_id").asText() + " goes on with a new producer: " + e);
            }
        }
    }

    private static void transact(JsonNode job, Rounds rounds, String codec, KafkaProducer<byte[], byte[]> producer, boolean abort)
            throws InterruptedException {
        List<ObjectNode> lines = new ArrayList<>();
        List<Future<RecordMetadata>> answers = new ArrayList<>();
        String outcome = "unknown";
        try {
            producer.beginTransaction();
            for (int i = 0; i < 10; i++) {
                ObjectNode line = JSON.createObjectNode().put("codec", codec);
                lines.add(line);
                answers.add(producer.send(record(job, rounds.next(), line)));
            }
            producer.flush();
            if (abort) {
                producer.abortTransaction();
                outcome = "aborted";
            } else {
                retry("commit", () -> {
                    producer.commitTransaction();
                    return null;
                });
                outcome = "committed";
            }
        } finally {
            for (int i = 0; i < answers.size(); i++) {
                ObjectNode line = lines.get(i).put("transaction", outcome);
                try {
                    told(line, answers.get(i).get(), null);
                } catch (ExecutionException e) {
                    told(line, null, e);
                }
                print(line);
            }
        }
    }

    /** Kafka's own timeouts are shorter than a broker's restart on a busy machine. */
    private static void retry(String what, Callable<Void> attempt) {
        for (int left = 20;; left--) {
            try {
                attempt.call();
                return;
            } catch (RetriableException e) {
                System.err.println("could not " + what + ": " + e);
                if (left == 0) {
                    throw e;
                }
            } catch (RuntimeException e) {
                throw e;
            } catch (Exception e) {
                throw new IllegalStateException(e);
            }
        }
    }

    private static void consumeUntil(JsonNode job, Properties settings) {
        settings.put("group.id", job.get("group").asText());
        settings.putIfAbsent("auto.offset.reset", "earliest");
        settings.putIfAbsent("enable.auto.commit", "false");
        Rounds rounds = new Rounds(job);
        while (!rounds.over()) {
            rounds.begin();
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
                consumer.subscribe(List.of(job.get("topic").asText()));
                while (rounds.goesOn()) {
                    ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(200));
                    records.forEach(record -> received(job, record));
                    if (!records.isEmpty()) {
                        commit(() -> consumer.commitSync());
                    }
                }
            }
        }
    }

    private static void shareUntil(JsonNode job, Properties settings) throws Exception {
        String group = job.get("group").asText();
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", settings.get("bootstrap.servers"), "client.id", "share-admin"))) {
            // By name: clients before 4.0 have no such type.
            ConfigResource resource = new ConfigResource(ConfigResource.Type.valueOf("GROUP"), group);
            AlterConfigOp earliest = new AlterConfigOp(new ConfigEntry("share.auto.offset.reset", "earliest"), AlterConfigOp.OpType.SET);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(earliest))).all().get();
        }
        settings.put("group.id", group);
        Rounds rounds = new Rounds(job);
        while (!rounds.over()) {
            rounds.begin();
            try (KafkaShareConsumer<byte[], byte[]> consumer = new KafkaShareConsumer<>(settings)) {
                consumer.subscribe(List.of(job.get("topic").asText()));
                while (rounds.goesOn()) {
                    try {
                        consumer.poll(Duration.ofMillis(200)).forEach(record -> received(job, record));
                    } catch (KafkaException e) {
                        System.err.println(job.get("client_id").asText() + ": " + e);
                    }
                }
            }
        }
    }

    private static void received(JsonNode job, ConsumerRecord<byte[], byte[]> record) {
        Header context = record.headers().lastHeader("traceparent");
        ObjectNode line = JSON.createObjectNode().put("client_id", job.get("client_id").asText());
        line.put("partition", record.partition()).put("offset", record.offset()).put("to_us", now());
        line.put("traceparent", context == null ? null : new String(context.value(), StandardCharsets.US_ASCII));
        print(line);
    }

    /** A commit may fail amid a rebalance: the records come again, to whom they belong then. */
    private static void commit(Runnable commit) {
        try {
            commit.run();
        } catch (KafkaException e) {
            System.err.println("could not commit: " + e);
        }
    }

    private static long now() {
        return ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
    }

    private static void print(ObjectNode line) {
        synchronized (OUTPUT) {
            OUTPUT.println(line);
            OUTPUT.flush();
        }
    }

    private static void line(StringBuilder lines, int partition, long offset, String context) {
        String quoted = context == null ? "null" : '"' + context + '"';
        lines.append(String.format("{\"partition\":%d,\"offset\":%d,\"traceparent\":%s}%n", partition, offset, quoted));
    }

    private static String context(int index, int every, int unsampledEvery) {
        if (every == 0 || index % every != 0) {
            return null;
        }
        boolean unsampled = unsampledEvery != 0 && index / every % unsampledEvery == unsampledEvery - 1;
        byte[] ids = new byte[24];
        ThreadLocalRandom.current().nextBytes(ids);
        String hex = HexFormat.of().formatHex(ids);
        return "00-" + hex.substring(0, 32) + "-" + hex.substring(32) + (unsampled ? "-00" : "-01");
    }

    private static void pace(long start, int index, int rate) throws InterruptedException {
        if (rate > 0) {
            long wait = start + index * 1_000_000_000L / rate - System.nanoTime();
            if (wait > 1_000_000) {
                Thread.sleep(wait / 1_000_000);
            }
        }
    }
}
