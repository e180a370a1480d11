import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** A Kafka application of the tests: one JSON object says what to do, one line per record says what came of it. */
public final class Client {
    public static void main(String[] arguments) throws Exception {
        JsonNode job = new ObjectMapper().readTree(arguments[0]);
        Properties settings = new Properties();
        settings.put("bootstrap.servers", job.get("bootstrap").asText());
        settings.put("client.id", job.get("client_id").asText());
        for (Map.Entry<String, JsonNode> property : job.get("properties").properties()) {
            settings.put(property.getKey(), property.getValue().asText());
        }
        StringBuilder lines = new StringBuilder();
        if (job.get("mode").asText().equals("produce")) {
            produce(job, settings, lines);
        } else {
            consume(job, settings, lines);
        }
        PrintStream output = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        output.print(lines);
        output.flush();
    }

    private static void produce(JsonNode job, Properties settings, StringBuilder lines) throws Exception {
        int records = job.get("records").asInt();
        settings.putIfAbsent("compression.type", job.get("codec").asText());
        settings.putIfAbsent("linger.ms", job.get("linger_ms").asText());
        settings.put("key.serializer", ByteArraySerializer.class.getName());
        settings.put("value.serializer", ByteArraySerializer.class.getName());
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
        settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
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
