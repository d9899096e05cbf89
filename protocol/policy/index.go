package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// index finds the lines of a list that name a host and port without going through the
// list: names and addresses by one look into a map, patterns by a walk from the last
// label to the first. It is built once and then only read.
type index struct {
	names map[hostPort]int32       // → the first line of this name
	addrs map[netip.AddrPort]int32 // → the first line of this address
	// Patterns are a tree of labels from the right, whose edges are all in one map. Node
	// 0 is the root.
	edges map[edge]int32
	ends  map[nodePort]int32 // → the first line of the pattern that ends at a node
	deep  map[nodePort]int32 // the same of patterns with one more * at their beginning
	// next leads from a line to the next one of the same host and port, -1 ends.
	next []int32
}

type hostPort struct {
	host string
	port uint16
}

type edge struct {
	parent int32
	label  string // "*" fits every label
}

type nodePort struct {
	node int32
	port uint16
}

// newIndex takes n lines. line gives their canonical host pattern and port; ok is false
// for those that are not to be found.
func newIndex(n int, line func(i int) (host string, port uint16, ok bool)) *index {
	x := &index{
		names: make(map[hostPort]int32, n),
		addrs: make(map[netip.AddrPort]int32),
		edges: make(map[edge]int32),
		ends:  make(map[nodePort]int32),
		deep:  make(map[nodePort]int32),
		next:  make([]int32, n),
	}
	nodes := int32(1)
	// From the last to the first, so that each chain ends up in the order of the list.
	for i := int32(n) - 1; i >= 0; i-- {
		host, port, ok := line(int(i))
		if !ok {
			continue
		}
		if a := patternAddr(host); a.IsValid() {
			prepend(x.addrs, netip.AddrPortFrom(a, port), i, x.next)
			continue
		}
		if !strings.Contains(host, "*") {
			prepend(x.names, hostPort{host, port}, i, x.next)
			continue
		}
		rest, deep := strings.CutPrefix(host, "*.")
		node := int32(0)
		for rest != "" {
			var label string
			rest, label = cutLabel(rest)
			child, ok := x.edges[edge{node, label}]
			if !ok {
				child = nodes
				nodes++
				x.edges[edge{node, label}] = child
			}
			node = child
		}
		if deep {
			prepend(x.deep, nodePort{node, port}, i, x.next)
		} else {
			prepend(x.ends, nodePort{node, port}, i, x.next)
		}
	}
	return x
}

// patternAddr is the address that a canonical pattern is; invalid when it is a name.
func patternAddr(host string) netip.Addr {
	if strings.IndexByte(host, ':') < 0 && !numeric(host[strings.LastIndexByte(host, '.')+1:]) {
		return netip.Addr{} // netip would make an error of every name
	}
	a, _ := netip.ParseAddr(host)
	return a
}

// prepend makes line i the first of the chain at key.
func prepend[K comparable](heads map[K]int32, key K, i int32, next []int32) {
	next[i] = -1
	if head, ok := heads[key]; ok {
		next[i] = head
	}
	heads[key] = i
}

// cutLabel takes the last label off a name.
func cutLabel(name string) (rest, label string) {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// none is past every line.
const none = int32(1<<31 - 1)

// find returns the first line for the target at the port that fits, or none. fit is
// asked of lines that name the host, in no order across patterns.
func (x *index) find(t Target, port uint16, fit func(i int32) bool) int32 {
	if t.Addr.IsValid() {
		if len(x.addrs) == 0 {
			return none
		}
		return chainOf(x, x.addrs, netip.AddrPortFrom(t.Addr, port), none, fit)
	}
	best := chainOf(x, x.names, hostPort{t.Host, port}, none, fit)
	if len(x.edges) > 0 {
		best = x.walk(0, t.Host, port, best, fit)
	}
	return best
}

// chainOf returns the first line at key that comes before best and fits, else best.
func chainOf[K comparable](x *index, heads map[K]int32, key K, best int32, fit func(i int32) bool) int32 {
	i, ok := heads[key]
	if !ok {
		return best
	}
	for ; i >= 0 && i < best; i = x.next[i] {
		if fit(i) {
			return i
		}
	}
	return best
}

// walk goes down the tree with the labels that are left of the name.
func (x *index) walk(node int32, rest string, port uint16, best int32, fit func(i int32) bool) int32 {
	if rest == "" {
		return chainOf(x, x.ends, nodePort{node, port}, best, fit)
	}
	if len(x.deep) > 0 {
		best = chainOf(x, x.deep, nodePort{node, port}, best, fit)
	}
	left, label := cutLabel(rest)
	if child, ok := x.edges[edge{node, label}]; ok {
		best = x.walk(child, left, port, best, fit)
	}
	if child, ok := x.edges[edge{node, "*"}]; ok {
		best = x.walk(child, left, port, best, fit)
	}
	return best
}

// ranges finds the ranges that have an address by one look for each length of prefix.
type ranges struct {
	heads map[netip.Prefix]int32
	bits4 []int // the lengths that occur
	bits6 []int
	next  []int32
}

// newRanges takes n lines; ok is false for those without a range.
func newRanges(n int, line func(i int) (p netip.Prefix, ok bool)) *ranges {
	x := &ranges{heads: make(map[netip.Prefix]int32), next: make([]int32, n)}
	for i := int32(n) - 1; i >= 0; i-- {
		p, ok := line(int(i))
		if !ok || !p.IsValid() {
			continue
		}
		p = unmapPrefix(p)
		prepend(x.heads, p, i, x.next)
		bits := &x.bits6
		if p.Addr().Is4() {
			bits = &x.bits4
		}
		if !slices.Contains(*bits, p.Bits()) {
			*bits = append(*bits, p.Bits())
		}
	}
	return x
}

// find returns the first range with the address that fits, or none.
func (x *ranges) find(a netip.Addr, fit func(i int32) bool) int32 {
	bits := x.bits6
	if a.Is4() {
		bits = x.bits4
	}
	best := none
	for _, n := range bits {
		p, err := a.Prefix(n)
		if err != nil {
			continue
		}
		i, ok := x.heads[p]
		for ; ok && i >= 0 && i < best; i = x.next[i] {
			if fit(i) {
				best = i
				break
			}
		}
	}
	return best
}
