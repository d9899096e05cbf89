package logs

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
)

const (
	// minSecret is the length from which a secret is looked for: a shorter one is in
	// every other line by chance. It is the relay's too.
	minSecret = 6
	// maxSecret is how long one text may be that is looked for; a longer secret is
	// looked for in pieces.
	maxSecret = 1 << 10
	// maxSecrets is how many are looked for.
	maxSecrets = 1 << 10
	// maxDepth is how deep JSON in a variable is searched.
	maxDepth = 16
)

// SecretsIn returns the values of environ ("NAME=value") that must not be seen:
// those of variables whose name says so (…_KEY, …_TOKEN, …_SECRET, …PASSWORD,
// …_DSN and the like), and the passwords inside of URLs and of JSON in any other.
func SecretsIn(environ []string) []string {
	var found collector
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		found.variable(name, value, 0)
	}
	return found.list
}

type collector struct {
	list []string
	seen map[string]bool
}

func (c *collector) add(value string) {
	value = strings.TrimSpace(value)
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	if len(value) < minSecret || trivial(value) || c.seen[value] || len(c.list) == maxSecrets {
		return
	}
	if c.seen == nil {
		c.seen = map[string]bool{}
	}
	c.seen[value] = true
	c.list = append(c.list, value)
}

// variable takes what is secret of one variable, or of one member of an object.
func (c *collector) variable(name, value string, depth int) {
	switch secretName(name) {
	case always:
		c.add(value)
	case perhaps:
		if looksRandom(value) {
			c.add(value)
		}
	}
	for _, password := range passwordsIn(value) {
		c.add(password)
	}
	if begin := strings.TrimSpace(value); depth == 0 && (strings.HasPrefix(begin, "{") || strings.HasPrefix(begin, "[")) {
		var v any
		if json.Unmarshal([]byte(value), &v) == nil {
			c.json(name, v, 1) // VCAP_SERVICES, a Google key
		}
	}
}

func (c *collector) json(name string, v any, depth int) {
	if depth > maxDepth {
		return
	}
	switch v := v.(type) {
	case string:
		c.variable(name, v, depth)
	case []any:
		for _, e := range v {
			c.json(name, e, depth+1)
		}
	case map[string]any:
		for key, e := range v {
			c.json(key, e, depth+1)
		}
	}
}

// verdict is whether a variable holds a secret.
type verdict int

const (
	never   verdict = iota
	perhaps         // when its value looks like one
	always
)

// secretName judges a variable by its name: what the last word of it says holds.
func secretName(name string) verdict {
	if name == "PWD" || name == "OLDPWD" {
		return never
	}
	words := strings.FieldsFunc(strings.ToUpper(name), func(r rune) bool { return r == '_' || r == '-' || r == '.' })
	for len(words) > 1 && strings.Trim(words[len(words)-1], "0123456789V") == "" {
		words = words[:len(words)-1] // API_KEY_2, SECRET_V1
	}
	found := never
	for i, word := range words {
		if !secretWord(word) {
			continue
		}
		if i == len(words)-1 {
			return always
		}
		found = perhaps
	}
	return found
}

func secretWord(word string) bool {
	switch word {
	case "KEY", "KEYS", "PASS", "PWD", "DSN", "PRIVATE", "SALT", "PEPPER", "COOKIE", "AUTH", "JWT", "WHSEC", "PSK":
		return true
	}
	for _, part := range []string{"SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "APIKEY", "CREDENTIAL", "PRIVATEKEY", "ACCESSKEY"} {
		if strings.Contains(word, part) {
			return true
		}
	}
	return strings.HasSuffix(word, "PASS") || strings.HasSuffix(word, "PWD")
}

// looksRandom reports whether nobody would have written value by hand.
func looksRandom(value string) bool {
	return len(value) >= 12 && !strings.ContainsAny(value, " \t\n") &&
		strings.ContainsAny(value, "0123456789") && strings.Trim(value, "0123456789.:") != ""
}

// trivial reports whether value is a word of every other line, or too short a
// number to be one of few.
func trivial(value string) bool {
	switch strings.ToLower(value) {
	case "true", "false", "enabled", "disabled", "default", "undefined", "production", "development", "staging",
		"testing", "localhost", "postgres", "password", "secret", "changeme", "example", "private", "public",
		"required", "optional", "bearer", "sha256", "sha512", "github", "google", "stripe", "heroku", "memory":
		return true
	}
	return len(value) < 8 && strings.Trim(value, "0123456789") == ""
}

