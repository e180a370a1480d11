import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;

/** Kafka Streams as a member of a streams group (KIP-1071): hands on what it reads from one topic to another, and tells what it read. */
public final class Streams {
    private static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] arguments) throws Exception {
        JsonNode job = JSON.readTree(arguments[0]);
        Properties settings = new Properties();
        job.get("settings").properties().forEach(entry -> settings.put(entry.getKey(), entry.getValue().asText()));
        ArrayNode seen = JSON.createArrayNode();
        CountDownLatch left = new CountDownLatch(job.get("count").asInt());
        StreamsBuilder builder = new StreamsBuilder();
        builder.<byte[], byte[]>stream(job.get("from").asText()).<byte[], byte[]>process(() -> new ContextualProcessor<>() {
            @Override
            public void process(Record<byte[], byte[]> record) {
                RecordMetadata place = context().recordMetadata().orElseThrow();
                ObjectNode told = JSON.createObjectNode();
                told.put("topic", place.topic()).put("partition", place.partition()).put("offset", place.offset());
                told.put("timestamp", record.timestamp());
                told.put("key", new String(record.key(), StandardCharsets.UTF_8)).put("value_len", record.value().length);
                ArrayNode headers = told.putArray("headers");
                for (Header header : record.headers()) {
                    headers.addArray().add(header.key()).add(new String(header.value(), StandardCharsets.UTF_8));
                }
                synchronized (seen) {
                    seen.add(told);
                }
                context().forward(record);
                left.countDown();
            }
        }).to(job.get("to").asText());
        settings.put("default.key.serde", Serdes.ByteArraySerde.class.getName());
        settings.put("default.value.serde", Serdes.ByteArraySerde.class.getName());
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.start();
        // Two commits fit in.
        left.await();
        Thread.sleep(1_000);
        streams.close(Duration.ofSeconds(20));
        synchronized (seen) {
            System.out.println(seen);
        }
        System.exit(0);
    }
}
