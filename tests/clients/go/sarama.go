package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

// As for endless work, coming to the broker as the job says.
func (work job) saramaSecure() (*sarama.Config, error) {
	config := saramaConfig(work)
	encryption, err := work.encryption()
	if err != nil || encryption == nil {
		return config, err
	}
	config.Net.TLS.Enable, config.Net.TLS.Config = true, encryption
	if user := work.Properties["sasl.username"]; user != "" {
		config.Net.SASL.Enable, config.Net.SASL.Mechanism = true, sarama.SASLTypePlaintext
		config.Net.SASL.User, config.Net.SASL.Password = user, work.Properties["sasl.password"]
	}
	return config, nil
}

func saramaProduce(_ context.Context, work job) ([]result, error) {
	config, err := work.saramaSecure()
	if err != nil {
		return nil, err
	}
	config.Producer.Compression = saramaCodecs[work.Codec]
	producer, err := sarama.NewAsyncProducer(strings.Split(work.Bootstrap, ","), config)
	if err != nil {
		return nil, err
	}
	results := make([]result, work.Records)
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for range work.Records {
			select {
			case sent := <-producer.Successes():
				index := sent.Metadata.(int)
				results[index].Partition, results[index].Offset = sent.Partition, sent.Offset
			case lost := <-producer.Errors():
				failed <- lost
				return
			}
		}
	}()
	value := bytes.Repeat([]byte("x"), work.ValueBytes)
	start := time.Now()
	for i := range work.Records {
		message := &sarama.ProducerMessage{
			Topic: work.Topic, Key: sarama.ByteEncoder(fmt.Appendf(nil, "key-%d", i%16)), Value: sarama.ByteEncoder(value), Metadata: i,
		}
		if text := traceContext(i, work.ContextEvery, work.UnsampledEvery); text != nil {
			results[i].Traceparent = text
			message.Headers = []sarama.RecordHeader{{Key: []byte("traceparent"), Value: []byte(*text)}}
		}
		if work.Rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(work.Rate))))
		}
		producer.Input() <- message
	}
	if err := <-failed; err != nil {
		return nil, err
	}
	return results, producer.Close()
}

type saramaCollector struct {
	records int
	results []result
	full    context.CancelFunc
}

func (*saramaCollector) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (*saramaCollector) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// The topics of these jobs have one partition: there is one claim at a time.
func (c *saramaCollector) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			line := result{Partition: message.Partition, Offset: message.Offset}
			for _, header := range message.Headers {
				if string(header.Key) == "traceparent" {
					text := string(header.Value)
					line.Traceparent = &text
				}
			}
			c.results = append(c.results, line)
			session.MarkMessage(message, "")
			if len(c.results) == c.records {
				session.Commit()
				c.full()
				return nil
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func saramaConsume(deadline context.Context, work job) ([]result, error) {
	config, err := work.saramaSecure()
	if err != nil {
		return nil, err
	}
	group, err := sarama.NewConsumerGroup(strings.Split(work.Bootstrap, ","), work.Group, config)
	if err != nil {
		return nil, err
	}
	go func() {
		for err := range group.Errors() {
			log.Printf("%s: %v", work.ClientID, err)
		}
	}()
	until, full := context.WithCancel(deadline)
	defer full()
	collector := &saramaCollector{records: work.Records, full: full}
	for until.Err() == nil {
		if err := group.Consume(until, []string{work.Topic}, collector); err != nil {
			return nil, err
		}
	}
	if len(collector.results) < work.Records {
		return nil, fmt.Errorf("consumed %d of %d records: %w", len(collector.results), work.Records, deadline.Err())
	}
	return collector.results, group.Close()
}
