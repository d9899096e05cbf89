// Package sqlite is the relay.Store of a single node: one SQLite file, a folder
// for large bodies beside it, and the driver in pure Go. relay/storetest is its
// contract.
//
// It decides nothing about events (relay does), and repeats nothing for its
// caller but the wait for another process's lock, ten seconds at most.
//
// The one rule to know: everything that writes is an operation that the writer
// runs. The writer is a goroutine, started by Open and ended by Close, and the
// only user of the only write connection. It takes the write lock, gathers what
// waits, runs it in one transaction and syncs that to the disk, once for all; what
// comes meanwhile is the next batch. There is no timer: under light load a batch
// is one operation, under heavy load a sync is shared by up to 256 of them, or by
// 4 MiB of bodies. An operation returns nil only after the sync.
//
//	Store.CreateEvents, FinishAttempt, ...   in the caller's goroutine: hash, encode, large bodies to files
//	└── queue.do                             waits; may be withdrawn until the writer has taken it
//	    writer.run                           until the queue is closed and empty
//	    ├── batch
//	    │   ├── begin                        the write lock, and then
//	    │   ├── queue.take                   accepted events first, a quarter for the others
//	    │   ├── try                          every operation; again with savepoints when one fails half-way
//	    │   ├── tx.flush                     what they counted: backlogs, usage, replays
//	    │   └── COMMIT                       fails for all of them or for none
//	    └── tidy                             checkpoints, after everybody was told
//
// Reads go to a pool of connections that cannot write and never wait for the
// writer. They are short, because the write-ahead log cannot begin anew while
// somebody reads in it: a search for text reads some hundred events at a time.
//
// A claim is both: the writer leases, and the caller then reads the events with
// their bodies.
//
// A body of 256 KiB or more is a file, named in its row. It is durable before its
// row is, and deleted after it (bodies.go). Bodies are checked against their hash
// whenever they are read; a damaged one is never delivered.
//
// What a webhook costs does not depend on how many are stored, nor what a claim
// costs on how many wait: every query walks an index, or a partial index which
// holds only what is unfinished, and what would have to be counted is kept as a
// count by the transaction that changes it. TestNoQueryWalksATable has them all.
// The exceptions are searches by what has no index: a type, a text, an outcome; and
// lists of all apps' flows, which are sorted.
//
// Sums of flows come each second and in thousands. Their rows lie by hour, so that a
// second's are on a few pages next to each other, whatever lies behind them.
//
//	Open
//	├── createFile        mode 0600, before SQLite could make it with another
//	├── prepare           on the write connection
//	│   ├── identify      refuses foreign, newer and damaged files, changes nothing
//	│   ├── enterWAL
//	│   └── migrate       under the write lock: of two processes one does the work
//	├── bodies.sweep      files that a crash left without a row
//	├── the read pool
//	└── writer.run
//
// Times are kept to the microsecond (rounded down) and come back in UTC. Header
// lines, bodies and whatever else a sender chose come back byte for byte; a nil
// and an empty slice are the same to the store and come back nil.
//
// Other processes on the same machine may open the file at the same time, as the
// offline verbs of postern-relay do. The file must be on a local disk: SQLite's
// write-ahead log needs shared memory.
package sqlite
