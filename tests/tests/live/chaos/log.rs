//! What the brokers stored: the batches in their partitions' logs, read from the files. A truth that neither client nor tracer had a hand in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Bytes before the count of a batch's length begins, and of the whole header (record batch v2).
const LENGTH_END: usize = 12;
const HEADER: usize = 61;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// A stored batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) base: i64,
    pub(super) last: i64,
    pub(super) size: i64,
    pub(super) codec: &'static str,
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i16,
    pub(super) base_sequence: i32,
    pub(super) transactional: bool,
    /// A transaction's end: no message.
    pub(super) control: bool,
}

/// Topic and partition.
pub(super) type Partition = (String, i32);

/// All that is stored of some topics.
#[derive(Debug, Default)]
pub(super) struct Log {
    partitions: BTreeMap<Partition, BTreeMap<i64, Batch>>,
    /// Topics by id.
    ids: BTreeMap<String, String>,
}

impl Log {
    /// Reads the logs of all replicas, which agree as far as each of them goes.
    pub(super) fn read(replicas: &[PathBuf], topics: &[String]) -> Result<Self> {
        let mut log = Self::default();
        for replica in replicas {
            for entry in fs::read_dir(replica).with_context(|| format!("cannot read {}", replica.display()))? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let Some((topic, partition)) = name.rsplit_once('-') else { continue };
                let (Some(topic), Ok(partition)) = (topics.iter().find(|known| *known == topic), partition.parse()) else { continue };
                log.ids.insert(topic_id(&path)?, topic.clone());
                let known = log.partitions.entry((topic.clone(), partition)).or_default();
                for batch in partition_log(&path)? {
                    let before = known.insert(batch.base, batch).unwrap_or(batch);
                    anyhow::ensure!(before == batch, "replicas of {name} differ: {before:?} and {batch:?}");
                }
            }
        }
        Ok(log)
    }

    /// The name of the topic with this id.
    pub(super) fn topic(&self, id: &str) -> Option<&str> {
        self.ids.get(id).map(String::as_str)
    }

    /// The batch that holds an offset.
    pub(super) fn batch(&self, partition: &Partition, offset: i64) -> Option<&Batch> {
        let (_, batch) = self.partitions.get(partition)?.range(..=offset).next_back()?;
        (batch.base..=batch.last).contains(&offset).then_some(batch)
    }

    /// Messages stored.
    pub(super) fn messages(&self) -> i64 {
        self.partitions.values().flat_map(BTreeMap::values).filter(|batch| !batch.control).map(|batch| batch.last - batch.base + 1).sum()
    }
}

/// As Kafka writes it beside the segments, and spells it everywhere.
fn topic_id(dir: &Path) -> Result<String> {
    let path = dir.join("partition.metadata");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("topic_id: "));
    Ok(id.with_context(|| format!("{} names no topic id", path.display()))?.to_owned())
}

fn partition_log(dir: &Path) -> Result<Vec<Batch>> {
    let mut segments: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    let mut batches = Vec::new();
    for segment in segments {
        let bytes = fs::read(&segment)?;
        let mut rest = bytes.as_slice();
        while let Some(batch) = batch(rest) {
            let size = usize::try_from(batch.size)?;
            // The last one may be in the making.
            let Some(after) = rest.get(size..) else { break };
            batches.push(batch);
            rest = after;
        }
    }
    Ok(batches)
}

fn batch(bytes: &[u8]) -> Option<Batch> {
    const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    let long = |at: usize| header.get(at..at + 8)?.try_into().ok().map(i64::from_be_bytes);
    let int = |at: usize| header.get(at..at + 4)?.try_into().ok().map(i32::from_be_bytes);
    let short = |at: usize| header.get(at..at + 2)?.try_into().ok().map(i16::from_be_bytes);
    let (base, attributes) = (long(0)?, short(21)?);
    Some(Batch {
        base,
        last: base + i64::from(int(23)?),
        size: i64::from(int(8)?) + i64::try_from(LENGTH_END).ok()?,
        codec: CODECS.get(usize::try_from(attributes & 7).ok()?)?,
        producer_id: long(43)?,
        producer_epoch: short(51)?,
        base_sequence: int(53)?,
        transactional: attributes & TRANSACTIONAL != 0,
        control: attributes & CONTROL != 0,
    })
}
