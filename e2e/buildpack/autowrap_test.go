//go:build linux

package buildpack

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestAutowrapChangesTheWebLineAndSaysSo(t *testing.T) {
	t.Parallel()
	release := publish(t)
	for _, test := range []struct{ name, before, after string }{
		{"a command", "web: node server.js\nworker: node worker.js\n", "web: exec postern run -- node server.js\nworker: node worker.js\n"},
		{"exec", "web: exec node server.js\n", "web: exec postern run -- node server.js\n"},
		{"no line end", "release: rake db:migrate\nweb: bin/rails server", "release: rake db:migrate\nweb: exec postern run -- bin/rails server\n"},
		{"a line end of Windows", "web: node server.js\r\n", "web: exec postern run -- node server.js\n"},
		{"variables", "web: bundle exec puma -p ${PORT:-3000} -e $RACK_ENV\n", "web: exec postern run -- bundle exec puma -p ${PORT:-3000} -e $RACK_ENV\n"},
		{"an assignment", "web: NODE_ENV=production A=b node server.js\n", "web: exec postern run -- env NODE_ENV=production A=b node server.js\n"},
		{"an option with a sign", "web: node --stack-size=500 x.js\n", "web: exec postern run -- node --stack-size=500 x.js\n"},
		{"a path with a sign", "web: bin/a=b\n", "web: exec postern run -- bin/a=b\n"},
		{"quotes", "web: gunicorn 'app:create_app()' --log \"a;b & c\"\n", "web: exec postern run -- gunicorn 'app:create_app()' --log \"a;b & c\"\n"},
		{"a backslash", "web: node x.js --sep '\\n'\n", "web: exec postern run -- node x.js --sep '\\n'\n"},
		{"blanks", "  web :  node server.js\n", "web: exec postern run -- node server.js\n"},
		{"another name", "webpack: npm run build\nweb: npm start\n", "webpack: npm run build\nweb: exec postern run -- npm start\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			build, cache := t.TempDir(), t.TempDir()
			procfile := filepath.Join(build, "Procfile")
			write(t, procfile, test.before)
			config := map[string]string{"POSTERN_AGENT_URL": release.url(), "POSTERN_AUTOWRAP": "1"}
			added := "+web: exec postern run -- "
			release.compile(t, build, cache, config).want(t, 0, "POSTERN_AUTOWRAP=1 changes the Procfile", added)
			if got := read(t, procfile); got != test.after {
				t.Errorf("the Procfile is now %q, expected %q", got, test.after)
			}
			again := release.compile(t, build, cache, config)
			again.want(t, 0, "is wrapped already")
			if got := read(t, procfile); got != test.after || strings.Contains(again.output, added) {
				t.Errorf("the second time made it %q:\n%s", got, again.output)
			}
			if left, _ := filepath.Glob(procfile + "*"); len(left) != 1 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestAutowrapRefusesWhatItCannotWrap(t *testing.T) {
	t.Parallel()
	release := publish(t)
	for _, test := range []struct{ name, procfile, says string }{
		{"no Procfile", "", "there is no Procfile"},
		{"no web process", "worker: node worker.js\n", "has no web process"},
		{"two commands", "web: rake db:migrate && bin/rails server\n", "needs a shell"},
		{"a list", "web: sleep 1; node server.js\n", "needs a shell"},
		{"a pipe", "web: node server.js | tee log\n", "needs a shell"},
		{"a redirection", "web: node server.js 2>&1\n", "needs a shell"},
		{"a substitution", "web: node $(cat entry)\n", "needs a shell"},
		{"another folder", "web: cd app && node server.js\n", "needs a shell"},
		{"a builtin", "web: source env.sh\n", "needs a shell"},
		{"a quote that does not end", "web: node 'x\n", "needs a shell"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			build := t.TempDir()
			procfile := filepath.Join(build, "Procfile")
			if test.procfile != "" {
				write(t, procfile, test.procfile)
			}
			release.compile(t, build, t.TempDir(), map[string]string{"POSTERN_AGENT_URL": release.url(), "POSTERN_AUTOWRAP": "1"}).
				want(t, 1, test.says, "web: exec postern run -- ")
			if test.procfile != "" && read(t, procfile) != test.procfile {
				t.Error("the Procfile was changed")
			}
		})
	}
}

// Off unless it is asked for, as every word but 1 is.
func TestAutowrapIsOff(t *testing.T) {
	t.Parallel()
	release := publish(t)
	for _, value := range []string{"", "0", "false"} {
		build := t.TempDir()
		procfile := filepath.Join(build, "Procfile")
		write(t, procfile, "web: node server.js\n")
		config := map[string]string{"POSTERN_AGENT_URL": release.url(), "POSTERN_AUTOWRAP": value}
		release.compile(t, build, t.TempDir(), config).want(t, 0, "No process of the Procfile is wrapped yet", "web: exec postern run -- COMMAND")
		if got := read(t, procfile); got != "web: node server.js\n" {
			t.Errorf("POSTERN_AUTOWRAP=%s: the Procfile is now %q", value, got)
		}
	}
}

// The changed line does what the old one did, quotes and variables included.
func TestAnAutowrappedLineRunsAsBefore(t *testing.T) {
	t.Parallel()
	release := publish(t)
	build := t.TempDir()
	write(t, filepath.Join(build, "show"), "#!/bin/sh\nprintf '<%s>' \"$MODE\" \"$@\"\necho\n")
	write(t, filepath.Join(build, "Procfile"), `web: MODE=fast ./show 'a b' "c;d" ${PORT:-none} e\ f`+"\n")
	release.compile(t, build, t.TempDir(), map[string]string{"POSTERN_AGENT_URL": release.url(), "POSTERN_AUTOWRAP": "1"}).want(t, 0)
	d := startDyno(t, build, "web", "PORT=4711")
	if code := d.exitCode(t, awhile); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d.await(t, "<fast><a b><c;d><4711><e f>")
}
