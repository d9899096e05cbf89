package doctor

import (
	"bytes"
	"encoding/json"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/posternhq/postern/agent/proc"
)

// Framework is what an app is built with, as far as its fixes differ. An empty fix
// means that the general one holds.
type Framework struct {
	Name     string
	Language string // the runtime it needs: node, python, …; "" any

	// What gives it away.
	words    []string // of the command, of the listener's arguments, or its name
	weak     bool     // words are those of a runtime: what packages and files say counts for more
	says     []string // in the first lines of its output
	packages []string // in package.json, requirements.txt, Gemfile, …
	files    []string // in the app's folder

	// What to change, per mistake.
	Port     string // PORT02: listen on $PORT
	Host     string // PORT03, PORT04: listen on all addresses
	Hostname string // PORT05: do not bind the machine's own name
	TLS      string // PORT13
	Idle     string // PORT14
	Hosts    string // PORT15
}

// generic is what can be told to everybody.
var generic = Framework{
	Port:     "read the variable PORT where the app begins to listen, in place of the number that is written there",
	Host:     "listen on 0.0.0.0, or on :: with IPv4 allowed, in place of localhost",
	Hostname: "listen on 0.0.0.0 in place of the machine's own name or address; if the app reads HOSTNAME or HOST for it, set that to 0.0.0.0",
	TLS:      "speak plain HTTP on PORT: the platform's router has ended TLS already, and tells by X-Forwarded-Proto: https that it did; take certificate and key out of the app's settings",
	Idle:     "raise the server's keep-alive timeout above the 90 s of the router, to 95 s",
	Hosts:    "add the host name to those the app allows",
}

// fix returns a fix of the framework, or the general one.
func (s *sight) fix(pick func(*Framework) string) string {
	if text := pick(&s.framework); text != "" {
		return text
	}
	return pick(&generic)
}

// recognise tells what the app is built with: by the words of the command and of the
// process that listens, else by what its folder names. What was seen to run counts
// for more than what lies about.
func recognise(command []string, s *sight) Framework {
	server := s.server()
	words := wordsOf(append(slices.Clone(command), server.Args...))
	words = append(words, wordsOf([]string{server.Name})...)
	script := packageScript(command, s)
	words = append(words, wordsOf(script)...)
	language := languageOf(words)
	compiled := language == "" && server.PID != 0 && !isShell(server) && !isRunner(server)
	files := sync.OnceValue(func() folder { return readFolder(s) })
	for _, match := range []func(*Framework) bool{
		func(f *Framework) bool { return !f.weak && overlap(f.words, words) },
		func(f *Framework) bool { return s.said(f.says) },
		func(f *Framework) bool { return files().names(f.packages) },
		func(f *Framework) bool { return f.weak && overlap(f.words, words) },
		func(f *Framework) bool { return files().has(f.files) },
		func(f *Framework) bool { return language != "" && f.Name == languageNames[language] },
	} {
		for i := range frameworks {
			f := &frameworks[i]
			if f.runsOn(language, compiled) && match(f) {
				return *f
			}
		}
	}
	return generic
}

// runsOn reports whether what was seen to run can be this framework. A program that
// is none of the known runtimes is compiled, whatever package.json it has for the
// pages it serves.
func (f *Framework) runsOn(language string, compiled bool) bool {
	switch {
	case language != "":
		return f.Language == "" || f.Language == language
	case compiled:
		return slices.Contains([]string{"", "go", "rust", "dotnet"}, f.Language)
	}
	return true
}

// said reports whether the app's output has one of the phrases.
func (s *sight) said(phrases []string) bool {
	for _, line := range s.lines {
		for _, phrase := range phrases {
			if strings.Contains(line.Text, phrase) {
				return true
			}
		}
	}
	return false
}

// wordsOf splits arguments into plain lower-case words: "/usr/bin/python3 -m
// uvicorn" has python3 and uvicorn, "puma 6.4.0 (tcp://…) [shop]" has puma. What
// comes after a "=" may be a secret and is not looked at.
func wordsOf(args []string) []string {
	var words []string
	for _, arg := range args {
		for word := range strings.FieldsSeq(arg) {
			if len(words) == 256 {
				return words
			}
			word, _, _ = strings.Cut(word, "=")
			word = path.Base(strings.ToLower(strings.Trim(word, `"'();:&|`)))
			words = append(words, word)
			if module, _, ok := strings.Cut(word, ":"); ok { // app:app
				words = append(words, module)
			}
		}
	}
	return words
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(word string) bool { return slices.Contains(b, word) })
}

