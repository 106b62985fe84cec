//! How much memory events take on their way into the read models: one budget for the process, in shares.
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
const ROWS_KEPT_MAX: usize = 10_000;

/// Rows that all workers keep in memory between two batches, and all rebuilds.
const ROWS_OF_WORKERS: usize = 200_000;
const ROWS_OF_REBUILDS: usize = 400_000;

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
    /// Bytes of events that a worker reads alone.
    pub read_bytes: usize,
    /// Bytes of a chunk of a rebuild.
    pub chunk_bytes: usize,
    /// Rows that a worker keeps.
    pub rows_kept: usize,
    /// Rows that a rebuild keeps in a partition.
    pub rows_of_rebuild: usize,
}

impl Memory {
    /// Divides `bytes` between so many partitions, in each of which so many projections are worked on and rebuilt. Half is for
    /// what comes over the bus, a quarter for what workers read alone, and a quarter for rebuilds.
    #[must_use]
    pub fn divide(bytes: usize, partitions: usize, projections: usize) -> Self {
        let (partitions, projections) = (partitions.max(1), projections.max(1));
        let workers = partitions * projections;
        let partition = (bytes / 2 / partitions).max(PARTITION_BYTES_MIN);
        Self {
            window_bytes: (partition / 2).min(WINDOW_BYTES_MAX),
            prefetch_bytes: (partition / 4).min(PREFETCH_BYTES_MAX),
            ready_bytes: (partition / 16).min(READ_BYTES_MAX),
            read_bytes: (bytes / 4 / workers).min(READ_BYTES_MAX),
            chunk_bytes: (bytes / 4 / workers / CHUNKS_OF_REBUILD).min(READ_BYTES_MAX),
            rows_kept: (ROWS_OF_WORKERS / workers).min(ROWS_KEPT_MAX),
            rows_of_rebuild: ROWS_OF_REBUILDS / workers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1_024 * 1_024;

    /// All that is taken at once at the most.
    fn taken(memory: Memory, partitions: usize, projections: usize) -> usize {
        let of_partition = memory.window_bytes + memory.prefetch_bytes * 3 / 2 + memory.ready_bytes * 2;
        let of_worker = memory.read_bytes + memory.chunk_bytes * CHUNKS_OF_REBUILD;
        partitions * (of_partition + projections * of_worker)
    }

    #[test]
    fn a_hundred_partitions_take_no_more_than_the_budget() {
        for partitions in [1, 2, 10, 40] {
            let memory = Memory::divide(512 * MIB, partitions, 4);
            assert!(
                taken(memory, partitions, 4) <= 512 * MIB,
                "{partitions}: {memory:?}"
            );
        }
        let memory = Memory::divide(2_048 * MIB, 100, 5);
        assert!(taken(memory, 100, 5) <= 2_048 * MIB, "{memory:?}");
        assert!(100 * 5 * memory.rows_kept <= ROWS_OF_WORKERS);
    }

    #[test]
    fn a_partition_can_go_on_whatever_the_budget() {
        let memory = Memory::divide(0, 100, 5);
        assert!(memory.prefetch_bytes > MIB, "{memory:?}");
    }
}
