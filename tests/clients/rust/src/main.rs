//! A Kafka application of the tests over krafka: one JSON object says what to do, one line per record says what came of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use krafka::auth::{AuthConfig, TlsConfig};
use krafka::consumer::AutoOffsetReset;
use krafka::{Compression, Kafka, Record};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How long a poll waits: the job's end does not wait for longer.
const POLL: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
struct Job {
    mode: String,
    bootstrap: String,
    client_id: String,
    topic: String,
    group: String,
    records: usize,
    codec: String,
    context_every: usize,
    unsampled_every: usize,
    rate: u32,
    value_bytes: usize,
    linger_ms: u64,
    timeout_seconds: u64,
    /// How to come to the broker, in librdkafka's words.
    properties: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Told {
    partition: i32,
    offset: i64,
    traceparent: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let text = std::env::args().nth(1).context("what to do is one JSON object")?;
    let job: Job = serde_json::from_str(&text)?;
    let limit = Duration::from_secs(job.timeout_seconds);
    let told = tokio::time::timeout(limit, job.run()).await.context("not done in time")??;
    let mut output = BufWriter::new(std::io::stdout().lock());
    for line in told {
        serde_json::to_writer(&mut output, &line)?;
        output.write_all(b"\n")?;
    }
    Ok(output.flush()?)
}

impl Job {
    async fn run(&self) -> Result<Vec<Told>> {
        let kafka = Kafka::builder(&self.bootstrap).client_id(&self.client_id).security(self.security()?).connect().await?;
        match self.mode.as_str() {
            "produce" => self.produce(&kafka).await,
            "consume" => self.consume(&kafka).await,
            other => bail!("no {other} with krafka"),
        }
    }

    fn security(&self) -> Result<AuthConfig> {
        let word = |name: &str| self.properties.get(name).with_context(|| format!("no {name}"));
        let Some(authority) = self.properties.get("ssl.ca.location") else { return Ok(AuthConfig::plaintext()) };
        let tls = TlsConfig::new().with_ca_cert(authority);
        if word("security.protocol")? == "SSL" {
            return Ok(AuthConfig::ssl(tls.with_client_cert(word("ssl.certificate.location")?, word("ssl.key.location")?)));
        }
        Ok(AuthConfig::sasl_plain(word("sasl.username")?, word("sasl.password")?).with_tls(tls))
    }

    async fn produce(&self, kafka: &Kafka) -> Result<Vec<Told>> {
        let codec = match self.codec.as_str() {
            "none" => Compression::None,
            "gzip" => Compression::Gzip,
            "snappy" => Compression::Snappy,
            "lz4" => Compression::Lz4,
            "zstd" => Compression::Zstd,
            other => bail!("no codec {other}"),
        };
        let producer = kafka.producer().compression(codec).linger(Duration::from_millis(self.linger_ms)).build().await?;
        let start = Instant::now();
        let mut sent = Vec::with_capacity(self.records);
        for index in 0..self.records {
            let traceparent = self.context(index)?;
            let mut record = Record::new(&self.topic, vec![b'x'; self.value_bytes]).key(format!("key-{}", index % 16));
            if let Some(text) = &traceparent {
                record = record.header("traceparent", text.clone());
            }
            if let Some(interval) = Duration::from_secs(1).checked_div(self.rate) {
                tokio::time::sleep_until(start + interval * u32::try_from(index)?).await;
            }
            sent.push((producer.enqueue(record).await?, traceparent));
        }
        let mut told = Vec::with_capacity(sent.len());
        for (handle, traceparent) in sent {
            let stored = handle.await?;
            // What was stored by an attempt whose answer was lost has no offset that the library knows.
            ensure!(stored.is_success(), "a record of which krafka knows no offset: {stored:?}");
            told.push(Told { partition: stored.partition, offset: stored.offset, traceparent });
        }
        producer.close().await?;
        Ok(told)
    }

    async fn consume(&self, kafka: &Kafka) -> Result<Vec<Told>> {
        let consumer = kafka.consumer(&self.group).auto_offset_reset(AutoOffsetReset::Earliest).enable_auto_commit(false).build().await?;
        consumer.subscribe([&self.topic]).await?;
        let mut told = Vec::with_capacity(self.records);
        while told.len() < self.records {
            let records = consumer.poll(POLL).await?;
            if records.is_empty() {
                continue;
            }
            told.extend(records.iter().map(|record| Told {
                partition: record.partition,
                offset: record.offset,
                traceparent: record.header_str("traceparent").map(str::to_owned),
            }));
            consumer.commit().await?;
        }
        consumer.close().await?;
        Ok(told)
    }

    fn context(&self, index: usize) -> Result<Option<String>> {
        if self.context_every == 0 || !index.is_multiple_of(self.context_every) {
            return Ok(None);
        }
        let unsampled = self.unsampled_every != 0 && index / self.context_every % self.unsampled_every == self.unsampled_every - 1;
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        let mut random = File::open("/dev/urandom")?;
        random.read_exact(&mut trace)?;
        random.read_exact(&mut span)?;
        let (trace, span, flags) = (u128::from_ne_bytes(trace), u64::from_ne_bytes(span), if unsampled { "00" } else { "01" });
        Ok(Some(format!("00-{trace:032x}-{span:016x}-{flags}")))
    }
}
