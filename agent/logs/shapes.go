package logs

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
)

// A shape looks at what stands around a word that was found and says what of it is
// secret. It reads to the end of the line at most, once.
type shape func(l look) (span, bool)

// look is where a word was found.
type look struct {
	text     []byte
	from, to int // the word

	// open: text goes on, nobody knows how, and what reaches its end counts as found.
	// block: to be opened where the secret goes on in the next lines.
	// left: less what was read.
	*workspace
}

// shapes are the words in front of a secret, or at its beginning.
func shapes() []word {
	var words []word
	fold := func(s shape, texts ...string) {
		for _, text := range texts {
			words = append(words, word{text: text, fold: true, shape: s})
		}
	}
	fold(assigned, "password", "passwd", "passphrase", "secret", "token", "credential",
		"api_key", "apikey", "api-key", "access_key", "accesskey", "access-key", "accountkey",
		"private_key", "privatekey", "private-key", "master_key", "signing_key", "encryption_key")
	fold(assignedWord, "pass", "pwd=", "pwd:", "pwd\"", "pwd'", "pwd\\", "sig=", "signature=")
	fold(authorization, "authorization")
	fold(cookie, "cookie")
	fold(bearer, "bearer")
	fold(basic, "basic ")
	words = append(words,
		word{text: "?://", wild: true, shape: userinfo},
		word{text: "-----BEGIN ", shape: privateKey})

	begins := func(least int, prefixes ...string) {
		for _, p := range prefixes {
			words = append(words, word{text: p, shape: prefixed(least, false)})
		}
	}
	begins(8, "sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_")
	begins(16, "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "shpat_",
		"shpss_", "shpca_", "xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xapp-", "HRKU-", "rnd_", "hvs.", "fm1_",
		"fm2_", "fo1_", "ya29.", "sk-ant-", "sk-proj-", "sq0atp-", "sq0csp-", "xkeysib-", "dckr_pat_", "lin_api_",
		"dop_v1_", "AGE-SECRET-KEY-1", "pscale_tkn_")
	begins(30, "AIza", "npm_", "pypi-", "key-")
	for c := range byte(128) { // these are shorter than a window
		if alnum(c) {
			for _, p := range []string{"SG.", "sk-", "hf_"} {
				words = append(words, word{text: p + string(c), shape: prefixed(20, true)})
			}
			words = append(words, word{text: "eyJ" + string(c), shape: webToken})
		}
	}
	return words
}

// assigned is what a name like password is given: password=…, "password": "…",
// password => '…', --password …, <password>…<, and these inside of other quotes.
func assigned(l look) (span, bool) {
	i := skipSuffix(l.text, l.to)
	plural := i > l.to && (l.text[i-1]|0x20) == 's'
	i, sep := skipSeparator(l.text, i)
	if sep == 0 {
		if i = flagValue(l); i < 0 {
			return span{}, false
		}
	}
	s, quoted := l.value(i, sep)
	v := bytes.TrimRight(l.text[s.from:s.to], "]})>") // of what is around it
	if trivialValue(v) || plural && !quoted && digits(v) {
		return span{}, false
	}
	return s, true
}

// assignedWord is assigned for names that are part of too many words.
func assignedWord(l look) (span, bool) {
	if l.from > 0 && letter(l.text[l.from-1]) {
		return span{}, false
	}
	if last := l.text[l.to-1]; !letter(last) { // the separator, or a quote, is part of the word
		l.to--
	}
	s, ok := assigned(l)
	return s, ok && l.text[s.from] != '/' // PWD=/app
}

// suffixes are what names of secrets go on with.
var suffixes = []string{"confirmation", "digest", "value", "base", "hash", "text", "key", "s"}

