//! How much memory events take on their way into the read models, and rows: one budget for the process, in shares.
//!
//! Each partition, worker and rebuild has a share of its own, of which nobody else takes anything: nothing ever waits for
//! memory, so nothing can wait for ever. More partitions mean smaller shares, and smaller batches. Whoever has a share can go
//! on with at least one event, however large that is.

/// No partition has less than this: a message of the usual largest size (1 MiB) has to fit its smallest part.
const PARTITION_BYTES_MIN: usize = 6 * 1_024 * 1_024;

/// More than this is of no use.
pub(crate) const WINDOW_BYTES_MAX: usize = 64 * 1_024 * 1_024;
const PREFETCH_BYTES_MAX: usize = 16 * 1_024 * 1_024;
const READ_BYTES_MAX: usize = 8 * 1_024 * 1_024;
const ROWS_BYTES_MAX: usize = 16 * 1_024 * 1_024;

/// No worker and no rebuild has less than this for its rows: a batch has to be worth a transaction.
const ROWS_BYTES_MIN: usize = 256 * 1_024;

/// Chunks that a rebuild has in memory in each partition: one is read, some wait, and one is applied.
pub(crate) const CHUNKS_OF_REBUILD: usize = 4;

/// The share of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of a partition's window of events.
    pub window_bytes: usize,
    /// Bytes of messages that NATS sends ahead of a partition's reader. Up to half as much again is under way.
    pub prefetch_bytes: usize,
    /// Bytes of events that a partition's reader has ready; as much again is being read.
    pub ready_bytes: usize,
    /// Of the events that a worker has in its hands, whether it took them from the window or read them alone, in bytes.
    pub read_bytes: usize,
    /// Bytes of a chunk of a rebuild.
    pub chunk_bytes: usize,
    /// Of the rows of a worker, in bytes.
    pub rows_bytes: usize,
    /// Of the rows of a rebuild in a partition, in bytes.
    pub rebuilt_rows_bytes: usize,
}

impl Memory {
    /// Divides `bytes` between so many partitions, in each of which so many projections are worked on and rebuilt. Half is for
    /// what comes over the bus, an eighth for what workers have in their hands, an eighth for the events of rebuilds, and what
    /// these leave for rows: a quarter at least.
    #[must_use]
    pub fn divide(bytes: usize, partitions: usize, projections: usize) -> Self {
        let (partitions, projections) = (partitions.max(1), projections.max(1));
        let workers = partitions * projections;
        let partition = (bytes / 2 / partitions).max(PARTITION_BYTES_MIN);
        let mut memory = Self {
            window_bytes: (partition / 2).min(WINDOW_BYTES_MAX),
            prefetch_bytes: (partition / 4).min(PREFETCH_BYTES_MAX),
            ready_bytes: (partition / 16).min(READ_BYTES_MAX),
            read_bytes: (bytes / 8 / workers).min(READ_BYTES_MAX),
            chunk_bytes: (bytes / 8 / workers / CHUNKS_OF_REBUILD).min(READ_BYTES_MAX),
            rows_bytes: 0,
            rebuilt_rows_bytes: 0,
        };
        let left = bytes.saturating_sub(memory.of_events(partitions, projections));
        let rows = (left / workers).max(2 * ROWS_BYTES_MIN);
        memory.rows_bytes = (rows / 2).min(ROWS_BYTES_MAX);
        memory.rebuilt_rows_bytes = rows - memory.rows_bytes;
        memory
    }

    /// What all events take at once at the most.
    fn of_events(&self, partitions: usize, projections: usize) -> usize {
        let of_partition = self.window_bytes + self.prefetch_bytes * 3 / 2 + self.ready_bytes * 2;
        let of_worker = self.read_bytes + self.chunk_bytes * CHUNKS_OF_REBUILD;
        partitions * (of_partition + projections * of_worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1_024 * 1_024;

    /// All that is taken at once at the most.
    fn taken(memory: Memory, partitions: usize, projections: usize) -> usize {
        let rows = memory.rows_bytes + memory.rebuilt_rows_bytes;
        memory.of_events(partitions, projections) + partitions * projections * rows
    }

    #[test]
    fn a_hundred_partitions_take_no_more_than_the_budget() {
        for partitions in [1, 2, 10, 40] {
            let memory = Memory::divide(512 * MIB, partitions, 4);
            assert!(
                taken(memory, partitions, 4) <= 512 * MIB,
                "{partitions}: {memory:?}"
            );
            assert!(
                4 * partitions * memory.rows_bytes.min(memory.rebuilt_rows_bytes) >= 50 * MIB,
                "{partitions}: rows have their share: {memory:?}"
            );
        }
        let memory = Memory::divide(2_048 * MIB, 100, 5);
        assert!(taken(memory, 100, 5) <= 2_048 * MIB, "{memory:?}");
    }

    #[test]
    fn a_partition_can_go_on_whatever_the_budget() {
        let memory = Memory::divide(0, 100, 5);
        assert!(memory.prefetch_bytes > MIB, "{memory:?}");
    }
}
