// Package node builds one relay process out of its parts, starts them, and stops
// them in an order in which no accepted work is lost.
//
// It is the only package that knows all the parts; they know each other by the
// interfaces they declare. It holds no logic of its own besides the order.
//
// The one rule to know: Run returns only when everything it started is gone, and
// what is started first is stopped last.
package node
