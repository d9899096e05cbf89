// Package sqlite is the relay.Store of a single node: one SQLite file, with the
// driver in pure Go. relay/storetest is its contract.
//
// It does not decide anything about events (relay does), runs no goroutine of
// its own, and repeats nothing for its caller but the wait for another process's
// lock, ten seconds at most.
//
// The one rule to know: everything that writes goes through Store.write, a
// transaction on the only write connection that takes the write lock at its
// beginning and is synced to the disk when it commits. So writers queue in Go
// instead of failing, and what was read inside is still true at the commit. Reads
// go to a pool that cannot write and never waits for the writer.
//
//	Open
//	├── createFile        mode 0600, before SQLite could make it with another
//	├── prepare           on the write connection
//	│   ├── identify      refuses foreign, newer and damaged files, changes nothing
//	│   ├── enterWAL
//	│   └── migrate       under the write lock: of two processes one does the work
//	└── the read pool
//
// Times are kept to the microsecond (rounded down) and come back in UTC. Header
// lines, bodies and whatever else a sender chose come back byte for byte; a nil
// and an empty slice are the same to the store and come back nil.
//
// Other processes on the same machine may open the file at the same time, as the
// offline verbs of postern-relay do. The file must be on a local disk: SQLite's
// write-ahead log needs shared memory.
package sqlite
