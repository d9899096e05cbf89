// Package conceal keeps the agent's token from everybody beside the agent: from the
// app, which runs under the same user, and from whoever gets to run code in it.
//
//	Token
//	├─ undumpable  PR_SET_DUMPABLE 0: /proc/<agent>/{environ,mem,fd} are root's, no debugger, no core
//	├─ 1st start   POSTERN_TOKEN is set
//	│  └─ again    token ─► pipe ─► execve of ourselves, same pid, environment without it
//	└─ 2nd start   POSTERN_TOKEN_FD is set
//	   └─ receive  pipe ─► token; closed
//
// A variable cannot just be unset: /proc/<agent>/environ shows the memory that execve
// filled, whatever the program does later, and root, which is who the app is in many a
// container, reads it all the same. Only another execve makes that memory anew. Arguments
// are no better: everybody reads them. What a pipe held is gone when it has been read.
//
// What remains: root can read the agent's memory with a debugger, where the container
// allows that at all. Nothing can be hidden from root there.
//
// It does not touch limits (a core limit of ours would be the app's too; that the agent
// cannot be dumped is enough) and starts no process. On other systems than Linux it only
// takes the token out of the environment that the app would inherit.
//
// The one rule to know: Token comes first in the program, before any goroutine, file or
// child, because the program begins anew in the middle of it. The caller's arguments are
// read twice and what it wrote before is written twice.
package conceal