// skipSuffix is where a name ends of which i is inside: secret_key_base, tokens,
// password2.
func skipSuffix(text []byte, i int) int {
	for range 3 {
		j := i
		if j < len(text) && (text[j] == '_' || text[j] == '-') {
			j++
		}
		k := slices.IndexFunc(suffixes, func(s string) bool {
			return len(text)-j >= len(s) && foldEqual(text[j:j+len(s)], s)
		})
		if k < 0 {
			break
		}
		i = j + len(suffixes[k])
	}
	if j := i; j < len(text) && text[j] == '_' {
		j++
		if j < len(text) && digit(text[j]) {
			i = j
		}
	}
	for i < len(text) && digit(text[i]) {
		i++
	}
	return i
}

// skipSeparator skips what stands between a name and its value, and says which
// separator that was; 0 is none.
func skipSeparator(text []byte, i int) (int, byte) {
	i = skipAny(text, i, "\\\"'`])", "%22", "%5D")
	i = skipAny(text, i, " \t")
	if i < len(text) && text[i] == '>' { // an element of XML
		return i + 1, '>'
	}
	j := skipAny(text, i, ":=>", "%3D", "%3d", "%3A", "%3a")
	if j == i {
		return i, 0
	}
	j = skipAny(text, j, " \t[({", "%5B", "%20", "%22")
	return j, text[i]
}

// skipAny skips a few of the bytes in set, and of the texts.
func skipAny(text []byte, i int, set string, texts ...string) int {
	for range 8 {
		j := i
		if i < len(text) && strings.IndexByte(set, text[i]) >= 0 {
			j = i + 1
		}
		for _, t := range texts {
			if bytes.HasPrefix(text[i:], []byte(t)) {
				j = i + len(t)
			}
		}
		if j == i {
			break
		}
		i = j
	}
	return i
}

// flagValue is where the value of --password begins that is an argument of its own;
// -1 when it is none.
func flagValue(l look) int {
	i := l.from
	for i > 0 && l.from-i < 32 && (letter(l.text[i-1]) || l.text[i-1] == '-') {
		i--
	}
	j := skipAny(l.text, l.to, " ")
	if !bytes.HasPrefix(l.text[i:], []byte("--")) || j == l.to {
		return -1
	}
	return j
}

// value is the value that begins at i, without its quotes.
func (l *look) value(i int, sep byte) (_ span, quoted bool) {
	text := l.text
	if sep == '>' {
		return l.until(i, func(c byte) bool { return c == '<' }), true
	}
	if i+1 < len(text) && (text[i] == 'b' || text[i] == 'u') && (text[i+1] == '\'' || text[i+1] == '"') {
		i++ // Python
	}
	slashes := 0
	for i+slashes < len(text) && text[i+slashes] == '\\' {
		slashes++
	}
	if q := i + slashes; q < len(text) && (text[q] == '"' || text[q] == '\'' || text[q] == '`') {
		return l.quoted(q+1, text[q], slashes), true
	}
	return l.until(i, endsValue), false
}

// quoted is what begins at i behind a quote that had so many backslashes before it.
func (l *look) quoted(i int, quote byte, slashes int) span {
	s := span{i, i}
	run := 0
	for ; s.to < len(l.text); s.to++ {
		switch c := l.text[s.to]; {
		case c == '\\':
			run++
			continue
		case c == quote && run%(2*(slashes+1)) == slashes:
			l.left -= s.to - i
			return span{i, s.to - run}
		}
		run = 0
	}
	l.left -= s.to - i
	return s
}

// until is what begins at i, up to the first byte that ends it.
func (l *look) until(i int, ends func(byte) bool) span {
	s := span{i, i}
	for s.to < len(l.text) && !ends(l.text[s.to]) {
		s.to++
	}
	l.left -= s.to - i
	return s
}

func endsValue(c byte) bool {
	switch c {
	case ' ', '\t', '"', '\'', '`', '&', ',', ';', '\r':
		return true
	}
	return false
}

func endsLine(c byte) bool { return c == '"' || c == '\'' || c == '`' || c == '\r' }

