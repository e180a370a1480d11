// sarama, segmentio/kafka-go and franz-go: one JSON object says what to do, one line of output what came of it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/IBM/sarama"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

type record struct {
	Topic     string      `json:"topic"`
	Partition int32       `json:"partition"`
	Offset    int64       `json:"offset"`
	Timestamp int64       `json:"timestamp,omitempty"`
	Key       string      `json:"key"`
	Value     string      `json:"value,omitempty"`
	ValueLen  int         `json:"value_len"`
	Headers   [][2]string `json:"headers"`
}

type job struct {
	Library   string   `json:"library"`
	Bootstrap string   `json:"bootstrap"`
	ClientID  string   `json:"client_id"`
	Topic     string   `json:"topic"`
	Group     string   `json:"group"`
	Count     int      `json:"count"`
	Records   []record `json:"records"`
}

func main() {
	var work job
	check(json.Unmarshal([]byte(os.Args[1]), &work))
	deadline, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	libraries := map[string][2]func(context.Context, job) []record{
		"sarama": {saramaSend, saramaRead}, "kafka-go": {kafkaGoSend, kafkaGoRead}, "franz-go": {franzSend, franzRead},
	}
	direction := 1
	if work.Records != nil {
		direction = 0
	}
	check(json.NewEncoder(os.Stdout).Encode(libraries[work.Library][direction](deadline, work)))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func saramaConfig(work job) *sarama.Config {
	config := sarama.NewConfig()
	config.ClientID = work.ClientID
	config.Version = sarama.MaxVersion
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Flush.Frequency = 100 * time.Millisecond
	config.Producer.Partitioner = sarama.NewManualPartitioner
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	return config
}

func saramaSend(_ context.Context, work job) []record {
	producer, err := sarama.NewSyncProducer([]string{work.Bootstrap}, saramaConfig(work))
	check(err)
	defer producer.Close()
	messages := make([]*sarama.ProducerMessage, len(work.Records))
	for i, r := range work.Records {
		messages[i] = &sarama.ProducerMessage{Topic: r.Topic, Key: sarama.StringEncoder(r.Key), Value: sarama.StringEncoder(r.Value)}
		for _, header := range r.Headers {
			messages[i].Headers = append(messages[i].Headers, sarama.RecordHeader{Key: []byte(header[0]), Value: []byte(header[1])})
		}
	}
	check(producer.SendMessages(messages))
	told := make([]record, len(messages))
	for i, message := range messages {
		told[i] = record{Partition: message.Partition, Offset: message.Offset}
	}
	return told
}

type saramaHandler struct {
	count   int
	records []record
	done    context.CancelFunc
}

func (h *saramaHandler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (h *saramaHandler) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (h *saramaHandler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		r := record{Topic: message.Topic, Partition: message.Partition, Offset: message.Offset, Timestamp: message.Timestamp.UnixMilli(),
			Key: string(message.Key), ValueLen: len(message.Value), Headers: [][2]string{}}
		for _, header := range message.Headers {
			r.Headers = append(r.Headers, [2]string{string(header.Key), string(header.Value)})
		}
		h.records = append(h.records, r)
		session.MarkMessage(message, "")
		if len(h.records) == h.count {
			session.Commit()
			h.done()
			return nil
		}
	}
	return nil
}

func saramaRead(deadline context.Context, work job) []record {
	group, err := sarama.NewConsumerGroup([]string{work.Bootstrap}, work.Group, saramaConfig(work))
	check(err)
	defer group.Close()
	until, done := context.WithCancel(deadline)
	handler := &saramaHandler{count: work.Count, done: done}
	for until.Err() == nil {
		check(group.Consume(until, []string{work.Topic}, handler))
	}
	return handler.records
}

func kafkaGoSend(deadline context.Context, work job) []record {
	messages := make([]kafka.Message, len(work.Records))
	for i, r := range work.Records {
		messages[i] = kafka.Message{Key: []byte(r.Key), Value: []byte(r.Value)}
		for _, header := range r.Headers {
			messages[i].Headers = append(messages[i].Headers, kafka.Header{Key: header[0], Value: []byte(header[1])})
		}
	}
	var told []record
	writer := &kafka.Writer{
		Addr: kafka.TCP(work.Bootstrap), Topic: work.Topic, RequiredAcks: kafka.RequireAll, BatchTimeout: 100 * time.Millisecond,
		Transport: &kafka.Transport{ClientID: work.ClientID},
		Completion: func(done []kafka.Message, err error) {
			check(err)
			for _, message := range done {
				told = append(told, record{Partition: int32(message.Partition), Offset: message.Offset})
			}
		},
	}
	check(writer.WriteMessages(deadline, messages...))
	check(writer.Close())
	return told
}

func kafkaGoRead(deadline context.Context, work job) []record {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{work.Bootstrap}, GroupID: work.Group, Topic: work.Topic, StartOffset: kafka.FirstOffset, MaxWait: 500 * time.Millisecond,
		Dialer: &kafka.Dialer{ClientID: work.ClientID, Timeout: 10 * time.Second},
	})
	var records []record
	for len(records) < work.Count {
		message, err := reader.FetchMessage(deadline)
		check(err)
		r := record{Topic: message.Topic, Partition: int32(message.Partition), Offset: message.Offset, Timestamp: message.Time.UnixMilli(),
			Key: string(message.Key), ValueLen: len(message.Value), Headers: [][2]string{}}
		for _, header := range message.Headers {
			r.Headers = append(r.Headers, [2]string{header.Key, string(header.Value)})
		}
		records = append(records, r)
		if len(records) == work.Count {
			check(reader.CommitMessages(deadline, message))
		}
	}
	check(reader.Close())
	return records
}