// passwordsIn finds what is secret of the URLs in value, of one that is a MySQL DSN
// (user:password@tcp(host)/db), and of one that is made of name=value pairs.
func passwordsIn(value string) []string {
	var found []string
	if _, rest, ok := strings.Cut(value, "://"); ok {
		found = append(found, userinfoIn(rest)...)
		if _, query, ok := strings.Cut(rest, "?"); ok {
			found = append(found, pairsIn(query, "&")...)
		}
		return found
	}
	if user, rest, ok := strings.Cut(value, ":"); ok && !strings.ContainsAny(user, " /=") {
		if n := strings.LastIndex(rest, "@tcp("); n > 0 {
			found = append(found, rest[:n])
		}
	}
	found = append(found, pairsIn(value, " ")...)
	return append(found, pairsIn(value, ";")...)
}

// userinfoIn finds the password in the rest of a URL behind the scheme. More than
// one place may be its end: some write an @ or a / into it as it is.
func userinfoIn(rest string) []string {
	authority := rest
	if n := strings.IndexAny(rest, "/?#"); n >= 0 {
		authority = rest[:n]
	}
	_, port, _ := strings.Cut(authority, ":")
	if !strings.Contains(authority, "@") && strings.Trim(port, "0123456789") == "" {
		return nil // the @ is of a path
	}
	var found []string
	for _, part := range []string{authority, rest} {
		n := strings.LastIndexByte(part, '@')
		if n < 0 {
			continue
		}
		user, password, both := strings.Cut(part[:n], ":")
		if !both && len(user) >= 16 {
			password = user // a token
		}
		found = append(found, password)
		if plain, err := url.PathUnescape(password); err == nil {
			found = append(found, plain)
		}
		if part == authority {
			break
		}
	}
	return found
}

// pairsIn finds the values of pairs whose name says that they are secret.
func pairsIn(text, between string) []string {
	var found []string
	for pair := range strings.SplitSeq(text, between) {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || secretName(strings.TrimSpace(name)) != always {
			continue
		}
		found = append(found, value)
		if plain, err := url.QueryUnescape(value); err == nil {
			found = append(found, plain)
		}
	}
	return found
}

// spellings are the texts to look for where secrets are to be found: each as it is,
// line by line, and as it looks in an address, in JSON and in base64.
func spellings(secrets []string) []word {
	var words []word
	for _, secret := range secrets {
		for line := range strings.FieldsFuncSeq(secret, func(r rune) bool { return r == '\n' || r == '\r' }) {
			for piece := range pieces(strings.TrimSpace(line)) {
				for _, text := range spelled(piece) {
					words = append(words, word{text: text})
				}
				for _, text := range encoded(piece) {
					words = append(words, word{text: text, wide: true})
				}
			}
		}
	}
	return words
}

// pieces are parts of s of at most maxSecret bytes, the last one at its end.
func pieces(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > maxSecret {
			if !yield(s[:maxSecret]) {
				return
			}
			s = s[min(maxSecret, len(s)-maxSecret):]
		}
		if len(s) >= minSecret {
			yield(s)
		}
	}
}

func spelled(s string) []string {
	quoted, _ := json.Marshal(s)
	var plain strings.Builder
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	enc.Encode(s)
	return []string{
		s, url.QueryEscape(s), url.PathEscape(s),
		unquote(string(quoted)), unquote(strings.TrimSuffix(plain.String(), "\n")), unquote(strconv.Quote(s)),
	}
}

func unquote(s string) string { return s[1 : len(s)-1] }

// encoded is s in base64, whatever it stands behind: what comes before it moves it
// by no, one or two bytes. Characters that hold bits of something else are left
// out.
func encoded(s string) []string {
	var found []string
	if len(s) < minSecret+2 {
		return nil
	}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			text := enc.EncodeToString(append(make([]byte, shift), s...))
			begin := (shift*8 + 5) / 6
			end := (shift + len(s)) * 8 / 6
			found = append(found, text[begin:end])
		}
	}
	return found
}