// authorization is the header: of a scheme that is known, the scheme may be seen.
func authorization(l look) (span, bool) {
	i, sep := skipSeparator(l.text, l.to)
	if sep == 0 {
		return span{}, false
	}
	s, quoted := l.value(i, sep)
	if quoted {
		return s, true
	}
	scheme := strings.ToLower(string(l.text[s.from:min(s.to, s.from+32)]))
	switch scheme {
	case "bearer", "basic", "token", "key", "apikey", "jwt", "splunk", "negotiate":
		return l.until(skipAny(l.text, s.to, " "), endsValue), true
	case "digest", "aws4-hmac-sha256", "hmac":
		return l.until(s.to, endsLine), true
	}
	return s, true
}

// cookie is a header of cookies: all of them.
func cookie(l look) (span, bool) {
	i, sep := skipSeparator(l.text, l.to)
	if sep == 0 || sep == '>' {
		return span{}, false
	}
	s, quoted := l.value(i, sep)
	if !quoted {
		s = l.until(i, endsLine)
	}
	return s, true
}

// bearer is a token behind its scheme, where it is not said that it is about one.
func bearer(l look) (span, bool) {
	i := skipAny(l.text, l.to, " :+", "%20")
	if i == l.to {
		return span{}, false
	}
	s := l.until(i, func(c byte) bool { return endsValue(c) || c == '<' || c == ')' || c == '}' || c == ']' })
	v := strings.ToLower(string(l.text[s.from:min(s.to, s.from+16)]))
	for _, said := range []string{"auth", "token", "realm", "error", "scheme", "header", "format"} {
		if strings.HasPrefix(v, said) {
			return span{}, false
		}
	}
	return s, s.to-s.from >= 6 || l.ends(s)
}

// basic is a user's name and password in base64.
func basic(l look) (span, bool) {
	s := l.until(l.to, func(c byte) bool { return !base64Byte(c) && c != '=' })
	if s.to-s.from < 4 || s.to-s.from > 1<<10 {
		return s, s.to-s.from > 4
	}
	text := strings.TrimRight(string(l.text[s.from:s.to]), "=")
	plain, err := base64.RawStdEncoding.DecodeString(text)
	return s, err == nil && bytes.IndexByte(plain, ':') >= 0 || l.ends(s)
}

// ends reports whether s goes on behind the end of an open text.
func (l *look) ends(s span) bool { return l.open && s.to == len(l.text) && s.from < s.to }

// prefixed is a token that says by its beginning what it is, with at least so many
// bytes behind that, and a digit among them where names may begin like it.
func prefixed(least int, digit bool) shape {
	return func(l look) (span, bool) {
		if !begins(l.text, l.from) {
			return span{}, false
		}
		s := l.until(l.to, func(c byte) bool { return !alnum(c) && c != '_' && c != '-' && c != '.' })
		if l.open && s.to == len(l.text) {
			return span{l.from, s.to}, true
		}
		named := digit && !bytes.ContainsAny(l.text[s.from:s.to], "0123456789")
		return span{l.from, s.to}, s.to-s.from >= least && !named
	}
}

// webToken is a JWT, or something else that is signed JSON in base64.
func webToken(l look) (span, bool) {
	if !begins(l.text, l.from) {
		return span{}, false
	}
	s := l.until(l.to, func(c byte) bool { return !base64Byte(c) && c != '.' && c != '=' && c != '%' })
	s.from = l.from
	v := l.text[s.from:s.to]
	if l.ends(s) {
		return s, true
	}
	return s, len(v) >= 20 && (bytes.IndexByte(v, '.') > 0 || bytes.Contains(v, []byte("--")))
}

// begins reports whether a word may begin at i: not in the middle of another one.
// The letter of \n and the digits of %3D are none.
func begins(text []byte, i int) bool {
	switch {
	case i == 0 || !alnum(text[i-1]):
		return true
	case i >= 2 && text[i-2] == '\\', i >= 3 && text[i-3] == '%':
		return true
	}
	return i >= 6 && text[i-6] == '\\' && text[i-5] == 'u'
}

