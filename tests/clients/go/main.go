// A Kafka application of the tests over franz-go or sarama: one JSON object says what to do, one line per record says what came of it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

type job struct {
	Library        string `json:"library"`
	Mode           string `json:"mode"`
	Bootstrap      string `json:"bootstrap"`
	ClientID       string `json:"client_id"`
	Topic          string `json:"topic"`
	Group          string `json:"group"`
	Records        int    `json:"records"`
	ContextEvery   int    `json:"context_every"`
	UnsampledEvery int    `json:"unsampled_every"`
	Codec          string `json:"codec"`
	LingerMs       int    `json:"linger_ms"`
	Rate           int    `json:"rate"`
	ValueBytes     int    `json:"value_bytes"`
	TimeoutSeconds int    `json:"timeout_seconds"`

	Codecs  []string `json:"codecs"`
	RoundMs int      `json:"round_ms"`
	Until   string   `json:"until"`

	// How to come to the broker, in librdkafka's words.
	Properties map[string]string `json:"properties"`
}

type result struct {
	Partition   int32   `json:"partition"`
	Offset      int64   `json:"offset"`
	Traceparent *string `json:"traceparent"`
}

func main() {
	var work job
	if err := json.Unmarshal([]byte(os.Args[1]), &work); err != nil {
		log.Fatal(err)
	}
	if endless, ok := endless[work.Library+" "+work.Mode]; ok {
		endless(work)
		return
	}
	deadline, cancel := context.WithTimeout(context.Background(), time.Duration(work.TimeoutSeconds)*time.Second)
	defer cancel()
	run, known := bounded[work.Library+" "+work.Mode]
	if !known {
		log.Fatalf("no %s with %q", work.Mode, work.Library)
	}
	results, err := run(deadline, work)
	if err != nil {
		log.Fatal(err)
	}
	output := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(output)
	for _, line := range results {
		if err := encoder.Encode(line); err != nil {
			log.Fatal(err)
		}
	}
	if err := output.Flush(); err != nil {
		log.Fatal(err)
	}
}

// What comes to an end by itself, by library and mode.
var bounded = map[string]func(context.Context, job) ([]result, error){
	"franz-go produce": franzProduce, "franz-go consume": franzConsume,
	"sarama produce": saramaProduce, "sarama consume": saramaConsume,
}

// Nil: in the clear.
func (work job) encryption() (*tls.Config, error) {
	authority, encrypted := work.Properties["ssl.ca.location"]
	if !encrypted {
		return nil, nil
	}
	text, err := os.ReadFile(authority)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("no certificate in %s", authority)
	}
	if certificate := work.Properties["ssl.certificate.location"]; certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, work.Properties["ssl.key.location"])
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func (work job) franzSecurity() ([]kgo.Opt, error) {
	config, err := work.encryption()
	if err != nil || config == nil {
		return nil, err
	}
	options := []kgo.Opt{kgo.DialTLSConfig(config)}
	if user := work.Properties["sasl.username"]; user != "" {
		options = append(options, kgo.SASL(plain.Auth{User: user, Pass: work.Properties["sasl.password"]}.AsMechanism()))
	}
	return options, nil
}

var franzCodecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func franzProduce(deadline context.Context, work job) ([]result, error) {
	options, err := work.franzSecurity()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options,
		kgo.SeedBrokers(work.Bootstrap), kgo.ClientID(work.ClientID), kgo.ProducerBatchCompression(franzCodecs[work.Codec]),
		kgo.ProducerLinger(time.Duration(work.LingerMs)*time.Millisecond),
	)...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	results := make([]result, work.Records)
	failures := make(chan error, work.Records)
	value := bytes.Repeat([]byte("x"), work.ValueBytes)
	start := time.Now()
	for i := range work.Records {
		record := &kgo.Record{Topic: work.Topic, Key: fmt.Appendf(nil, "key-%d", i%16), Value: value}
		if text := traceContext(i, work.ContextEvery, work.UnsampledEvery); text != nil {
			results[i].Traceparent = text
			record.Headers = []kgo.RecordHeader{{Key: "traceparent", Value: []byte(*text)}}
		}
		if work.Rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(work.Rate))))
		}
		client.Produce(deadline, record, func(record *kgo.Record, err error) {
			results[i].Partition, results[i].Offset = record.Partition, record.Offset
			if err != nil {
				failures <- err
			}
		})
	}
	if err := client.Flush(deadline); err != nil {
		return nil, err
	}
	select {
	case err := <-failures:
		return nil, err
	default:
		return results, nil
	}
}

func franzConsume(deadline context.Context, work job) ([]result, error) {
	options, err := work.franzSecurity()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options,
		kgo.SeedBrokers(work.Bootstrap), kgo.ClientID(work.ClientID), kgo.ConsumerGroup(work.Group), kgo.ConsumeTopics(work.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
	)...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var results []result
	for len(results) < work.Records {
		fetches := client.PollFetches(deadline)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("consumed %d of %d records: %w", len(results), work.Records, err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			line := result{Partition: record.Partition, Offset: record.Offset}
			for _, header := range record.Headers {
				if header.Key == "traceparent" {
					text := string(header.Value)
					line.Traceparent = &text
				}
			}
			results = append(results, line)
		})
		if err := client.CommitUncommittedOffsets(deadline); err != nil {
			return nil, err
		}
	}
	return results, nil
}

func traceContext(index, every, unsampledEvery int) *string {
	if every == 0 || index%every != 0 {
		return nil
	}
	flags := "01"
	if unsampledEvery != 0 && index/every%unsampledEvery == unsampledEvery-1 {
		flags = "00"
	}
	ids := make([]byte, 24)
	if _, err := rand.Read(ids); err != nil {
		log.Fatal(err)
	}
	text := fmt.Sprintf("00-%s-%s-%s", hex.EncodeToString(ids[:16]), hex.EncodeToString(ids[16:]), flags)
	return &text
}