// languages are the programs that run apps.
var languages = map[string]string{
	"node": "node", "nodejs": "node", "npm": "node", "npx": "node", "yarn": "node", "pnpm": "node", "mainthread": "node",
	"python": "python", "python3": "python", "uvicorn": "python", "gunicorn": "python", "hypercorn": "python", "daphne": "python",
	"ruby": "ruby", "bundle": "ruby", "puma": "ruby", "rails": "ruby", "rackup": "ruby",
	"java": "java", "php": "php", "php-fpm": "php", "dotnet": "dotnet", "deno": "deno", "bun": "bun",
	"beam.smp": "elixir", "elixir": "elixir", "mix": "elixir", "cargo": "rust", "go": "go",
}

// languageNames are the rows for a runtime without a framework.
var languageNames = map[string]string{
	"node": "Node", "python": "Python", "ruby": "Ruby", "java": "Java", "php": "PHP", "dotnet": "ASP.NET",
	"deno": "Deno", "bun": "Bun", "elixir": "Phoenix", "go": "Go",
}

func languageOf(words []string) string {
	for _, word := range words {
		if l := languages[word]; l != "" {
			return l
		}
		if strings.HasPrefix(word, "python3.") {
			return "python"
		}
	}
	return ""
}

// packageScript is what package.json runs for "npm start", as words.
func packageScript(command []string, s *sight) []string {
	words := wordsOf(command)
	if !overlap(words, []string{"npm", "yarn", "pnpm", "bun"}) {
		return nil
	}
	var manifest struct {
		Scripts map[string]string `json:"scripts"`
	}
	if json.Unmarshal(s.file("package.json"), &manifest) != nil {
		return nil
	}
	for _, word := range words {
		if script, ok := manifest.Scripts[word]; ok {
			return []string{script}
		}
	}
	return nil
}

// folder is what the app's folder tells.
type folder struct {
	present map[string]bool
	text    map[string][]byte // of files that name packages
}

// manifests name packages.
var manifests = []string{"package.json", "Gemfile", "requirements.txt", "pyproject.toml", "Pipfile", "pom.xml",
	"build.gradle", "build.gradle.kts", "go.mod", "composer.json", "Cargo.toml", "mix.exs", "deno.json"}

func readFolder(s *sight) folder {
	f := folder{present: map[string]bool{}, text: map[string][]byte{}}
	for _, name := range manifests {
		if raw := s.file(name); raw != nil {
			f.present[name], f.text[name] = true, raw
		}
	}
	for i := range frameworks {
		for _, name := range frameworks[i].files {
			if !f.present[name] && s.file(name) != nil {
				f.present[name] = true
			}
		}
	}
	return f
}

func (f folder) has(files []string) bool {
	return slices.ContainsFunc(files, func(name string) bool { return f.present[name] })
}

// names reports whether a manifest names one of the packages, as a whole word.
func (f folder) names(packages []string) bool {
	for _, pkg := range packages {
		for _, raw := range f.text {
			if wholeWord(raw, []byte(pkg)) {
				return true
			}
		}
	}
	return false
}

func wholeWord(text, word []byte) bool {
	for rest, from := text, 0; ; {
		i := bytes.Index(rest, word)
		if i < 0 {
			return false
		}
		start, end := from+i, from+i+len(word)
		if (start == 0 || !partOfName(text[start-1])) && (end == len(text) || !partOfName(text[end])) {
			return true
		}
		rest, from = text[end:], end
	}
}

func partOfName(c byte) bool {
	return c == '-' || c == '_' || c == '/' || c == '@' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// isShell reports whether a process is a shell.
func isShell(p proc.Process) bool {
	return slices.Contains([]string{"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}, program(p))
}

// isRunner reports whether a process runs another for somebody.
func isRunner(p proc.Process) bool {
	return slices.Contains([]string{"npm", "npx", "yarn", "pnpm", "bundle", "foreman", "honcho", "tini", "dumb-init", "env"}, program(p)) ||
		slices.Contains([]string{"npm start", "npm run"}, strings.Join(wordsOf(p.Args[:min(len(p.Args), 2)]), " "))
}

// program is the name of what a process runs.
func program(p proc.Process) string {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return p.Name
	}
	first, _, _ := strings.Cut(p.Args[0], " ") // some write a title over their arguments
	return strings.TrimPrefix(path.Base(first), "-")
}