// userinfo is the password in a URL, or a user's name that is long enough for a
// token.
func userinfo(l look) (span, bool) {
	s := l.until(l.to, func(c byte) bool {
		return c <= ' ' || c == '"' || c == '\'' || c == '`' || c == '<' || c == '>'
	})
	all := l.text[s.from:s.to]
	authority := all
	if n := bytes.IndexAny(all, "/?#\\"); n >= 0 {
		authority = all[:n]
	}
	colon := bytes.IndexByte(authority, ':')
	at := bytes.LastIndexByte(authority, '@')
	if at < 0 && colon >= 0 && len(authority) < len(all) && !digits(authority[colon+1:]) && all[0] != '[' {
		at = bytes.LastIndexByte(all, '@') // a password with / in it, as nobody should write it
	}
	switch {
	case at < 0 && l.open && s.to == len(l.text) && len(authority) == len(all):
		return span{s.from + max(0, colon+1), s.to}, true // the @ may be still to come
	case at < 0:
		return span{}, false
	case colon >= 0 && colon < at:
		return span{s.from + colon + 1, s.from + at}, true
	}
	return span{s.from, s.from + at}, at >= 16
}

// privateKey is a private key in PEM, to its end in this line, or in another one.
func privateKey(l look) (span, bool) {
	head := l.text[l.to:min(len(l.text), l.to+48)]
	if !bytes.Contains(head, []byte("PRIVATE KEY")) {
		return span{l.from, len(l.text)}, l.open && len(head) < 48
	}
	rest := l.text[l.to:]
	l.left -= len(rest)
	if n := endOfKey(rest); n >= 0 {
		return span{l.from, l.to + n}, true
	}
	// With its line ends written as \n it is all on one line, that of a cut one too.
	l.block.open = !bytes.Contains(rest, []byte(`\n`))
	l.block.lines, l.block.odd = 0, 0
	return span{l.from, len(l.text)}, true
}

// endOfKey is the place behind the last line of a key, -1 when it is not there.
func endOfKey(text []byte) int {
	n := bytes.Index(text, []byte("-----END "))
	if n < 0 {
		return -1
	}
	n += len("-----END ")
	if m := bytes.Index(text[n:], []byte("-----")); m >= 0 {
		return n + m + len("-----")
	}
	return len(text)
}

// block is a private key that has begun and whose lines come one by one. It ends
// with its last line, or with what cannot be a part of it.
type block struct {
	open  bool
	lines int // so far
	odd   int // lines in a row that do not look like a key's
}

const (
	maxKeyLines = 200 // 16384 bits of RSA
	maxOddLines = 2   // the last line of a key may be short
)

// enter hides what belongs to the block and returns where the rest begins.
func (b *block) enter(w *workspace, text []byte) int {
	if !b.open {
		return 0
	}
	if n := endOfKey(text); n >= 0 {
		b.open = false
		w.add(0, n)
		return n
	}
	b.lines++
	if b.odd++; keyLine(text) {
		b.odd = 0
	}
	if b.lines > maxKeyLines || b.odd > maxOddLines {
		b.open = false
		return 0
	}
	if len(text) > 0 {
		w.add(0, len(text))
	}
	return len(text)
}

// keyLine reports whether text has what a line of a key has: a piece of base64, a
// header, nothing.
func keyLine(text []byte) bool {
	run := 0
	for _, c := range text {
		if run++; !base64Byte(c) {
			run = 0
		}
		if run == 16 {
			return true
		}
	}
	return len(bytes.TrimSpace(text)) == 0 ||
		bytes.HasPrefix(text, []byte("Proc-Type:")) || bytes.HasPrefix(text, []byte("DEK-Info:"))
}

// trivialValue reports whether v hides nothing: it says that there is no value, or
// that it was taken out already.
func trivialValue(v []byte) bool {
	switch strings.ToLower(string(v[:min(len(v), 16)])) {
	case "", "true", "false", "null", "nil", "none", "undefined", "required", "missing", "invalid", "expired",
		"filtered", "redacted", "hidden":
		return true
	}
	return len(bytes.Trim(v, "*")) == 0
}

func digits(v []byte) bool {
	for _, c := range v {
		if !digit(c) {
			return false
		}
	}
	return true
}

func digit(c byte) bool  { return '0' <= c && c <= '9' }
func letter(c byte) bool { return alnum(c) && !digit(c) }
