package doctor

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

func TestFrameworksAreRecognised(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		command string
		server  string // arguments of the process that listens; "" none is seen
		files   map[string]string
		says    string
		want    string
	}{
		{name: "Rails by its command", command: "bin/rails server", want: "Rails with Puma"},
		{name: "Rails by its Gemfile, under Puma", command: "bundle exec puma -C config/puma.rb", server: "puma 6.4.0 (tcp://0.0.0.0:3000) [shop]",
			files: map[string]string{"Gemfile": "source 'https://example'\ngem \"rails\", \"~> 7.1\"\ngem 'puma'\n"}, want: "Rails with Puma"},
		{name: "Puma alone", command: "puma", files: map[string]string{"Gemfile": "gem 'puma'\ngem 'sinatra'"}, want: "Puma"},
		{name: "plain Ruby", command: "ruby app.rb", want: "Ruby"},
		{name: "Express by package.json", command: "node server.js", server: "node\x00server.js",
			files: map[string]string{"package.json": `{"dependencies":{"express":"^4"}}`}, want: "Node with Express"},
		{name: "not Express by a package that only begins so", command: "node server.js",
			files: map[string]string{"package.json": `{"dependencies":{"express-session":"^1","@types/express":"1"}}`}, want: "Node"},
		{name: "plain Node", command: "node server.js", want: "Node"},
		{name: "npm start, through its script", command: "npm start",
			files: map[string]string{"package.json": `{"scripts":{"start":"next start"}}`}, want: "Next.js"},
		{name: "Next.js by its title", command: "npm run serve", server: "next-server (v14.2.3)", want: "Next.js"},
		{name: "Next.js standalone", command: "node server.js", files: map[string]string{"package.json": `{"dependencies":{"next":"14","react":"18"}}`}, want: "Next.js"},
		{name: "Vite", command: "npx vite preview", want: "Vite"},
		{name: "Vue CLI", command: "node_modules/.bin/vue-cli-service serve", want: "Vue CLI"},
		{name: "Nuxt", command: "node .output/server/index.mjs", files: map[string]string{"package.json": `{"dependencies":{"nuxt":"3"}}`}, want: "Nuxt"},
		{name: "Django's own server", command: "python manage.py runserver", want: "Django"},
		{name: "gunicorn", command: "gunicorn shop.wsgi --log-file -", files: map[string]string{"manage.py": ""}, want: "gunicorn"},
		{name: "gunicorn in its workers' title", command: "./start.sh", server: "gunicorn: master [shop.wsgi]", want: "gunicorn"},
		{name: "uvicorn as a module", command: "python3.11 -m uvicorn app:app", want: "uvicorn"},
		{name: "Flask's own server", command: "flask run", want: "Flask"},
		{name: "Flask by its requirements", command: "python app.py", files: map[string]string{"requirements.txt": "Flask==3.0\n"}, want: "Flask"},
		{name: "Streamlit", command: "streamlit run app.py", want: "Streamlit"},
		{name: "Gradio", command: "python app.py", files: map[string]string{"requirements.txt": "gradio\n"}, want: "Gradio"},
		{name: "plain Python", command: "python3 -m http.server", want: "Python"},
		{name: "Spring Boot by its banner", command: "java -jar app.jar", says: " :: Spring Boot ::                (v3.2.0)", want: "Spring Boot"},
		{name: "Spring Boot by its build", command: "java -jar target/app.jar",
			files: map[string]string{"pom.xml": "<artifactId>spring-boot-starter-web</artifactId>"}, want: "Spring Boot"},
		{name: "plain Java", command: "java -jar app.jar", want: "Java"},
		{name: "Go by its module", command: "bin/web", server: "bin/web", files: map[string]string{"go.mod": "module shop", "package.json": `{"dependencies":{"vite":"5"}}`}, want: "Go"},
		{name: "PHP", command: "php -S localhost:8000", want: "PHP"},
		{name: "Laravel", command: "php artisan serve", want: "Laravel"},
		{name: "Rocket", command: "./target/release/shop", files: map[string]string{"Cargo.toml": "[dependencies]\nrocket = \"0.5\"\n"}, want: "Rocket"},
		{name: "Actix", command: "./shop", server: "./shop", files: map[string]string{"Cargo.toml": "actix-web = \"4\""}, want: "Actix"},
		{name: "ASP.NET", command: "dotnet Shop.dll", want: "ASP.NET"},
		{name: "ASP.NET in one file", command: "./Shop", server: "./Shop", says: "Now listening on: http://localhost:5000", want: "ASP.NET"},
		{name: "Phoenix", command: "mix phx.server", want: "Phoenix"},
		{name: "Deno", command: "deno run -A main.ts", want: "Deno"},
		{name: "Bun", command: "bun run index.ts", want: "Bun"},
		{name: "nothing that is known", command: "./server --port 3000", server: "./server", want: ""},
		{name: "a shell's words", command: "sh -c \"exec gunicorn app:app\"", want: "gunicorn"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := sightOf(Place{})
			s.world.file = func(name string) []byte {
				if text, ok := test.files[filepath.Base(name)]; ok {
					return []byte(text)
				}
				return nil
			}
			s.tree, s.mine = nil, nil
			if test.server != "" {
				args := strings.Split(test.server, "\x00")
				s.tree = []proc.Process{{PID: 31, Name: "x", Args: args}}
				s.mine = []proc.Socket{{PID: 31}}
			}
			s.lines = []protocol.Line{{Text: test.says}}
			if got := recognise(strings.Fields(test.command), s).Name; got != test.want {
				t.Errorf("recognised as %q, want %q", got, test.want)
			}
		})
	}
}

func TestEveryFrameworkHasItsOwnFixes(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, f := range frameworks {
		if names[f.Name] {
			t.Errorf("%s has two rows", f.Name)
		}
		names[f.Name] = true
		if f.Port == "" || f.Host == "" {
			t.Errorf("%s does not say how to listen on $PORT and on all addresses", f.Name)
		}
		if len(f.words)+len(f.packages)+len(f.files)+len(f.says) == 0 {
			t.Errorf("%s cannot be recognised", f.Name)
		}
	}
	for _, name := range languageNames {
		if !names[name] {
			t.Errorf("there is no row %s", name)
		}
	}
	for _, want := range []string{"Rails with Puma", "Node with Express", "Next.js", "Django", "gunicorn", "uvicorn", "Flask",
		"Spring Boot", "Go", "PHP", "Rocket", "Actix", "ASP.NET"} {
		if !names[want] {
			t.Errorf("%s is missing", want)
		}
	}
	for i := range reflect.TypeFor[Framework]().NumField() {
		field := reflect.TypeFor[Framework]().Field(i)
		if field.IsExported() && field.Name != "Name" && field.Name != "Language" && reflect.ValueOf(generic).Field(i).IsZero() {
			t.Errorf("there is no general advice on %s", field.Name)
		}
	}
}

func TestCodesAreATable(t *testing.T) {
	t.Parallel()
	list := Codes()
	if len(list) != 24 || !slices.IsSortedFunc(list[:20], func(a, b Code) int { return strings.Compare(a.Code, b.Code) }) ||
		list[0].Code != "PORT01" || list[19].Code != "PORT20" || list[20].Code != "EGR01" || list[23].Code != "EGR04" {
		t.Errorf("the codes are %+v", list)
	}
	for _, c := range list {
		if c.Title == "" || rank(c.Severity) == 2 && c.Severity != protocol.SeverityNote {
			t.Errorf("%+v", c)
		}
	}
}
