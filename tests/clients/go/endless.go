package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What works until a file appears, by library and mode.
var endless = map[string]func(job){
	"franz-go produce_until": franzProduceUntil, "franz-go consume_until": franzConsumeUntil,
	"sarama produce_until": saramaProduceUntil, "sarama consume_until": saramaConsumeUntil,
}

type line struct {
	ClientID    string  `json:"client_id"`
	Codec       string  `json:"codec,omitempty"`
	Traceparent *string `json:"traceparent"`
	FromUs      int64   `json:"from_us,omitempty"`
	ToUs        int64   `json:"to_us"`
	Partition   *int32  `json:"partition,omitempty"`
	Offset      *int64  `json:"offset,omitempty"`
	Error       string  `json:"error,omitempty"`
}

var writing sync.Mutex

func tell(told line) {
	told.ToUs = time.Now().UnixMicro()
	text, err := json.Marshal(told)
	if err != nil {
		log.Fatal(err)
	}
	writing.Lock()
	defer writing.Unlock()
	os.Stdout.Write(append(text, '\n'))
}

func (told line) answered(partition int32, offset int64, err error) {
	if err != nil {
		told.Error = err.Error()
	} else {
		told.Partition, told.Offset = &partition, &offset
	}
	tell(told)
}

// A new client with the next codec each round, records at an even pace.
type rounds struct {
	job
	turn, sent int
	start, end time.Time
}

func (r *rounds) over() bool {
	_, err := os.Stat(r.Until)
	return err == nil
}

// The codec of the next round; false when it is over.
func (r *rounds) next() (string, bool) {
	r.end = time.Now().Add(time.Duration(r.RoundMs) * time.Millisecond)
	if r.RoundMs == 0 {
		r.end = time.Now().Add(24 * time.Hour)
	}
	codec := ""
	if len(r.Codecs) > 0 {
		codec = r.Codecs[r.turn%len(r.Codecs)]
	}
	r.turn++
	return codec, !r.over()
}

func (r *rounds) goesOn() bool {
	return time.Now().Before(r.end) && !r.over()
}

// The next record when it is due: key, value, and the line that will tell of it.
func (r *rounds) record(codec string) ([]byte, []byte, line) {
	index := r.sent
	r.sent++
	time.Sleep(time.Until(r.start.Add(time.Duration(index) * time.Second / time.Duration(r.Rate))))
	told := line{ClientID: r.ClientID, Codec: codec, Traceparent: traceContext(index, r.ContextEvery, r.UnsampledEvery), FromUs: time.Now().UnixMicro()}
	return fmt.Appendf(nil, "key-%d", index%16), []byte(strings.Repeat("x", index*37%r.ValueBytes)), told
}

func franzProduceUntil(work job) {
	r := rounds{job: work, start: time.Now()}
	for codec, more := r.next(); more; codec, more = r.next() {
		client, err := kgo.NewClient(
			kgo.SeedBrokers(strings.Split(work.Bootstrap, ",")...), kgo.ClientID(work.ClientID), kgo.ProducerBatchCompression(franzCodecs[codec]),
			kgo.ProducerLinger(time.Duration(work.LingerMs)*time.Millisecond),
		)
		if err != nil {
			log.Fatal(err)
		}
		for r.goesOn() {
			key, value, told := r.record(codec)
			record := &kgo.Record{Topic: work.Topic, Key: key, Value: value}
			if told.Traceparent != nil {
				record.Headers = []kgo.RecordHeader{{Key: "traceparent", Value: []byte(*told.Traceparent)}}
			}
			client.Produce(context.Background(), record, func(record *kgo.Record, err error) { told.answered(record.Partition, record.Offset, err) })
		}
		if err := client.Flush(context.Background()); err != nil {
			log.Print(err)
		}
		client.Close()
	}
}

