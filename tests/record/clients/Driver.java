import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.ScramCredentialInfo;
import org.apache.kafka.clients.admin.ScramMechanism;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.admin.UserScramCredentialUpsertion;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Java clients on a string: each line of standard input is a JSON object that says what to do, each line of output what came of it. */
public final class Driver {
    private static final ObjectMapper JSON = new ObjectMapper();
    private final Map<String, KafkaProducer<byte[], byte[]>> producers = new HashMap<>();
    private final Map<String, List<Future<RecordMetadata>>> sent = new HashMap<>();
    private final Map<String, Consumer<byte[], byte[]>> consumers = new HashMap<>();
    private final Map<String, KafkaShareConsumer<byte[], byte[]>> sharers = new HashMap<>();
    private final Map<String, List<ConsumerRecord<byte[], byte[]>>> shared = new HashMap<>();
    private final Map<String, Admin> admins = new HashMap<>();

    public static void main(String[] arguments) throws Exception {
        Driver driver = new Driver();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            ObjectNode answer = JSON.createObjectNode();
            try {
                driver.run(JSON.readTree(line), answer);
            } catch (Exception e) {
                Throwable cause = e instanceof ExecutionException && e.getCause() != null ? e.getCause() : e;
                answer.put("error", cause.getClass().getSimpleName() + ": " + cause.getMessage());
            }
            System.out.println(answer);
            System.out.flush();
        }
        System.exit(0);
    }

    private void run(JsonNode job, ObjectNode answer) throws Exception {
        String name = job.path("name").asText();
        switch (job.get("do").asText()) {
            case "producer" -> {
                Properties settings = settings(job);
                settings.put("key.serializer", ByteArraySerializer.class.getName());
                settings.put("value.serializer", ByteArraySerializer.class.getName());
                producers.put(name, new KafkaProducer<>(settings));
                sent.put(name, new ArrayList<>());
            }
            case "send" -> send(name, job);
            case "flush" -> flush(name, answer);
            case "init" -> producers.get(name).initTransactions();
            case "begin" -> producers.get(name).beginTransaction();
            case "commit_transaction" -> producers.get(name).commitTransaction();
            case "abort_transaction" -> producers.get(name).abortTransaction();
            case "send_offsets" -> {
                Consumer<byte[], byte[]> consumer = consumers.get(job.get("consumer").asText());
                producers.get(name).sendOffsetsToTransaction(offsets(job), consumer.groupMetadata());
            }
            case "consumer" -> {
                Properties settings = settings(job);
                settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
                settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
                settings.putIfAbsent("auto.offset.reset", "earliest");
                settings.putIfAbsent("enable.auto.commit", "false");
                KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings);
                if (job.has("topics")) {
                    consumer.subscribe(texts(job.get("topics")));
                } else {
                    consumer.assign(List.of(new TopicPartition(job.get("topic").asText(), job.path("partition").asInt(0))));
                }
                consumers.put(name, consumer);
            }
            case "poll" -> poll(consumers.get(name), job, answer);
            case "seek" -> consumers.get(name).seek(partition(job), job.get("offset").asLong());
            case "commit" -> {
                if (job.has("offsets")) {
                    consumers.get(name).commitSync(offsets(job));
                } else {
                    consumers.get(name).commitSync();
                }
            }
            case "sharer" -> {
                Properties settings = settings(job);
                settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
                settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
                KafkaShareConsumer<byte[], byte[]> consumer = new KafkaShareConsumer<>(settings);
                consumer.subscribe(texts(job.get("topics")));
                sharers.put(name, consumer);
            }
            case "share_poll" -> sharePoll(name, job, answer);
            case "acknowledge" -> acknowledge(name, job, answer);
            case "close" -> {
                if (producers.containsKey(name)) {
                    producers.remove(name).close(Duration.ofSeconds(5));
                } else if (consumers.containsKey(name)) {
                    consumers.remove(name).close();
                } else if (sharers.containsKey(name)) {
                    sharers.remove(name).close();
                }
            }
            default -> administer(job, answer);
        }
    }

    private void send(String name, JsonNode job) {
        for (JsonNode record : job.get("records")) {
            Integer partition = record.has("partition") ? record.get("partition").asInt() : null;
            Long timestamp = record.has("timestamp") ? record.get("timestamp").asLong() : null;
            ProducerRecord<byte[], byte[]> message =
                    new ProducerRecord<>(record.get("topic").asText(), partition, timestamp, bytes(record.path("key")), bytes(record.path("value")));
            for (JsonNode header : record.path("headers")) {
                message.headers().add(header.get(0).asText(), bytes(header.get(1)));
            }
            sent.get(name).add(producers.get(name).send(message));
        }
    }

    private void flush(String name, ObjectNode answer) throws InterruptedException {
        producers.get(name).flush();
        ArrayNode results = answer.putArray("results");
        for (Future<RecordMetadata> future : sent.get(name)) {
            ObjectNode result = results.addObject();
            try {
                RecordMetadata told = future.get();
                result.put("partition", told.partition()).put("offset", told.offset()).put("timestamp", told.timestamp());
            } catch (ExecutionException e) {
                result.put("error", e.getCause().getClass().getSimpleName());
            }
        }
        sent.get(name).clear();
    }

    private static void poll(Consumer<byte[], byte[]> consumer, JsonNode job, ObjectNode answer) {
        long deadline = System.nanoTime() + job.get("seconds").asLong() * 1_000_000_000L;
        ArrayNode records = answer.putArray("records");
        int count = job.get("count").asInt();
        while (records.size() < count && System.nanoTime() < deadline) {
            ConsumerRecords<byte[], byte[]> polled = consumer.poll(Duration.ofMillis(200));
            polled.forEach(record -> records.add(json(record, Optional.empty())));
        }
    }

    private void sharePoll(String name, JsonNode job, ObjectNode answer) {
        long deadline = System.nanoTime() + job.get("seconds").asLong() * 1_000_000_000L;
        ArrayNode records = answer.putArray("records");
        List<ConsumerRecord<byte[], byte[]>> last = new ArrayList<>();
        while (records.isEmpty() && System.nanoTime() < deadline) {
            for (ConsumerRecord<byte[], byte[]> record : sharers.get(name).poll(Duration.ofMillis(200))) {
                last.add(record);
                records.add(json(record, record.deliveryCount()));
            }
        }
        shared.put(name, last);
    }

    /** Acknowledges what was polled last, each record in its own way, and tells the broker. */
    private void acknowledge(String name, JsonNode job, ObjectNode answer) {
        List<String> types = texts(job.get("types"));
        KafkaShareConsumer<byte[], byte[]> consumer = sharers.get(name);
        int at = 0;
        for (ConsumerRecord<byte[], byte[]> record : shared.get(name)) {
            consumer.acknowledge(record, AcknowledgeType.valueOf(types.get(at++ % types.size())));
        }
        ArrayNode failures = answer.putArray("failures");
        consumer.commitSync().forEach((partition, failure) -> failure.ifPresent(e -> failures.add(partition + " " + e)));
    }

    private void administer(JsonNode job, ObjectNode answer) throws Exception {
        Admin admin = admins.computeIfAbsent(job.get("bootstrap").asText(), bootstrap -> Admin.create(Map.of("bootstrap.servers", bootstrap, "client.id", "admin")));
        String topic = job.path("topic").asText();
        switch (job.get("do").asText()) {
            case "create" -> {
                NewTopic wanted = new NewTopic(topic, job.path("partitions").asInt(1), (short) job.path("replicas").asInt(1));
                if (job.has("assignments")) {
                    Map<Integer, List<Integer>> assignments = new HashMap<>();
                    for (JsonNode replicas : job.get("assignments")) {
                        assignments.put(assignments.size(), integers(replicas));
                    }
                    wanted = new NewTopic(topic, assignments);
                }
                Map<String, String> configs = new HashMap<>();
                job.path("config").properties().forEach(entry -> configs.put(entry.getKey(), entry.getValue().asText()));
                var created = admin.createTopics(List.of(wanted.configs(configs)));
                created.all().get();
                answer.put("topic_id", created.topicId(topic).get().toString());
            }
            case "delete" -> admin.deleteTopics(List.of(topic)).all().get();
            case "cluster" -> answer.put("cluster_id", admin.describeCluster().clusterId().get());
            case "alter" -> {
                List<AlterConfigOp> changes = new ArrayList<>();
                job.get("config").properties().forEach(entry ->
                        changes.add(new AlterConfigOp(new ConfigEntry(entry.getKey(), entry.getValue().asText()), AlterConfigOp.OpType.SET)));
                admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.valueOf(job.get("kind").asText()), job.get("resource").asText()), changes)).all().get();
            }
            case "reassign" -> {
                TopicPartition partition = partition(job);
                admin.alterPartitionReassignments(Map.of(partition, Optional.of(new NewPartitionReassignment(integers(job.get("replicas")))))).all().get();
                while (!admin.listPartitionReassignments().reassignments().get().isEmpty()) {
                    Thread.sleep(100);
                }
            }
            case "describe" -> {
                TopicDescription described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
                answer.put("topic_id", described.topicId().toString());
                ArrayNode leaders = answer.putArray("leaders");
                ArrayNode isr = answer.putArray("isr");
                described.partitions().forEach(p -> {
                    leaders.add(p.leader() == null ? -1 : p.leader().id());
                    isr.add(p.isr().size());
                });
            }
            case "scram" -> admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(
                    job.get("user").asText(), new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096), job.get("password").asText()))).all().get();
            case "committed" -> {
                ObjectNode offsets = answer.putObject("offsets");
                admin.listConsumerGroupOffsets(job.get("group").asText()).partitionsToOffsetAndMetadata().get()
                        .forEach((partition, offset) -> offsets.put(partition.toString(), offset.offset()));
            }
            default -> throw new IllegalArgumentException("do what? " + job);
        }
    }

    private static ObjectNode json(ConsumerRecord<byte[], byte[]> record, Optional<Short> deliveryCount) {
        ObjectNode json = JSON.createObjectNode();
        json.put("topic", record.topic()).put("partition", record.partition()).put("offset", record.offset()).put("timestamp", record.timestamp());
        json.put("key", record.key() == null ? null : new String(record.key(), StandardCharsets.UTF_8));
        json.put("value_len", record.value() == null ? -1 : record.value().length);
        ArrayNode headers = json.putArray("headers");
        for (Header header : record.headers()) {
            headers.addArray().add(header.key()).add(header.value() == null ? null : new String(header.value(), StandardCharsets.UTF_8));
        }
        deliveryCount.ifPresent(count -> json.put("delivery_count", count));
        return json;
    }

    private static Properties settings(JsonNode job) {
        Properties settings = new Properties();
        job.get("settings").properties().forEach(entry -> settings.put(entry.getKey(), entry.getValue().asText()));
        return settings;
    }

    private static Map<TopicPartition, OffsetAndMetadata> offsets(JsonNode job) {
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        for (JsonNode offset : job.get("offsets")) {
            offsets.put(partition(offset), new OffsetAndMetadata(offset.get("offset").asLong()));
        }
        return offsets;
    }

    private static TopicPartition partition(JsonNode node) {
        return new TopicPartition(node.get("topic").asText(), node.path("partition").asInt(0));
    }

    private static List<String> texts(JsonNode node) {
        List<String> texts = new ArrayList<>();
        node.forEach(text -> texts.add(text.asText()));
        return texts;
    }

    private static List<Integer> integers(JsonNode node) {
        List<Integer> integers = new ArrayList<>();
        node.forEach(integer -> integers.add(integer.asInt()));
        return integers;
    }

    private static byte[] bytes(JsonNode node) {
        return node.isTextual() ? node.asText().getBytes(StandardCharsets.UTF_8) : null;
    }
}