func franz(work job, more ...kgo.Opt) *kgo.Client {
	options := []kgo.Opt{kgo.SeedBrokers(work.Bootstrap), kgo.ClientID(work.ClientID), kgo.ProducerLinger(100 * time.Millisecond)}
	client, err := kgo.NewClient(append(options, more...)...)
	check(err)
	return client
}

func franzSend(deadline context.Context, work job) []record {
	client := franz(work)
	defer client.Close()
	messages := make([]*kgo.Record, len(work.Records))
	for i, r := range work.Records {
		messages[i] = &kgo.Record{Topic: r.Topic, Key: []byte(r.Key), Value: []byte(r.Value)}
		for _, header := range r.Headers {
			messages[i].Headers = append(messages[i].Headers, kgo.RecordHeader{Key: header[0], Value: []byte(header[1])})
		}
	}
	told := make([]record, 0, len(messages))
	for _, result := range client.ProduceSync(deadline, messages...) {
		check(result.Err)
		told = append(told, record{Partition: result.Record.Partition, Offset: result.Record.Offset, Timestamp: result.Record.Timestamp.UnixMilli()})
	}
	return told
}

func franzRead(deadline context.Context, work job) []record {
	client := franz(work, kgo.ConsumerGroup(work.Group), kgo.ConsumeTopics(work.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	defer client.Close()
	var records []record
	for len(records) < work.Count {
		fetches := client.PollFetches(deadline)
		if err := fetches.Err(); err != nil {
			log.Fatal(fmt.Errorf("%d of %d records: %w", len(records), work.Count, err))
		}
		fetches.EachRecord(func(message *kgo.Record) {
			r := record{Topic: message.Topic, Partition: message.Partition, Offset: message.Offset, Timestamp: message.Timestamp.UnixMilli(),
				Key: string(message.Key), ValueLen: len(message.Value), Headers: [][2]string{}}
			for _, header := range message.Headers {
				r.Headers = append(r.Headers, [2]string{header.Key, string(header.Value)})
			}
			records = append(records, r)
		})
	}
	check(client.CommitUncommittedOffsets(deadline))
	return records
}