func franzConsumeUntil(work job) {
	r := rounds{job: work}
	for _, more := r.next(); more; _, more = r.next() {
		client, err := kgo.NewClient(
			kgo.SeedBrokers(strings.Split(work.Bootstrap, ",")...), kgo.ClientID(work.ClientID), kgo.ConsumerGroup(work.Group),
			kgo.ConsumeTopics(work.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
			kgo.FetchMaxWait(500*time.Millisecond),
		)
		if err != nil {
			log.Fatal(err)
		}
		for r.goesOn() {
			poll, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			fetches := client.PollFetches(poll)
			cancel()
			fetches.EachError(func(_ string, _ int32, err error) {
				if err != context.DeadlineExceeded {
					log.Printf("%s: %v", work.ClientID, err)
				}
			})
			fetches.EachRecord(func(record *kgo.Record) {
				told := line{ClientID: work.ClientID}
				for _, header := range record.Headers {
					if header.Key == "traceparent" {
						text := string(header.Value)
						told.Traceparent = &text
					}
				}
				told.answered(record.Partition, record.Offset, nil)
			})
			if fetches.NumRecords() > 0 {
				commit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				// Amid a rebalance it may fail: the records come again, to whom they belong then.
				if err := client.CommitUncommittedOffsets(commit); err != nil {
					log.Printf("%s could not commit: %v", work.ClientID, err)
				}
				cancel()
			}
		}
		client.Close()
	}
}

var saramaCodecs = map[string]sarama.CompressionCodec{
	"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy, "lz4": sarama.CompressionLZ4,
	"zstd": sarama.CompressionZSTD,
}

func saramaConfig(work job) *sarama.Config {
	config := sarama.NewConfig()
	config.ClientID = work.ClientID
	config.Version = sarama.MaxVersion
	config.Metadata.Retry.Max = 100
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Retry.Max = 500
	config.Producer.Flush.Frequency = time.Duration(work.LingerMs) * time.Millisecond
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.MaxWaitTime = 500 * time.Millisecond
	config.Consumer.Return.Errors = true
	return config
}

// The first broker that is asked may be the one that is being restarted.
func patiently[T any](make func() (T, error)) T {
	for left := 50; ; left-- {
		made, err := make()
		if err == nil {
			return made
		}
		log.Printf("not yet: %v", err)
		if left == 0 {
			os.Exit(1)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func saramaProduceUntil(work job) {
	r := rounds{job: work, start: time.Now()}
	for codec, more := r.next(); more; codec, more = r.next() {
		config := saramaConfig(work)
		config.Producer.Compression = saramaCodecs[codec]
		producer := patiently(func() (sarama.AsyncProducer, error) {
			return sarama.NewAsyncProducer(strings.Split(work.Bootstrap, ","), config)
		})
		var telling sync.WaitGroup
		telling.Go(func() {
			for message := range producer.Successes() {
				message.Metadata.(line).answered(message.Partition, message.Offset, nil)
			}
		})
		telling.Go(func() {
			for failed := range producer.Errors() {
				failed.Msg.Metadata.(line).answered(0, 0, failed.Err)
			}
		})
		for r.goesOn() {
			key, value, told := r.record(codec)
			message := &sarama.ProducerMessage{Topic: work.Topic, Key: sarama.ByteEncoder(key), Value: sarama.ByteEncoder(value), Metadata: told}
			if told.Traceparent != nil {
				message.Headers = []sarama.RecordHeader{{Key: []byte("traceparent"), Value: []byte(*told.Traceparent)}}
			}
			producer.Input() <- message
		}
		producer.AsyncClose()
		telling.Wait()
	}
}

type saramaTeller struct{ job }

func (saramaTeller) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (saramaTeller) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (t saramaTeller) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			told := line{ClientID: t.ClientID}
			for _, header := range message.Headers {
				if string(header.Key) == "traceparent" {
					text := string(header.Value)
					told.Traceparent = &text
				}
			}
			told.answered(message.Partition, message.Offset, nil)
			session.MarkMessage(message, "")
		case <-session.Context().Done():
			return nil
		}
	}
}

func saramaConsumeUntil(work job) {
	r := rounds{job: work}
	for _, more := r.next(); more; _, more = r.next() {
		group := patiently(func() (sarama.ConsumerGroup, error) {
			return sarama.NewConsumerGroup(strings.Split(work.Bootstrap, ","), work.Group, saramaConfig(work))
		})
		go func() {
			for err := range group.Errors() {
				log.Printf("%s: %v", work.ClientID, err)
			}
		}()
		session, end := context.WithCancel(context.Background())
		go func() {
			for r.goesOn() {
				time.Sleep(100 * time.Millisecond)
			}
			end()
		}()
		for session.Err() == nil {
			if err := group.Consume(session, []string{work.Topic}, saramaTeller{work}); err != nil {
				log.Printf("%s: %v", work.ClientID, err)
				time.Sleep(200 * time.Millisecond)
			}
		}
		if err := group.Close(); err != nil {
			log.Print(err)
		}
	}
}
