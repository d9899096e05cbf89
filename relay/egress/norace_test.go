//go:build !race

package egress

// raced is set when the race detector looks on.
const raced = false
