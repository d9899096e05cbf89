package relay

import "go.yaml.in/yaml/v3"

// maxAliasNodes is how many nodes aliases may add to a manifest. A file that
// shares a retry schedule among hundreds of endpoints stays far below it; one
// that doubles itself ten times in a row (the "billion laughs") does not.
const maxAliasNodes = 10_000

// aliasExpander copies a tree with every alias replaced by what it stands for
// and every merge key (<<) by the keys it brings, so that the reader sees plain
// nodes only. Copied nodes keep the position of the anchor's content.
type aliasExpander struct {
	r      *manifestReader
	open   map[*yaml.Node]bool // anchors whose content is being copied
	inside int                 // how many aliases surround the current node
	copied int                 // nodes copied inside aliases
	failed bool
}

func (r *manifestReader) expandAliases(root *yaml.Node) (*yaml.Node, bool) {
	x := &aliasExpander{r: r, open: map[*yaml.Node]bool{}}
	root = x.expand(root)
	return root, !x.failed
}

func (x *aliasExpander) fail(n *yaml.Node, format string, args ...any) {
	x.failed = true
	x.r.failPos(n.Line, n.Column, format, args...)
}

func (x *aliasExpander) expand(n *yaml.Node) *yaml.Node {
	if x.failed {
		return n
	}
	if n.Kind == yaml.AliasNode {
		return x.alias(n)
	}
	if x.inside > 0 {
		if x.copied++; x.copied > maxAliasNodes {
			x.fail(n, "expected aliases that add at most %d values to the file", maxAliasNodes)
			return n
		}
	}
	if n.Style&yaml.TaggedStyle != 0 && !plainTag(n.ShortTag()) {
		// The tag is not shown: it may be a password that begins with "!".
		x.fail(n, "expected a value without a tag; quote a text that begins with !")
		return n
	}
	c := *n
	c.Content = nil
	if n.Kind == yaml.MappingNode {
		x.mapping(n, &c)
		return &c
	}
	for _, item := range n.Content {
		c.Content = append(c.Content, x.expand(item))
	}
	return &c
}

func plainTag(tag string) bool {
	switch tag {
	case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!map", "!!seq":
		return true
	}
	return false
}

func (x *aliasExpander) alias(n *yaml.Node) *yaml.Node {
	if x.open[n.Alias] {
		x.fail(n, "expected an alias of something else, found one of what it is part of")
		return n
	}
	x.open[n.Alias] = true
	x.inside++
	c := x.expand(n.Alias)
	x.inside--
	delete(x.open, n.Alias)
	return c
}

// mapping copies n's pairs to c. Keys of n itself win over merged ones, and of
// the merged ones the first wins (yaml.org/type/merge.html).
func (x *aliasExpander) mapping(n, c *yaml.Node) {
	var merged []*yaml.Node
	own := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && !x.failed; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
			merged = append(merged, x.merge(value)...)
			continue
		}
		key = x.expand(key)
		own[key.Value] = true
		c.Content = append(c.Content, key, x.expand(value))
	}
	for i := 0; i+1 < len(merged); i += 2 {
		if key := merged[i]; !own[key.Value] {
			own[key.Value] = true
			c.Content = append(c.Content, key, merged[i+1])
		}
	}
}

// merge gives the pairs that the value of a merge key brings.
func (x *aliasExpander) merge(value *yaml.Node) []*yaml.Node {
	expanded := x.expand(value)
	if x.failed {
		return nil
	}
	sources := []*yaml.Node{expanded}
	if expanded.Kind == yaml.SequenceNode {
		sources = expanded.Content
	}
	var pairs []*yaml.Node
	for _, s := range sources {
		if s.Kind != yaml.MappingNode {
			x.fail(value, "expected << to name a mapping, found %s", kindOf(s))
			return nil
		}
		pairs = append(pairs, s.Content...)
	}
	return pairs
}
